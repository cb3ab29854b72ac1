"""The methods that train in a process of their own: their scripts, and what these are handed."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from study import scoring

# TFMOT needs Keras 2. HGQ2 is no requirement of the package: it has an environment of its own.
_SCRIPTS = {"tfmot": "tfmot_int8.py", "hgq2": "hgq2.py"}
METHODS = tuple(_SCRIPTS)
PYTHON_VARIABLE = "DQMQ_HGQ2_PYTHON"


def missing(method):
    """Returns why a method cannot be run here, or None if it can."""
    if method == "hgq2" and not os.environ.get(PYTHON_VARIABLE):
        return f"set {PYTHON_VARIABLE} to the Python of an environment that has HGQ2"
    return None


def trained(run, model, data, images):
    """Trains and scores by one of `METHODS`.

    Args:
        run: `runs.Run`.
        model: Float Keras model to start from.
        data: `mixtures.Images` of the training.
        images: `{name: Images}` of what is scored.

    Returns:
        The scores, the seconds of training, and what more the script tells.

    Raises:
        ValueError: If the method cannot be run here.
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
