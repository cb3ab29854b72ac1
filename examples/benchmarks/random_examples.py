"""The stages of a random model, from float to a file that runs by index in LiteRT."""

import contextlib
import dataclasses
import gc
import pathlib
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

TARGETS = ("android", "microcontroller")
EIGHT_BITS = "8 bits"
_MEAN = "mean of 5 bits"
# A budget in bytes takes longest: `fit` writes the file several times to weigh it.
BUDGETS = (EIGHT_BITS, "default", EIGHT_BITS, _MEAN, EIGHT_BITS, _MEAN, EIGHT_BITS, _MEAN)
PASSED, REFUSED, FAILED = "passed", "refused at the door", "failed"
NOT_LOADED = "float model not loaded by Keras"
_BATCH, _EPOCHS = 8, 2
# Largest mean difference between a file and its model, in steps of the output's grid: that of
# `dqmq_tf.verify`, for each output by itself.
_MEAN_QUANTA = 8.0
# Largest mean difference between a model of 8 bits and the float model, in standard deviations of
# the float model's output.
_MEAN_ERROR = 0.25


class WrongResult(Exception):
    """A stage ended without an error, but its result is not what it must be."""


class NotLoaded(Exception):
    """Keras saves the float model, but cannot load it.

    It does not when a layer is shared between a model and a model within it.
    """


@dataclasses.dataclass(kw_only=True)
class Result:
    """Result of one model.

    Attributes:
        seed: Seed of the model.
        target: Deployment target.
        budget: One of `BUDGETS`.
        layers: The kinds of its layers, sorted.
        inputs: The structure of its inputs, with shapes.
        outputs: The structure of its outputs, with shapes.
        outcome: `PASSED`, `REFUSED`, `NOT_LOADED` or `FAILED`.
        stage: The stage that failed or refused, or "".
        message: What was wrong, or "".
        is_silent: Whether the failure is a wrong result without an error.
        is_late: Whether the failure is an error after training.
        float_error: Largest mean difference of an output from the float model's, in standard
            deviations of that output. None unless the model has 8 bits.
        loads_equal: Whether the loaded model predicts exactly as the saved one.
        different_numbers: How many numbers of the file differ from the frozen model's.
        mean_quanta: Largest mean difference of an output of the file by index, in steps.
        seconds: `{stage: time in seconds}`.
    """

    seed: int
    target: str = ""
    budget: str = ""
    layers: Sequence[str] = ()
    inputs: str = ""
    outputs: str = ""
    outcome: str = FAILED
    stage: str = ""
    message: str = ""
    is_silent: bool = False
    is_late: bool = False
    float_error: float | None = None
    loads_equal: bool | None = None
    different_numbers: int | None = None
    mean_quanta: float | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


