"""The tutorials in `examples/`: each runs without an error, and its stored outputs are clean."""

import json
import re

import pytest
from helpers import notebooks

# Settings that make each notebook fast; they replace those of its cell of parameters.
SMALL = {
    "images": {"FLOAT_EPOCHS": 1, "EPOCHS": 2, "TRAIN_IMAGES": 128, "TEST_DRAWS": 1},
    "microcontroller": {"FLOAT_EPOCHS": 1, "EPOCHS": 2, "TRAIN_IMAGES": 128, "TEST_DRAWS": 1},
    "signals": {"FLOAT_EPOCHS": 1, "EPOCHS": 2, "TRAIN_WORDS": 128, "TEST_WORDS": 100},
    "transfer_learning": {
        "LAST_LAYER": "conv_pw_1_relu",
        "PRETRAIN_EPOCHS": 1,
        "HEAD_EPOCHS": 1,
        "FINE_TUNE_EPOCHS": 1,
        "EPOCHS": 2,
        "TRAIN_IMAGES": 64,
        "TEST_DRAWS": 1,
    },
}
MAX_BYTES = 300_000
PATHS = [notebooks.EXAMPLES / f"{name}.ipynb" for name in SMALL]
tutorials = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_of_the_examples_is_tested():
    assert sorted(PATHS) == sorted(notebooks.EXAMPLES.glob("*.ipynb"))


@tutorials
def test_a_notebook_runs_on_small_settings(path, tmp_path):
    settings = SMALL[path.stem]
    notebook = notebooks.read(path)
    parameters = notebook.cells[notebooks.parameters_cell(notebook)].source
    for name in settings:
        assert re.search(rf"^{name} = ", parameters, re.MULTILINE), f"no parameter {name}"
    notebooks.execute(notebook, tmp_path, settings)
    assert not [o for c in code_cells(notebook) for o in c.outputs if o.output_type == "error"]
    assert list(tmp_path.glob("*.tflite"))


@tutorials
def test_stored_outputs_are_those_of_one_run_from_top_to_bottom(path):
    cells = code_cells(notebooks.read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]


@tutorials
def test_stored_outputs_are_small_and_say_nothing_of_the_machine(path):
    assert path.stat().st_size < MAX_BYTES
    notebook = notebooks.read(path)
    for cell in code_cells(notebook):
        assert "execution" not in cell.metadata, "times of execution are stored"
        for output in cell.outputs:
            assert output.get("name") != "stderr"
            text = json.dumps(output)
            assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|work)/|site-packages", text)
            assert not re.search(r"WARNING|UserWarning|INFO:", text)
