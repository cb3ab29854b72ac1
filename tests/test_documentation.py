"""`docs/` builds without a warning, and the API reference has every public name."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import dqmq_tf

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site that MkDocs builds."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_every_page_is_in_the_site(site):
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 15
    missing = [
        page
        for page in pages
        if page.name != "index.md" and not (site / page.with_suffix("") / "index.html").exists()
    ]
    assert not missing


@pytest.mark.parametrize("name", sorted(dqmq_tf.__all__))
def test_the_api_reference_has_every_public_name(site, name):
    reference = "".join(path.read_text("utf-8") for path in (site / "api").rglob("index.html"))
    # A heading of the name, wherever it is defined, or the name in text.
    heading = re.search(rf'id="dqmq_tf\.(?:[\w.]+\.)?{re.escape(name)}"', reference)
    assert heading or f"dqmq_tf.{name}<" in reference


def test_the_pictures_of_the_benchmarks_are_in_the_site(site):
    page = (site / "benchmarks" / "index.html").read_text("utf-8")
    pictures = re.findall(r'src="\.\./(results/[\w.]+)"', page)
    assert len(pictures) == 4
    assert all((site / picture).exists() for picture in pictures)
