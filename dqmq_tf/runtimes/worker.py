"""Runs one file on one runtime, in a process of its own, for `dqmq_tf.runtimes.process`.

    python worker.py FOLDER

`FOLDER` holds `model.tflite`, `inputs.npz` and `request.json`; `outputs.npz` and `result.json` are
written to it. This file is started by its path and imports nothing but NumPy and the runtime, so
that it starts in a tenth of a second and runs under the Python of another environment too.
"""

import contextlib
import json
import os
import pathlib
import sys
import time

if __name__ == "__main__":
    # Started by its path, Python looks beside this file first: its neighbours are no packages.
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path = [entry for entry in sys.path if entry != _HERE]

import numpy as np  # noqa: E402

_WARM_UP = 3
_ARENA_STEP = 16


def litert_interpreter(contents, request):
    """An allocated interpreter of LiteRT, or of its predecessor `tflite-runtime`.

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
    """The first subgraph of a file in LiteRT, whose inputs and outputs go by their tensors.

    Args:
        interpreter: An allocated interpreter.
        inputs: Tensor indices of the inputs.
        outputs: Tensor indices of the outputs.
    """

    def __init__(self, interpreter, inputs, outputs):
        self._interpreter = interpreter
        self._input_indices, self._output_indices = inputs, outputs
        self.inputs = self._grids(interpreter.get_input_details(), inputs)
        self.outputs = self._grids(interpreter.get_output_details(), outputs)

    @staticmethod
    def _grids(details, indices):
        by_index = {entry["index"]: entry for entry in details}
        return [grid_of(by_index[index]) for index in indices]

    def set(self, arrays):
        for index, array in zip(self._input_indices, arrays):
            self._interpreter.set_tensor(index, array)

    def invoke(self):
        self._interpreter.invoke()

    def get(self):
        return [self._interpreter.get_tensor(index) for index in self._output_indices]

    def tensor(self, index):
        return self._interpreter.get_tensor(index)


class Signature:
    """A signature of a file in LiteRT, which runs any subgraph by the signature's name.

    Args:
        interpreter: An allocated interpreter.
        key: Name of the signature.
        inputs: Names of the inputs, in the order in which they are passed.
        outputs: Names of the outputs, in the order in which they are returned.
    """

    def __init__(self, interpreter, key, inputs, outputs):
        self._interpreter = interpreter
        self._run = interpreter.get_signature_runner(key)
        self._input_names, self._output_names = inputs, outputs
        details = self._run.get_input_details()
        self.shapes = [tuple(int(n) for n in details[name]["shape"]) for name in inputs]
        self.inputs = [grid_of(details[name]) for name in inputs]
        details = self._run.get_output_details()
        self.outputs = [grid_of(details[name]) for name in outputs]

    def set(self, arrays):
        self._arguments = dict(zip(self._input_names, arrays))

    def invoke(self):
        self._results = self._run(**self._arguments)

    def get(self):
        return [self._results[name] for name in self._output_names]

    def tensor(self, index):
        return self._interpreter.get_tensor(index)

    def __call__(self, arrays):
        """Runs arrays of real values with a batch of one, and returns outputs of real values.

        Raises:
            ValueError: If an array does not have the shape of its input.
        """
        for name, shape, array in zip(self._input_names, self.shapes, arrays):
            if array.shape != shape:
                raise ValueError(
                    f"Input {name!r} takes {shape[1:]}, but the data have {array.shape[1:]}."
                )
        self.set([to_file(array, grid) for array, grid in zip(arrays, self.inputs)])
        self.invoke()
        return [from_file(values, grid) for values, grid in zip(self.get(), self.outputs)]


class Micro:
    """TFLite Micro: the first subgraph, by position.

    Args:
        contents: Contents of a `.tflite` file.
        request: See `main`.
    """

    def __init__(self, contents, request):
        from tflite_micro.python.tflite_micro import runtime

        modes = runtime.InterpreterConfig
        keep = modes.kPreserveAllTensors if request["tensors"] else modes.kAllocationRecording
        self._contents, self._runtime, self._limit = contents, runtime, request["arena_limit"]
        self._interpreter = self._made(self._limit, keep)
        self._entries, self._exits = request["inputs"], request["outputs"]
        self.inputs = [grid_of(self._interpreter.get_input_details(i)) for i in self._entries]
        self.outputs = [grid_of(self._interpreter.get_output_details(i)) for i in self._exits]

    def _made(self, arena, mode):
        return self._runtime.Interpreter.from_bytes(
            self._contents, arena_size=arena, intrepreter_config=mode
        )

    def set(self, arrays):
        for position, array in zip(self._entries, arrays):
            self._interpreter.set_input(array, position)

    def invoke(self):
        self._interpreter.invoke()

    def get(self):
        # A copy: the array that comes back is the arena itself.
        return [self._interpreter.get_output(position).copy() for position in self._exits]

    def tensor(self, index):
        return self._interpreter.GetTensor(index, 0)["tensor_data"]

    def arena_bytes(self):
        """Size of the smallest arena in which the file can be set up.

        What TFLite Micro itself reports as used is no such size: while it plans its memory it
        takes more, up to two fifths in small files.
        """
        low, high = 0, self._limit // _ARENA_STEP
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(middle * _ARENA_STEP) else (middle, high)
        return high * _ARENA_STEP

    def _fits(self, arena):
        # In too small an arena TFLite Micro does not always fail, it may crash.
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            status = 1
            try:
                self._made(arena, self._runtime.InterpreterConfig.kAllocationRecording).invoke()
                status = 0
            finally:
                os._exit(status)
        return os.waitpid(child, 0)[1] == 0


def grid_of(details):
    """`(dtype, scale, zero point)` of an input or output; the scale is 0 where it has no grid."""
    parameters = details["quantization_parameters"]
    if not len(parameters["scales"]):
        return details["dtype"], 0.0, 0
    return details["dtype"], float(parameters["scales"][0]), int(parameters["zero_points"][0])


def to_file(values, grid):
    """Real values in the type of an input: put on its grid where it has one."""
    dtype, scale, zero_point = grid
    if not scale or not np.issubdtype(dtype, np.integer):
        return np.ascontiguousarray(values, dtype)
    limits = np.iinfo(dtype)
    integers = np.rint(np.asarray(values, np.float32) / np.float32(scale)) + zero_point
    return np.clip(integers, limits.min, limits.max).astype(dtype)


def from_file(values, grid):
    """Real values of what an output holds."""
    dtype, scale, zero_point = grid
    if not scale or not np.issubdtype(dtype, np.integer):
        return values
    return ((values.astype(np.int32) - zero_point) * np.float32(scale)).astype(np.float32)


def make_engine(contents, request):
    """What runs the file: a `Micro`, a `Signature` or a `FirstSubgraph`.

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


