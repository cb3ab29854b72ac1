"""Runs one file on one runtime, in a process of its own, for `dqmq_tf.runtimes.process`.

    python worker.py FOLDER

`FOLDER` holds `model.tflite`, `inputs.npz` and `request.json`. The worker adds `outputs.npz` and
`result.json`, or `error.txt` if it fails. It is started by its path and imports nothing but NumPy
and the runtime. So it starts in a tenth of a second, and runs under the Python of another
environment too.
"""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

if __name__ == "__main__":
    # Python puts the folder of a script first on the path. The modules beside it are no packages.
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path = [entry for entry in sys.path if entry != _HERE]

import numpy as np  # noqa: E402

_WARM_UP = 3
_ARENA_STEP = 16
# Data type, scale and zero point of an input or output. The scale is 0 if it is not quantized.
Grid = tuple[Any, float, int]


class Engine(Protocol):
    """A file on a runtime.

    Attributes:
        inputs: Grids of the inputs.
        outputs: Grids of the outputs.
    """

    inputs: list[Grid]
    outputs: list[Grid]

    def set(self, arrays: Sequence[np.ndarray]) -> None:
        """Sets the inputs, in the types of the file."""

    def invoke(self) -> None:
        """Runs the file."""

    def get(self) -> list[np.ndarray]:
        """Returns the outputs, in the types of the file."""

    def tensor(self, index: int) -> np.ndarray:
        """Returns a tensor of the first subgraph."""


def litert_interpreter(contents: bytes, request: Mapping[str, Any]) -> Any:
    """Returns an allocated interpreter of LiteRT, or of its predecessor `tflite-runtime`.

    Args:
        contents: Contents of a `.tflite` file.
        request: See `main`.
    """
    if request["package"] == "tflite_runtime":
        from tflite_runtime import interpreter as package
    else:
        from ai_edge_litert import interpreter as package
    interpreter = package.Interpreter(
        model_content=contents,
        num_threads=1,
        experimental_op_resolver_type=package.OpResolverType[request["resolver"]],
        experimental_preserve_all_tensors=bool(request["tensors"]),
    )
    interpreter.allocate_tensors()
    return interpreter


