"""Kills a training and a conversion at random moments, and checks what the next run makes of it.

A training with `keras.callbacks.BackupAndRestore` is killed (kill -9) at random moments and started
again. It must end within the budget, with the bits and the weights of a training that was never
killed. A conversion is killed likewise: the earlier file must still be complete, the next run must
write the same bytes, and no other file may be left.

    python examples/benchmarks/interruption.py --moments=10 --output=interruption.json
"""

import dataclasses
import json
import multiprocessing
import pathlib
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

_MOMENTS = flags.DEFINE_integer("moments", 10, "Moments for each of training and conversion.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_COMMAND = "python examples/benchmarks/interruption.py --moments={} --seed={} --output={}"
_EPOCHS, _BATCH, _SAMPLES = 6, 16, 64
_BUDGET = 4_000
_MODEL, _FILE, _REPORT, _STARTED = "model.keras", "model.tflite", "report.json", "started"
_OLD = b"an earlier file"


@dataclasses.dataclass(kw_only=True)
class Result:
    """What became of one killed run.

    Attributes:
        kind: `"fit"` or `"convert"`.
        after: Share of the time of an undisturbed run after which it was killed.
        passed: Whether all checks passed.
        message: What was wrong, or "".
        report: What the resumed training says of itself; {} for a conversion.
    """

    kind: str
    after: float
    passed: bool
    message: str
    report: dict[str, Any]


def small_model() -> Any:
    """Returns a small classifier of images, with the same weights at every call."""
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def train(folder: pathlib.Path, callbacks: Sequence[Any] = ()) -> None:
    """Trains a model with a backup after each epoch, saves it, and writes a report.

    Args:
        folder: Where the backup, the model and the report are written.
        callbacks: Further callbacks.
    """
    import keras
    import numpy as np

    import dqmq_tf

    generator = np.random.default_rng(0)
    images = generator.normal(size=(_SAMPLES, 8, 8, 3)).astype("float32")
    labels = generator.integers(0, 10, _SAMPLES)
    qmodel = dqmq_tf.quantize_model(small_model(), budget=dqmq_tf.Budget(download_bytes=_BUDGET))
    qmodel.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    (folder / _STARTED).touch()
    backup = keras.callbacks.BackupAndRestore(folder / "backup", double_checkpoint=True)
    options = {"batch_size": _BATCH, "epochs": _EPOCHS, "shuffle": False, "verbose": 0}
    history = qmodel.fit(images, labels, callbacks=[backup, *callbacks], **options).history
    policy = qmodel._parts.policy
    report = {
        "phase": policy.phase,
        "bits": policy.assigned.numpy().tolist(),
        "weights": float(sum(np.abs(w).sum() for w in qmodel.get_weights())),
        "epochs": len(history["loss"]),
        "steps_searched": qmodel._training.steps_searched,
        "cost": history["cost"][-1],
    }
    qmodel.save(folder / _MODEL)
    (folder / _REPORT).write_text(json.dumps(report))


def convert(folder: pathlib.Path, prepare: Callable[[], None] = lambda: None) -> None:
    """Converts the saved model of a folder.

    Args:
        folder: Where `train` saved its model.
        prepare: Function that is called before the conversion.
    """
    import keras

    import dqmq_tf

    qmodel = keras.models.load_model(folder / _MODEL)
    prepare()
    (folder / _STARTED).touch()
    dqmq_tf.convert(qmodel, folder / _FILE, verify=False)
    (folder / _STARTED).unlink()


def start(function: Callable[..., None], *args: Any) -> Any:
    """Starts a function in a new process, which has imported the package already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dqmq_tf"])
    process = context.Process(target=function, args=args)
    process.start()
    return process


def finish(function: Callable[..., None], folder: pathlib.Path) -> float:
    """Runs a function in a new process to its end, and returns the seconds since its start.

    Raises:
        ChildProcessError: If the process fails.
    """
    process = start(function, folder)
    began = _wait_for_start(process, folder)
    process.join()
    if process.exitcode:
        raise ChildProcessError(f"{function.__name__} ended with status {process.exitcode}")
    (folder / _STARTED).unlink(missing_ok=True)
    return time.perf_counter() - began


def kill(function: Callable[..., None], folder: pathlib.Path, seconds: float) -> None:
    """Runs a function in a new process and kills it some seconds after it started its work."""
    process = start(function, folder)
    began = _wait_for_start(process, folder)
    process.join(max(0.0, began + seconds - time.perf_counter()))
    process.kill()
    process.join()
    (folder / _STARTED).unlink(missing_ok=True)


def _wait_for_start(process: Any, folder: pathlib.Path) -> float:
    while process.is_alive() and not (folder / _STARTED).exists():
        time.sleep(0.01)
    return time.perf_counter()


def check_training(folder: pathlib.Path, whole: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns what is wrong with a resumed training, and its report.

    Args:
        folder: The folder of the training.
        whole: The report of a training that was not killed.
    """
    report = json.loads((folder / _REPORT).read_text())
    same = ("phase", "bits", "steps_searched")
    if report["cost"] > _BUDGET:
        return f"the cost is {report['cost']}, the budget {_BUDGET}", report
    for name in same:
        if report[name] != whole[name]:
            return f"{name} is {report[name]} instead of {whole[name]}", report
    if abs(report["weights"] / whole["weights"] - 1) > 1e-5:
        return "the weights are not those of a training that was not killed", report
    return check_files(folder, {_MODEL, _REPORT}), report


def check_files(folder: pathlib.Path, names: set[str]) -> str:
    """Returns which files are missing or left, or ""."""
    found = {path.name for path in folder.iterdir()}
    return "" if found == names else f"the files are {sorted(found)} instead of {sorted(names)}"


def interrupted_training(root: pathlib.Path, after: float, whole: dict[str, Any]) -> Result:
    """Kills a training, starts it again, and checks the result."""
    folder = root / f"fit{after}"
    folder.mkdir()
    kill(train, folder, after * whole["seconds"])
    try:
        finish(train, folder)
        message, report = check_training(folder, whole)
    except ChildProcessError as error:
        message, report = str(error), {}
    return Result(kind="fit", after=after, passed=not message, message=message, report=report)


def interrupted_conversion(root: pathlib.Path, after: float, whole: dict[str, Any]) -> Result:
    """Kills a conversion, starts it again, and checks the files."""
    folder = root / f"convert{after}"
    folder.mkdir()
    (folder / _MODEL).write_bytes((root / _MODEL).read_bytes())
    (folder / _FILE).write_bytes(_OLD)
    expected = (root / _FILE).read_bytes()
    kill(convert, folder, after * whole["convert_seconds"])
    message = check_files(folder, {_MODEL, _FILE})
    if (folder / _FILE).read_bytes() not in (_OLD, expected):
        message = "the killed conversion left an incomplete file"
    finish(convert, folder)
    if (folder / _FILE).read_bytes() != expected:
        message = "the second conversion wrote another file"
    message = message or check_files(folder, {_MODEL, _FILE})
    return Result(kind="convert", after=after, passed=not message, message=message, report={})


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    generator, results = random.Random(_SEED.value), []
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        seconds = finish(train, root)
        whole = json.loads((root / _REPORT).read_text()) | {"seconds": seconds}
        whole["convert_seconds"] = finish(convert, root)
        for check in (interrupted_training, interrupted_conversion):
            for _ in range(_MOMENTS.value):
                result = check(root, round(generator.random(), 3), whole)
                print(result, flush=True)
                results.append(result)
    if _OUTPUT.value:
        output = pathlib.Path(_OUTPUT.value)
        command = _COMMAND.format(_MOMENTS.value, _SEED.value, output.name)
        rows = [dataclasses.asdict(result) for result in results]
        contents = {"command": command, "undisturbed": whole, "killed": rows}
        output.write_text(json.dumps(contents, indent=1) + "\n")
    print(f"{sum(result.passed for result in results)} of {len(results)} passed")


if __name__ == "__main__":
    app.run(main)