def run(engine, inputs, seconds):
    """Runs inputs one by one.

    Args:
        engine: What `make_engine` returned.
        inputs: Arrays `[samples, ...]`, real values.
        seconds: After so many no further input is begun.

    Returns:
        `(outputs, times)`: a list of arrays `[samples run, ...]`, real values, and the seconds
        that each input took.
    """
    collected, times = [[] for _ in engine.outputs], []
    started = time.perf_counter()
    for sample in range(len(inputs[0])):
        values = [to_file(a[sample : sample + 1], g) for a, g in zip(inputs, engine.inputs)]
        for _ in range(0 if sample else _WARM_UP):
            engine.set(values)
            engine.invoke()
        # Each time anew: TFLite Micro puts other tensors where its inputs were.
        engine.set(values)
        begun = time.perf_counter()
        engine.invoke()
        times.append(time.perf_counter() - begun)
        for results, values, grid in zip(collected, engine.get(), engine.outputs):
            results.append(from_file(values, grid))
        if time.perf_counter() - started > seconds:
            break
    return [np.concatenate(results) for results in collected], times


def main(folder):
    """Does what `FOLDER/request.json` asks for.

    Its keys: `package` (`"ai_edge_litert"`, `"tflite_runtime"` or `"tflite_micro"`), `resolver` (of
    LiteRT), `signature` (None for the first subgraph), `inputs` and `outputs` (names of the
    signature, tensor indices of the first subgraph for LiteRT, positions for TFLite Micro),
    `tensors` (indices of tensors to read after the last input), `seconds`, `arena_limit`.
    """
    request = json.loads((folder / "request.json").read_text())
    contents = (folder / "model.tflite").read_bytes()
    with np.load(folder / "inputs.npz") as file:
        inputs = [file[f"arr_{i}"] for i in range(len(request["inputs"]))]
    engine = make_engine(contents, request)
    outputs, times = run(engine, inputs, request["seconds"])
    arrays = {f"output{i}": values for i, values in enumerate(outputs)}
    for index in request["tensors"]:
        # Some tensors have no memory of their own, such as those that a delegate took.
        with contextlib.suppress(ValueError):
            arrays[f"tensor{index}"] = np.array(engine.tensor(index))
    np.savez(folder / "outputs.npz", **arrays)
    result = {"latency_ms": 1000 * float(np.median(times)), "arena_bytes": None}
    if isinstance(engine, Micro) and not request["tensors"]:
        result["arena_bytes"] = engine.arena_bytes()
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    where = pathlib.Path(sys.argv[1])
    try:
        main(where)
    except Exception as failure:
        # Those two are the runtime's own, and say what is wrong.
        plain = isinstance(failure, (RuntimeError, ValueError)) and str(failure)
        (where / "error.txt").write_text(str(failure).strip() if plain else repr(failure))
        sys.exit(1)
