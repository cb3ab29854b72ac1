"""Executes the notebooks in `examples/`, and cleans their outputs before they are stored.

After changing a notebook, store its new outputs:

    python tests/helpers/notebooks.py examples/images.ipynb
"""

import os
import pathlib
import re
import sys
import tempfile

import nbclient
import nbformat

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
# TensorFlow's logger prints to the standard output of a notebook.
_LOG_LINES = re.compile(r"^(INFO|WARNING):(tensorflow|absl):.*\n", re.MULTILINE)


def read(path):
    """Returns a notebook."""
    return nbformat.read(path, as_version=4)


def parameters_cell(notebook):
    """Returns the index of the cell with the tag `parameters`, which holds the settings."""
    (index,) = [
        index
        for index, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", ())
    ]
    return index


def execute(notebook, folder, settings=None):
    """Executes a notebook in place, with the package of this repository.

    Args:
        notebook: The notebook.
        folder: Folder that the notebook writes its files to.
        settings: `{name: value}` to set after the cell of parameters; None for the notebook's own.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell raises an error.
    """
    if settings:
        lines = [f"{name} = {value!r}" for name, value in settings.items()]
        cell = nbformat.v4.new_code_cell("\n".join(lines))
        notebook.cells.insert(parameters_cell(notebook) + 1, cell)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    client = nbclient.NotebookClient(
        notebook, timeout=600, record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"})


def clean(notebook):
    """Removes from the outputs, in place, what depends on the machine that executed the notebook."""
    notebook.metadata.language_info = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = _LOG_LINES.sub("", output.text)
        cell.outputs = [output for output in cell.outputs if output.get("text") != ""]


def store(path):
    """Executes a notebook and writes it back with its outputs."""
    notebook = read(path)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, folder)
    clean(notebook)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        store(pathlib.Path(name))