class Example:
    """One random model on its way from float to a file that runs.

    Args:
        seed: Seed of the model. Decides the target and the bits as well.
        folder: Where files are written.
    """

    def __init__(self, seed: int, folder: pathlib.Path) -> None:
        target, budget = TARGETS[seed % 2], BUDGETS[seed // 2 % 8]
        self.result = Result(seed=seed, target=target, budget=budget)
        self.folder = folder
        self.refusal = ""

    def run(self) -> Result:
        """Takes the model through all stages, and returns the result."""
        result = self.result
        try:
            for stage in ("build", "quantize", "fit", "save", "convert", "verify", "run"):
                with self._timed(stage):
                    getattr(self, f"_{stage}")()
            result.outcome, result.stage = PASSED, ""
        except Exception as error:
            result.message = _message(error)
            result.is_silent = isinstance(error, WrongResult)
            if isinstance(error, NotLoaded):
                result.outcome = NOT_LOADED
                return result
            trained = result.stage not in ("build", "quantize", "fit")
            if not result.is_silent and (result.stage == "quantize" or trained and self.refusal):
                result.outcome = REFUSED if _is_refusal(error) else FAILED
            result.is_late = result.outcome == FAILED and trained and not result.is_silent
        return result

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        self.result.stage, started = stage, time.perf_counter()
        try:
            yield
        finally:
            self.result.seconds[stage] = round(time.perf_counter() - started, 2)

    def _build(self) -> None:
        import keras
        import random_networks

        self.model, self.data = random_networks.build(self.result.seed)
        kinds = {type(layer).__name__ for layer in self.model._flatten_layers()}
        operations = {type(operation).__name__ for operation in self.model.operations}
        self.result.layers = sorted(kinds | operations)
        for name in ("inputs", "outputs"):
            structure = getattr(self.model, name[:-1])
            shapes = keras.tree.map_structure(lambda tensor: tensor.shape[1:], structure)
            setattr(self.result, name, str(shapes))
        self.expected = _predicted(self.model, self.data)

    def _quantize(self) -> None:
        import dqmq_tf

        result, rules = self.result, []
        if result.budget == EIGHT_BITS:
            rules = [dqmq_tf.LayerRule(pattern=".*", weight_bits=(8,))]
        bits = {EIGHT_BITS: 8, _MEAN: 5}.get(result.budget)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.qmodel = dqmq_tf.quantize_model(
                self.model,
                target=result.target,
                budget=bits and dqmq_tf.Budget(mean_bit_width=bits),
                config=dqmq_tf.DQMQConfig(rules=rules, seed=result.seed),
            )
        refusals = [str(w.message) for w in caught if "cannot be converted" in str(w.message)]
        self.refusal = refusals[0] if refusals else ""
        self._compare("float_model() after quantize_model", self.qmodel.float_model(), 1e-3)
        if result.budget == EIGHT_BITS:
            self.qmodel.calibrate(self.data)
            result.float_error = self._compare("8 bits", self.qmodel, _MEAN_ERROR)

    def _compare(self, name: str, model: Any, bound: float) -> float:
        """Returns the largest mean difference of a model's outputs from the float model's."""
        import numpy as np

        found, expected = _predicted(model, self.data), self.expected
        if [f.shape for f in found] != [e.shape for e in expected]:
            raise WrongResult(f"{name}: outputs have shapes {[f.shape for f in found]}")
        errors = [
            float(np.abs(f - e).mean() / max(np.std(e), 0.05)) for f, e in zip(found, expected)
        ]
        if not max(errors) <= bound:
            raise WrongResult(f"{name}: outputs differ from the float model's by {errors}")
        return round(max(errors), 4)

    def _fit(self) -> None:
        import keras
        import numpy as np

        labels = keras.tree.pack_sequence_as(
            self.model.output, [0.5 * y + 0.1 for y in self.expected]
        )
        # Tracing takes longer than these few steps, but users train traced functions.
        self.qmodel.compile(
            keras.optimizers.SGD(1e-3, clipnorm=1.0),
            "mse",
            run_eagerly=self.result.seed % 5 != 0,
            jit_compile=False,
        )
        history = self.qmodel.fit(
            self.data, labels, batch_size=_BATCH, epochs=_EPOCHS, verbose=0
        ).history
        if not np.isfinite(history["loss"]).all():
            raise WrongResult(f"the loss is {history['loss']}")

    def _save(self) -> None:
        import keras
        import numpy as np

        path = self.folder / "model.keras"
        self.qmodel.save(path)
        try:
            loaded = keras.models.load_model(path)
        except ValueError as error:
            self._check_keras(path)
            raise error
        saved, found = (_predicted(m, self.data) for m in (self.qmodel, loaded))
        equal = all(np.array_equal(s, f) for s, f in zip(saved, found, strict=True))
        self.result.loads_equal = equal
        if not equal:
            raise WrongResult("the loaded model does not predict as the saved one")
        if loaded.output_names != self.model.output_names:
            raise WrongResult(f"the loaded model's outputs are {loaded.output_names}")
        self.qmodel = loaded

    def _check_keras(self, path: pathlib.Path) -> None:
        """Raises `NotLoaded` if Keras does not load the float model either."""
        import keras

        self.model.save(path)
        try:
            keras.models.load_model(path)
        except ValueError as error:
            raise NotLoaded(f"Keras does not load the float model either: {error}") from error

    def _convert(self) -> None:
        import dqmq_tf

        self.path = self.folder / "model.tflite"
        dqmq_tf.convert(self.qmodel, self.path, data=self.data, verify=False)

    def _verify(self) -> None:
        import dqmq_tf

        report = dqmq_tf.verify(self.qmodel, self.path, self.data)
        self.result.different_numbers = report.different_numbers
        if report.different_numbers:
            raise WrongResult(f"{report.different_numbers} numbers in the file differ")

    def _run(self) -> None:
        import keras

        from dqmq_tf import flatbuffer, inputs
        from dqmq_tf.export import output_agreement

        contents = self.path.read_bytes()
        found = _outputs_by_index(contents, inputs.collect(self.data, self.model))
        # As in `_fit`: users predict with traced functions.
        if self.result.seed % 5:
            expected = _predicted(self.qmodel, self.data)
        else:
            expected = keras.tree.flatten(self.qmodel.predict(self.data, verbose=0))
        if [f.shape for f in found] != [e.shape for e in expected]:
            raise WrongResult(f"outputs by index have shapes {[f.shape for f in found]}")
        steps = output_agreement.output_steps(flatbuffer.read(contents), expected)
        quanta = output_agreement.compare(found, expected, steps).mean_quanta
        self.result.mean_quanta = round(quanta, 4)
        if not quanta <= _MEAN_QUANTA:
            raise WrongResult(f"an output by index differs from the model's by {quanta} quanta")


def _predicted(model: Any, data: Any) -> list[Any]:
    """Returns the outputs of a model, without tracing a function, which takes longer."""
    import keras

    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(data, training=False))]


