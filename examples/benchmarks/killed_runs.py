"""A training and a conversion in processes of their own, which can be killed at any moment."""

import json
import multiprocessing
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

EPOCHS = 4
# For a budget in bytes, `fit` writes the file several times to weigh it, which takes longer.
BUDGETS = {"mean_bit_width": 5, "download_bytes": 1240}
MODEL, FILE, REPORT, _STARTED = "model.keras", "model.tflite", "report.json", "started"
_BATCH, _SAMPLES = 8, 16


def small_model() -> Any:
    """Returns a small model of images, with the same weights at every call."""
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def train(
    folder: pathlib.Path, callbacks: Sequence[Any] = (), budget: str = "mean_bit_width"
) -> None:
    """Trains a model with a backup after each epoch, saves it, and writes a report.

    Args:
        folder: Where the backup, the model and the report are written.
        callbacks: Further callbacks.
        budget: The kind of the budget, one of `BUDGETS`.
    """
    import keras
    import numpy as np

    import dqmq_tf

    generator = np.random.default_rng(0)
    images = generator.normal(size=(_SAMPLES, 8, 8, 3)).astype("float32")
    labels = generator.normal(size=(_SAMPLES, 10)).astype("float32")
    limit = dqmq_tf.Budget(**{budget: BUDGETS[budget]})
    qmodel = dqmq_tf.quantize_model(small_model(), budget=limit)
    # Tracing functions takes longer than these few steps.
    qmodel.compile(keras.optimizers.Adam(1e-3), "mse", run_eagerly=True)
    (folder / _STARTED).touch()
    backup = keras.callbacks.BackupAndRestore(folder / "backup", double_checkpoint=True)
    options = {"batch_size": _BATCH, "epochs": EPOCHS, "shuffle": False, "verbose": 0}
    history = qmodel.fit(images, labels, callbacks=[backup, *callbacks], **options).history
    policy, training = qmodel._parts.policy, qmodel._training
    report = {
        "phase": policy.phase,
        "bits": policy.assigned.numpy().tolist(),
        "weights": float(sum(np.abs(w.numpy()).sum() for w in qmodel.trainable_variables)),
        "epochs": len(history.get("loss", ())),
        "steps_searched": training.steps_searched,
        "cost": training.keeper.assigned_cost(training.seen()),
    }
    qmodel.save(folder / MODEL)
    (folder / REPORT).write_text(json.dumps(report))


def convert(folder: pathlib.Path, prepare: Callable[[], None] = lambda: None) -> None:
    """Converts the saved model of a folder.

    Args:
        folder: Where `train` saved its model.
        prepare: Function that is called before the conversion.
    """
    import keras

    import dqmq_tf

    qmodel = keras.models.load_model(folder / MODEL)
    prepare()
    (folder / _STARTED).touch()
    dqmq_tf.convert(qmodel, folder / FILE, verify=False)
    (folder / _STARTED).unlink()


def start(function: Callable[..., None], *args: Any) -> Any:
    """Starts a function in a new process, which has imported the package already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dqmq_tf"])
    process = context.Process(target=function, args=args)
    process.start()
    return process


def finish(function: Callable[..., None], folder: pathlib.Path, *args: Any) -> float:
    """Runs a function in a new process to its end, and returns the seconds since its start.

    Raises:
        ChildProcessError: If the process fails.
    """
    process = start(function, folder, *args)
    began = _wait_for_start(process, folder)
    process.join()
    if process.exitcode:
        raise ChildProcessError(f"{function.__name__} ended with status {process.exitcode}")
    (folder / _STARTED).unlink(missing_ok=True)
    return time.perf_counter() - began


def kill(function: Callable[..., None], folder: pathlib.Path, seconds: float, *args: Any) -> None:
    """Runs a function in a new process and kills it some seconds after it started its work."""
    process = start(function, folder, *args)
    began = _wait_for_start(process, folder)
    process.join(max(0.0, began + seconds - time.perf_counter()))
    process.kill()
    process.join()
    (folder / _STARTED).unlink(missing_ok=True)


def _wait_for_start(process: Any, folder: pathlib.Path) -> float:
    while process.is_alive() and not (folder / _STARTED).exists():
        time.sleep(0.01)
    return time.perf_counter()
