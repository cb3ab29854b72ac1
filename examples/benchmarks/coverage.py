"""Tests which models of `keras.applications` can be quantized, trained, saved and loaded.

Each model is built without pretrained weights, for ten classes on small images. It is quantized,
trained for one step, saved, and loaded again. The loaded model must predict exactly what the saved one
predicted. Each model runs in its own process, with a limit on its time.

    python examples/benchmarks/coverage.py --output=coverage.json
    python examples/benchmarks/coverage.py --models="MobileNet.*"
"""

import dataclasses
import json
import multiprocessing
import pathlib
import re
import tempfile
import time

import rich.table
from absl import app, flags

_MODELS = flags.DEFINE_string("models", ".*", "Regular expression that must match the whole name.")
_TARGET = flags.DEFINE_string("target", "simulation", "Deployment target (see dqmq_tf.targets).")
_TIMEOUT = flags.DEFINE_integer(
    "timeout", 900, "Time limit for each model, in seconds.", lower_bound=1
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "JSON file for the results, updated after each model. Models that it already contains are not "
    "measured again, so a stopped run continues, and `--models` can fill the file in parts.",
)

_BOUND = 34
_BATCH, _CLASSES = 2, 10
# Smallest image sides that these models accept; all others accept 32.
SIDES = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of one model.

    Attributes:
        name: Name of the function in `keras.applications`.
        passed: Whether the model passed all stages.
        reason: What went wrong, or "".
        points: Number of decision points.
        seconds: `{stage: time in seconds}`.
    """

    name: str
    passed: bool
    reason: str
    points: int
    seconds: dict


def model_functions():
    """Returns the names of the model functions of `keras.applications`."""
    import keras

    found = vars(keras.applications).items()
    return sorted(name for name, value in found if callable(value) and name[0].isupper())


def measure(name, target, connection):
    """Runs one model through all stages and sends its `Result`; called in a new process."""
    seconds, points, stage, started = {}, 0, "import", time.perf_counter()

    def finish(next_stage):
        nonlocal stage, started
        now = time.perf_counter()
        seconds[stage] = round(now - started, 2)
        stage, started = next_stage, now

    try:
        import keras
        import numpy as np

        import dqmq_tf

        finish("build")
        side = SIDES.get(name, 32)
        function = getattr(keras.applications, name)
        model = function(weights=None, input_shape=(side, side, 3), classes=_CLASSES)
        random = np.random.default_rng(0)
        images = random.uniform(0, 255, (_BATCH, side, side, 3)).astype("float32")
        labels = random.integers(0, _CLASSES, _BATCH)
        finish("quantize")
        qmodel = dqmq_tf.quantize_model(model, target=target)
        points = len(qmodel.decision_points)
        finish("train")
        # With random weights and images from 0 to 255, gradients can be very large.
        optimizer = keras.optimizers.SGD(global_clipnorm=1.0)
        qmodel.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")
        before = [np.array(v) for v in qmodel.trainable_variables]
        losses = qmodel.fit(images, labels, batch_size=_BATCH, epochs=1, verbose=0).history["loss"]
        if not np.isfinite(losses).all():
            raise ArithmeticError(f"the loss of the training step is {losses[0]}")
        if all(np.array_equal(b, v) for b, v in zip(before, qmodel.trainable_variables)):
            raise ArithmeticError("the training step changed no variable")
        finish("predict")
        expected = qmodel.predict(images, verbose=0)
        finish("save")
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.keras"
            qmodel.save(path)
            finish("load")
            loaded = keras.models.load_model(path)
        finish("predict again")
        found = loaded.predict(images, verbose=0)
        finish("")
        if not np.isfinite(expected).all():
            raise ArithmeticError("the predictions hold NaN or infinity")
        if not np.array_equal(found, expected):
            largest = np.abs(found - expected).max()
            raise ArithmeticError(f"the loaded model's predictions differ by up to {largest:.3g}")
        result = Result(name, True, "", points, seconds)
    except Exception as error:
        finish("")
        text = " ".join(str(error).split())[:500]
        reason = f"{list(seconds)[-1]}: {type(error).__name__}: {text}"
        result = Result(name, False, reason, points, seconds)
    connection.send(result)


def run(name, target, timeout, measure):
    """Measures a model in a new process.

    Args:
        name: Name of the function in `keras.applications`.
        target: Deployment target.
        timeout: Time limit in seconds.
        measure: A function that takes the name, the target and a connection, to which it sends its
            result.

    Returns:
        The result, or the reason why there is none.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(name, target, sender))
    process.start()
    sender.close()
    try:
        if receiver.poll(timeout):
            return receiver.recv()
        return f"took longer than {timeout} s"
    except EOFError:
        process.join()
        return f"the process ended with status {process.exitcode} (-9: out of memory)"
    finally:
        process.kill()
        process.join()


def earlier_results(path):
    """Returns the `Result`s in a file, or an empty list if the file does not exist."""
    if path is None or not pathlib.Path(path).exists():
        return []
    return [Result(**row) for row in json.loads(pathlib.Path(path).read_text())]


def table_of(results):
    """Returns the results as a table."""
    table = rich.table.Table("model", "decision points", "seconds", "result", title="Coverage")
    for result in results:
        table.add_row(
            result.name,
            str(result.points),
            f"{sum(result.seconds.values()):.0f}",
            "passed" if result.passed else result.reason,
        )
    return table


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    names = [name for name in model_functions() if re.fullmatch(_MODELS.value, name)]
    if not names:
        raise app.UsageError(
            f"--models={_MODELS.value} matches no model. Available: {', '.join(model_functions())}."
        )
    results = earlier_results(_OUTPUT.value)
    names = [name for name in names if name not in {result.name for result in results}]
    for number, name in enumerate(names, start=1):
        started = time.perf_counter()
        result = run(name, _TARGET.value, _TIMEOUT.value, measure)
        if not isinstance(result, Result):
            seconds = {"total": round(time.perf_counter() - started, 2)}
            result = Result(name, False, result, 0, seconds)
        results.append(result)
        outcome = "passed" if result.passed else result.reason
        print(f"{number}/{len(names)} {name}: {outcome} {result.seconds}", flush=True)
        if _OUTPUT.value:
            rows = [dataclasses.asdict(entry) for entry in results]
            pathlib.Path(_OUTPUT.value).write_text(json.dumps(rows, indent=2) + "\n")
    rich.print(table_of(results))
    passed = sum(result.passed for result in results)
    total = len(model_functions())
    print(f"{passed} of {len(results)} models passed (bound: at least {_BOUND} of all {total})")


if __name__ == "__main__":
    app.run(main)
