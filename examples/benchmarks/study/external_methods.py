"""Runs the methods that train in a separate script, and passes data to and from the script."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from study import scoring

# TFMOT needs Keras 2. HGQ2 is not a requirement of this package and has its own environment.
_SCRIPTS = {"tfmot": "tfmot_int8.py", "hgq2": "hgq2.py"}
METHODS = tuple(_SCRIPTS)
PYTHON_VARIABLE = "DQMQ_HGQ2_PYTHON"


def missing(method):
    """Returns the reason why a method cannot run here, or None if it can."""
    if method == "hgq2" and not os.environ.get(PYTHON_VARIABLE):
        return f"set {PYTHON_VARIABLE} to the Python of an environment that has HGQ2"
    return None


def trained(run, model, data, images):
    """Trains and scores a network with one of `METHODS`.

    Args:
        run: A `runs.Run`.
        model: The float Keras model to start from.
        data: The training images, a `datasets.Images`.
        images: `{name: datasets.Images}` of the tests.

    Returns:
        A dictionary of the scores, the seconds of training, and further results of the script.

    Raises:
        ValueError: If the method cannot run here.
    """
    if missing(run.method):
        raise ValueError(f"{run.method} was not run: {missing(run.method)}.")
    python, options = sys.executable, []
    if run.method == "hgq2":
        python, options = os.environ[PYTHON_VARIABLE], [f"--mean_bits={run.budget}"]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        np.savez(folder / "weights.npz", *model.get_weights())
        np.savez(folder / "data.npz", x=data.x, y=data.y)
        arrays = {f"{k}_{field}": getattr(v, field) for k, v in images.items() for field in "xy"}
        np.savez(folder / "tests.npz", **arrays)
        command = [
            python, pathlib.Path(__file__).with_name(_SCRIPTS[run.method]), *options,
            f"--network={run.network}", f"--steps={run.steps}", f"--seed={run.seed}",
            f"--learning_rate={run.learning_rate}",
            *(f"--{key}={folder / key}.npz" for key in ("weights", "data", "tests", "output")),
        ]  # fmt: skip
        threads = dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
        subprocess.run(command, check=True, env={**os.environ, **threads})
        with np.load(folder / "output.npz") as output:
            predictions = {key: output[key] for key in images}
            seconds = float(output["seconds"])
            costs = {key: float(output[key]) for key in ("bit_ops", "ebops") if key in output}
    scores = {
        key: dataclasses.asdict(scoring.score(lambda x, p=p: p, images[key]))
        for key, p in predictions.items()
    }
    return {"scores": scores, "train_seconds": round(seconds, 1), **costs}
