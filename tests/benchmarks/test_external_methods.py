"""Methods that run as scripts: what they are given, and what is read from their output."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from study import architectures, datasets, external_methods, runs

SCRIPTS = pathlib.Path(external_methods.__file__).parent
RUN = runs.Run(network="resnet8", method="hgq2", kind="mean_bit_width", budget=3.0, steps=7, seed=4)
IMAGES, MACS = 16, 12_501_632


@pytest.fixture(scope="module")
def model():
    return architectures.resnet8(keras)


@pytest.fixture(scope="module")
def images():
    x = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), "uint8")
    none = np.zeros(IMAGES, "int32")
    return datasets.Images(x=x, y=np.arange(IMAGES) % 10, kind=none, severity=none)


def executed(python, script, folder, model, images, *options):
    """Runs a script on a training set and two tests, and returns the finished process."""
    few = {"a_x": images.x[:4], "a_y": images.y[:4], "b_x": images.x[:16], "b_y": images.y[:16]}
    np.savez(folder / "weights.npz", *model.get_weights())
    np.savez(folder / "data.npz", x=images.x, y=images.y)
    np.savez(folder / "tests.npz", **few)
    names = ("weights", "data", "tests", "output")
    paths = [f"--{name}={folder / name}.npz" for name in names]
    command = [python, str(SCRIPTS / script), "--network=resnet8", "--batch=8", *paths, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def output(folder):
    """Checks what all scripts must write, and returns what a script wrote."""
    with np.load(folder / "output.npz") as file:
        found = dict(file)
    assert {k: found[k].shape for k in ("a", "b")} == {"a": (4, 10), "b": (16, 10)}
    np.testing.assert_allclose(found["b"].sum(-1), 1.0, rtol=1e-4)
    assert found["seconds"] > 0
    return found


def test_hgq2_without_its_environment_is_an_error_that_names_the_variable(
    model, images, monkeypatch
):
    monkeypatch.delenv(external_methods.PYTHON_VARIABLE, raising=False)
    assert external_methods.missing("tfmot") is None
    with pytest.raises(ValueError, match="hgq2 was not run: set DQMQ_HGQ2_PYTHON to the Python of"):
        external_methods.trained(RUN, model, images, {"a": images})


@pytest.mark.parametrize("method, extra", [("tfmot", {}), ("hgq2", {"bit_ops": 9.0, "ebops": 7.0})])
def test_predictions_of_a_script_are_scored(method, extra, model, images, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append([str(part) for part in command])
        paths = dict(part.removeprefix("--").split("=") for part in commands[0][2:])
        with np.load(paths["weights"]) as file:
            assert len(file.files) == len(model.get_weights())
        with np.load(paths["tests"]) as file:
            right = np.eye(10)[file["a_y"]]
        # A quarter of the predictions is wrong.
        right[::4] = np.roll(right[::4], 1, axis=-1)
        np.savez(paths["output"], a=right, seconds=2.5, accuracy_a=0.75, **extra)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv(external_methods.PYTHON_VARIABLE, "other/python")
    run_ = runs.Run(**{**vars(RUN), "method": method})
    found = external_methods.trained(run_, model, images, {"a": images})
    assert found["scores"]["a"]["accuracy"] == 0.75
    assert found["scores"]["a"]["cells"] == {"clean": [16, 12, 0.0]}
    assert {k: v for k, v in found.items() if k != "scores"} == {"train_seconds": 2.5, **extra}
    (command,) = commands
    assert {"--steps=7", "--seed=4", "--learning_rate=0.001"} <= set(command)
    assert ("--mean_bits=3.0" in command) == (method == "hgq2")
    assert command[0] == ("other/python" if method == "hgq2" else sys.executable)


def test_the_script_of_tfmot_runs(model, images, tmp_path):
    pytest.importorskip("tensorflow_model_optimization")
    done = executed(sys.executable, "tfmot_int8.py", tmp_path, model, images, "--steps=2")
    assert done.returncode == 0, done.stderr[-3000:]
    output(tmp_path)


@pytest.fixture
def hgq2(model, images, tmp_path):
    python = os.environ.get(external_methods.PYTHON_VARIABLE)
    if not python:
        pytest.skip(f"{external_methods.PYTHON_VARIABLE} names no Python that has HGQ2")
    fields = {name: np.concatenate([field] * 120) for name, field in vars(images).items()}

    def run(*options):
        many = datasets.Images(**fields)
        return executed(python, "hgq2.py", tmp_path, model, many, *options)

    return run


def test_the_script_of_hgq2_meets_the_budget(hgq2, tmp_path):
    done = hgq2("--steps=240", "--mean_bits=5")
    assert done.returncode == 0, done.stderr[-3000:]
    assert 0.9 * 25 < output(tmp_path)["bit_ops"] / MACS <= 25


def test_the_script_of_hgq2_fails_above_the_budget_but_writes_the_cost(hgq2, tmp_path):
    done = hgq2("--steps=2", "--mean_bits=5")
    assert done.returncode and "bit operations exceed a budget of 3.125e+08" in done.stderr
    found = output(tmp_path)
    assert found["bit_ops"] == 6 * 6 * MACS
    # HGQ2 counts 5 bits per weight, omits products with padding, and counts some of the additions.
    inside = {side: ((3 * side - 2) / (3 * side)) ** 2 for side in (32, 16, 8)}
    # A kernel with stride 2 is padded on one side only.
    strided = {side: ((3 * side - 1) / (3 * side)) ** 2 for side in (16, 8)}
    products = (442_368 + 2 * 2_359_296) * inside[32] + 1_179_648 * strided[16]
    products += 2_359_296 * inside[16] + 1_179_648 * strided[8] + 2_359_296 * inside[8]
    products += 2 * 131_072 + 640
    assert found["ebops"] == pytest.approx(6 * 5 * products, rel=1e-3)