class FirstSubgraph:
    """The first subgraph of a file in LiteRT, with inputs and outputs chosen by tensor index.

    Args:
        interpreter: An allocated interpreter.
        inputs: Tensor indices of the inputs.
        outputs: Tensor indices of the outputs.
    """

    def __init__(self, interpreter: Any, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        self._interpreter = interpreter
        self._input_indices, self._output_indices = inputs, outputs
        self.inputs = self._grids(interpreter.get_input_details(), inputs)
        self.outputs = self._grids(interpreter.get_output_details(), outputs)

    @staticmethod
    def _grids(details: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> list[Grid]:
        by_index = {entry["index"]: entry for entry in details}
        return [grid_of(by_index[index]) for index in indices]

    def set(self, arrays: Sequence[np.ndarray]) -> None:
        for index, array in zip(self._input_indices, arrays):
            self._interpreter.set_tensor(index, array)

    def invoke(self) -> None:
        self._interpreter.invoke()

    def get(self) -> list[np.ndarray]:
        return [self._interpreter.get_tensor(index) for index in self._output_indices]

    def tensor(self, index: int) -> np.ndarray:
        return self._interpreter.get_tensor(index)


class Signature:
    """A signature of a file in LiteRT. Its subgraph need not be the first one.

    Args:
        interpreter: An allocated interpreter.
        key: Name of the signature.
        inputs: Names of the inputs, in the order in which they are passed.
        outputs: Names of the outputs, in the order in which they are returned.
    """

    def __init__(
        self, interpreter: Any, key: str, inputs: Sequence[str], outputs: Sequence[str]
    ) -> None:
        self._interpreter = interpreter
        self._run = interpreter.get_signature_runner(key)
        self._input_names, self._output_names = inputs, outputs
        details = self._run.get_input_details()
        self._shapes = [tuple(int(n) for n in details[name]["shape"]) for name in inputs]
        self.inputs = [grid_of(details[name]) for name in inputs]
        details = self._run.get_output_details()
        self.outputs = [grid_of(details[name]) for name in outputs]

    def set(self, arrays: Sequence[np.ndarray]) -> None:
        self._arguments = dict(zip(self._input_names, arrays))

    def invoke(self) -> None:
        self._results = self._run(**self._arguments)

    def get(self) -> list[np.ndarray]:
        return [self._results[name] for name in self._output_names]

    def tensor(self, index: int) -> np.ndarray:
        return self._interpreter.get_tensor(index)

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs arrays of real values with a batch of one, and returns outputs of real values.

        Raises:
            ValueError: If an array does not have the shape of its input.
        """
        for name, shape, array in zip(self._input_names, self._shapes, arrays):
            if array.shape != shape:
                raise ValueError(
                    f"Input {name!r} takes {shape[1:]}, but the data have {array.shape[1:]}."
                )
        self.set([to_file(array, grid) for array, grid in zip(arrays, self.inputs)])
        self.invoke()
        return [from_file(values, grid) for values, grid in zip(self.get(), self.outputs)]


class Micro:
    """A file in TFLite Micro, which runs the first subgraph and knows tensors by position.

    Args:
        contents: Contents of a `.tflite` file.
        request: See `main`.
    """

    def __init__(self, contents: bytes, request: Mapping[str, Any]) -> None:
        from tflite_micro.python.tflite_micro import runtime

        modes = runtime.InterpreterConfig
        keep = modes.kPreserveAllTensors if request["tensors"] else modes.kAllocationRecording
        self._contents, self._runtime, self._limit = contents, runtime, request["arena_limit"]
        self._interpreter = self._make_interpreter(self._limit, keep)
        self._input_places, self._output_places = request["inputs"], request["outputs"]
        self.inputs = [grid_of(self._interpreter.get_input_details(i)) for i in self._input_places]
        self.outputs = [
            grid_of(self._interpreter.get_output_details(i)) for i in self._output_places
        ]

    def _make_interpreter(self, arena_bytes: int, mode: Any) -> Any:
        return self._runtime.Interpreter.from_bytes(
            self._contents, arena_size=arena_bytes, intrepreter_config=mode
        )

    def set(self, arrays: Sequence[np.ndarray]) -> None:
        for place, array in zip(self._input_places, arrays):
            self._interpreter.set_input(array, place)

    def invoke(self) -> None:
        self._interpreter.invoke()

    def get(self) -> list[np.ndarray]:
        # The array that TFLite Micro returns is a view of the arena, so it has to be copied.
        return [self._interpreter.get_output(place).copy() for place in self._output_places]

    def tensor(self, index: int) -> np.ndarray:
        return self._interpreter.GetTensor(index, 0)["tensor_data"]

    def arena_bytes(self) -> int:
        """Returns the size of the smallest arena in which the file can be set up.

        TFLite Micro's own report of used bytes is too small: while it plans its memory it takes
        more, up to two fifths more in small files.
        """
        low, high = 0, self._limit // _ARENA_STEP
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(middle * _ARENA_STEP) else (middle, high)
        return high * _ARENA_STEP

    def _fits(self, arena_bytes: int) -> bool:
        # If the arena is too small, TFLite Micro may crash. So it is tried in a child process.
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            status = 1
            try:
                mode = self._runtime.InterpreterConfig.kAllocationRecording
                self._make_interpreter(arena_bytes, mode).invoke()
                status = 0
            finally:
                os._exit(status)
        return os.waitpid(child, 0)[1] == 0


def grid_of(details: Mapping[str, Any]) -> Grid:
    """Returns the grid of an input or output from the details that a runtime gives."""
    parameters = details["quantization_parameters"]
    if not len(parameters["scales"]):
        return details["dtype"], 0.0, 0
    return details["dtype"], float(parameters["scales"][0]), int(parameters["zero_points"][0])


def to_file(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Converts real values to the type of an input; quantizes them if the input is quantized."""
    dtype, scale, zero_point = grid
    if not scale or not np.issubdtype(dtype, np.integer):
        return np.ascontiguousarray(values, dtype)
    limits = np.iinfo(dtype)
    integers = np.rint(np.asarray(values, np.float32) / np.float32(scale)) + zero_point
    return np.clip(integers, limits.min, limits.max).astype(dtype)


def from_file(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Converts an output to real values; dequantizes it if it is quantized."""
    dtype, scale, zero_point = grid
    if not scale or not np.issubdtype(dtype, np.integer):
        return values
    return ((values.astype(np.int32) - zero_point) * np.float32(scale)).astype(np.float32)


def make_engine(contents: bytes, request: Mapping[str, Any]) -> Engine:
    """Loads a file into the runtime that a request names.

    Args:
        contents: Contents of a `.tflite` file.
        request: See `main`.
    """
    if request["package"] == "tflite_micro":
        return Micro(contents, request)
    interpreter, key = litert_interpreter(contents, request), request["signature"]
    if key is not None:
        return Signature(interpreter, key, request["inputs"], request["outputs"])
    return FirstSubgraph(interpreter, request["inputs"], request["outputs"])


def run(
    engine: Engine, inputs: Sequence[np.ndarray], seconds: float
) -> tuple[list[np.ndarray], list[float]]:
    """Runs inputs one by one.

    Args:
        engine: What runs the file.
        inputs: Arrays of real values, shape `[samples, ...]`.
        seconds: Time limit after which no further input is started.

    Returns:
        `(outputs, times)`: a list of arrays of real values, shape `[samples run, ...]`, and the
        seconds that each input took.
    """
    collected: list[list[np.ndarray]] = [[] for _ in engine.outputs]
    times = []
    started = time.perf_counter()
    for sample in range(len(inputs[0])):
        arrays = [to_file(a[sample : sample + 1], g) for a, g in zip(inputs, engine.inputs)]
        for _ in range(0 if sample else _WARM_UP):
            engine.set(arrays)
            engine.invoke()
        # Inputs have to be set before each run: TFLite Micro reuses their memory.
        engine.set(arrays)
        begun = time.perf_counter()
        engine.invoke()
        times.append(time.perf_counter() - begun)
        for results, values, grid in zip(collected, engine.get(), engine.outputs):
            results.append(from_file(values, grid))
        if time.perf_counter() - started > seconds:
            break
    return [np.concatenate(results) for results in collected], times


def main(folder: pathlib.Path) -> None:
    """Does what `FOLDER/request.json` asks for.

    Its keys:

    - `package`: `"ai_edge_litert"`, `"tflite_runtime"` or `"tflite_micro"`.
    - `resolver`: LiteRT's choice of kernels.
    - `signature`: Name of a signature, or None for the first subgraph.
    - `inputs`, `outputs`: With a signature, names of its inputs and outputs. For the first subgraph,
      tensor indices in LiteRT and positions in TFLite Micro.
    - `tensors`: Indices of tensors to read after the last input.
    - `seconds`: Time limit after which no further input is started.
    - `arena_limit`: More bytes than TFLite Micro's arena needs.
    """
    request = json.loads((folder / "request.json").read_text())
    contents = (folder / "model.tflite").read_bytes()
    with np.load(folder / "inputs.npz") as file:
        inputs = [file[f"arr_{i}"] for i in range(len(request["inputs"]))]
    engine = make_engine(contents, request)
    outputs, times = run(engine, inputs, request["seconds"])
    arrays: dict[str, Any] = {f"output{i}": values for i, values in enumerate(outputs)}
    for index in request["tensors"]:
        # Some tensors have no memory, such as those inside a delegate.
        with contextlib.suppress(ValueError):
            arrays[f"tensor{index}"] = np.array(engine.tensor(index))
    np.savez(folder / "outputs.npz", **arrays)
    arena_bytes = None
    if isinstance(engine, Micro) and not request["tensors"]:
        arena_bytes = engine.arena_bytes()
    result = {"latency_ms": 1000 * float(np.median(times)), "arena_bytes": arena_bytes}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    where = pathlib.Path(sys.argv[1])
    try:
        main(where)
    except Exception as failure:
        # A runtime raises RuntimeError and ValueError, whose messages say what is wrong.
        from_runtime = isinstance(failure, (RuntimeError, ValueError)) and str(failure)
        (where / "error.txt").write_text(str(failure).strip() if from_runtime else repr(failure))
        sys.exit(1)