def _outputs_by_index(contents: bytes, arrays: Sequence[Any]) -> list[Any]:
    """Runs a file in LiteRT as an app does that knows inputs and outputs by number.

    Args:
        contents: Contents of the file. Look-up tables of tflite-micro, which LiteRT does not know,
            are decompressed.
        arrays: One array of real values `[N, ...]` per input, in the order of the model.

    Returns:
        One array of real values `[N, ...]` per output, in the order of the file.
    """
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    from dqmq_tf import export

    interpreter = Interpreter(model_content=export.decompress(contents), num_threads=1)
    interpreter.allocate_tensors()
    ends = interpreter.get_input_details(), interpreter.get_output_details()
    rows = []
    for sample in range(len(arrays[0])):
        for details, array in zip(ends[0], arrays, strict=True):
            value, (scale, zero) = array[sample : sample + 1], details["quantization"]
            if scale:
                limits = np.iinfo(details["dtype"])
                value = np.clip(np.rint(value / scale) + zero, limits.min, limits.max)
            interpreter.set_tensor(details["index"], value.astype(details["dtype"]))
        interpreter.invoke()
        row = []
        for details in ends[1]:
            value, (scale, zero) = interpreter.get_tensor(details["index"]), details["quantization"]
            row.append((value.astype(np.float32) - zero) * scale if scale else value)
        rows.append(row)
    return [np.concatenate(parts) for parts in zip(*rows)]


def _is_refusal(error: Exception) -> bool:
    """Returns whether an error says what is wrong with the model, as errors of the package do."""
    import dqmq_tf

    return isinstance(error, (dqmq_tf.DQMQError, ValueError, ImportError))


def _message(error: Exception) -> str:
    frames = [
        f"{pathlib.Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if "dqmq_tf" in frame.filename
    ]
    text = " ".join(str(error).split())[:600]
    return f"{type(error).__name__}: {text} [{' '.join(frames[-4:])}]"


def measure(seed: int) -> Result:
    """Takes the random model of a seed through all stages, and returns its `Result`."""
    import keras

    with tempfile.TemporaryDirectory() as folder:
        result = Example(seed, pathlib.Path(folder)).run()
    keras.backend.clear_session()
    gc.collect()
    return result
