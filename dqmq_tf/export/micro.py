"""TFLite Micro, in a process of its own: it ends the process where a file does not suit it."""

import dataclasses
import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from dqmq_tf.export import flatbuffer
from dqmq_tf.export.errors import VerificationError

PACKAGE = "tflite-micro"
_PROGRAM = pathlib.Path(__file__).with_name("micro_process.py")
_LIMIT_SECONDS = 600


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroRun:
    """What TFLite Micro made of a file.

    Attributes:
        outputs: Arrays `[samples, ...]`, one per output, in the file's own types.
        tensors: `{tensor index: array}` of the tensors asked for, after the first sample.
    """

    outputs: list
    tensors: dict


def is_installed():
    """Whether TFLite Micro is there to run files."""
    return importlib.util.find_spec("tflite_micro") is not None


def version():
    """Version of the installed TFLite Micro."""
    return importlib.metadata.version(PACKAGE)


def require():
    """Raises `ImportError` if TFLite Micro is not installed."""
    if not is_installed():
        raise ImportError(
            "Running files in TFLite Micro needs its wheel: pip install --pre tflite-micro"
        )


def run(contents, inputs, tensors=()):
    """Runs a file in TFLite Micro's reference kernels.

    Args:
        contents: Contents of a `.tflite` file.
        inputs: Arrays `[samples, ...]` in the file's own types, one per input, in its order.
        tensors: Indices of tensors of the first subgraph to read.

    Returns:
        `MicroRun`.

    Raises:
        ImportError: If the `tflite-micro` wheel is not installed.
        VerificationError: If TFLite Micro cannot run the file; the message has what it said.
    """
    reply = _call(contents, inputs, tensors=np.array(tensors, np.int64), measure=False)
    count = sum(name.startswith("output") for name in reply)
    return MicroRun(
        outputs=[reply[f"output{i}"] for i in range(count)],
        tensors={i: reply[f"tensor{i}"] for i in tensors},
    )


def arena_bytes(contents):
    """Bytes of the smallest tensor arena in which the reference kernels run a file.

    Found by trying, in steps of 16 bytes, on this machine: its pointers are of 64 bits, so that a
    microcontroller's own structures take less; optimized kernels may take more for scratch.

    Args:
        contents: Contents of a `.tflite` file.

    Raises:
        ImportError: If the `tflite-micro` wheel is not installed.
        VerificationError: If TFLite Micro cannot run the file; the message has what it said.
    """
    inputs = random_inputs(flatbuffer.read(contents), 1)
    return int(_call(contents, inputs, tensors=np.zeros(0, np.int64), measure=True)["arena_bytes"])


def random_inputs(model, samples, seed=20):
    """Random inputs of a file with integer or float ends, as `run` takes them.

    Args:
        model: `ModelT`.
        samples: Number of inputs.
        seed: Seed of the draw.

    Returns:
        Arrays `[samples, ...]` that cover the range of each input's grid.
    """
    generator, arrays = np.random.default_rng(seed), []
    graph = model.subgraphs[0]
    for index in graph.inputs:
        tensor = graph.tensors[index]
        shape = (samples, *(int(n) for n in tensor.shape[1:]))
        if flatbuffer.type_name(tensor) == "INT8":
            arrays.append(generator.integers(-128, 128, shape).astype(np.int8))
        else:
            low, high = _range_of(model, graph, index)
            arrays.append(generator.uniform(low, high, shape).astype(np.float32))
    return arrays


def _range_of(model, graph, index):
    for operator in graph.operators:
        if index in operator.inputs and flatbuffer.operator_name(model, operator) == "QUANTIZE":
            grid = graph.tensors[operator.outputs[0]].quantization
            ends = np.array([-128, 127]) - int(grid.zeroPoint[0])
            return ends * np.float64(grid.scale[0])
    return -1.0, 1.0


def _arena_limit(model):
    """Bytes that no file needs: all tensors at once, four times."""
    graph = model.subgraphs[0]
    elements = sum(int(np.prod(t.shape)) if t.shape is not None else 1 for t in graph.tensors)
    return 2**20 + 16 * elements


def _call(contents, inputs, **request):
    """What `micro_process` replies to a request: arrays by name."""
    require()
    model = flatbuffer.read(contents)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "model.tflite").write_bytes(contents)
        np.savez(
            folder / "request.npz",
            inputs=len(inputs),
            outputs=len(model.subgraphs[0].outputs),
            arena=_arena_limit(model),
            **request,
            **{f"input{i}": np.asarray(array) for i, array in enumerate(inputs)},
        )
        _start(folder)
        with np.load(folder / "reply.npz") as reply:
            return dict(reply)


def _start(folder):
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_PROGRAM), str(folder)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise VerificationError(
            f"TFLite Micro did not finish within {_LIMIT_SECONDS} seconds."
        ) from error
    if done.returncode == 0:
        return
    # What TFLite Micro logs comes first, then Python's traceback, whose last line says something.
    logged, _, trace = done.stderr.partition("Traceback (most recent call last)")
    said = [line for line in logged.splitlines() if line.strip()][-3:] + trace.splitlines()[-1:]
    ended = f"signal {-done.returncode}" if done.returncode < 0 else "an error"
    raise VerificationError(
        f"TFLite Micro {version()} cannot run the file; it ended with {ended} and said: "
        f"{' / '.join(said) or 'nothing'}"
    )
