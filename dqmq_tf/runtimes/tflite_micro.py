"""TFLite Micro on this machine: whether it is there, probes for a file, and its tensor arena."""

import importlib.metadata

from dqmq_tf.flatbuffer import TFLiteFile
from dqmq_tf.runtimes import process, registry
from dqmq_tf.runtimes.random_inputs import random_inputs_of

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
        contents: Contents of a `.tflite` file, or a `TFLiteFile`.
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
        contents: Contents of a `.tflite` file, or a `TFLiteFile`.

    Raises:
        ImportError: If the `tflite-micro` wheel is not installed.
        VerificationError: If TFLite Micro cannot run the file; the message has what it said.
    """
    file = TFLiteFile.of(contents)
    return run(file, random_inputs_of(file, 1)).arena_bytes
