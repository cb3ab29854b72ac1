"""Hook of MkDocs: shows the pictures of the benchmarks, which lie outside of `docs/`.

Pages link to them by their place in the repository, so that the links also work there.
"""

import pathlib

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_RESULTS = "../examples/benchmarks/results/"
_FOLDER = "results/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pictures to the site."""
    for path in sorted((pathlib.Path(config.docs_dir) / _RESULTS).glob("*.png")):
        files.append(File.generated(config, _FOLDER + path.name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Points the links to the pictures' place in the site."""
    return markdown.replace(_RESULTS, _FOLDER)
