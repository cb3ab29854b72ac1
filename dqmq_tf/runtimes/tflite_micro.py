"""TFLite Micro on this machine: whether it is there, probes for a file, and its tensor arena."""

import importlib.metadata

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.runtimes import process, registry

PACKAGE = "tflite-micro"


def is_installed():
    """Whether TFLite Micro is there to run files."""
    return registry.get(PACKAGE).missing() is None


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
    """Runs a file in TFLite Micro's reference kernels; see `runtimes.run`.

    Args:
        contents: Contents of a `.tflite` file.
        inputs: Arrays `[samples, ...]` of real values, one per input, in the file's order.
        tensors: Indices of tensors of the first subgraph to read after the last input; the arena
            is not measured then.

    Returns:
        `runtimes.Run`.

    Raises:
        ImportError: If the `tflite-micro` wheel is not installed.
        VerificationError: If TFLite Micro cannot run the file; the message has what it said.
    """
    require()
    return process.run(contents, inputs, runtime=PACKAGE, tensors=tensors)


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
    return run(contents, random_inputs(flatbuffer.read(contents), 1)).arena_bytes


def random_inputs(model, samples, seed=20):
    """Random inputs that cover the range of each input's grid.

    Args:
        model: `ModelT`.
        samples: Number of inputs.
        seed: Seed of the draw.

    Returns:
        float32 arrays `[samples, ...]`, as `run` takes them; where an input has no grid, they go
        from -1 to 1.
    """
    generator, arrays = np.random.default_rng(seed), []
    graph = model.subgraphs[0]
    for index in graph.inputs:
        shape = (samples, *(int(n) for n in graph.tensors[index].shape[1:]))
        low, high = _range_of(model, graph, index)
        arrays.append(generator.uniform(low, high, shape).astype(np.float32))
    return arrays


def _range_of(model, graph, index):
    """Ends of the grid of an input, or of the one that it is put on first."""
    for operator in graph.operators:
        if index in operator.inputs and flatbuffer.operator_name(model, operator) == "QUANTIZE":
            index = operator.outputs[0]
    grid = graph.tensors[index].quantization
    if grid is None or grid.scale is None or not len(grid.scale):
        return -1.0, 1.0
    return (np.array([-128, 127]) - int(grid.zeroPoint[0])) * np.float64(grid.scale[0])
