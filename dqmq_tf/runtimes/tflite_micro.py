"""TFLite Micro on this machine: whether it is installed, running a file, its tensor arena."""

from collections.abc import Sequence

import numpy as np

from dqmq_tf.flatbuffer import TFLiteFile
from dqmq_tf.runtimes import process, registry
from dqmq_tf.runtimes.random_inputs import random_inputs_of

PACKAGE = "tflite-micro"


def is_installed() -> bool:
    """Returns whether TFLite Micro is installed."""
    return registry.get(PACKAGE).missing() is None


def version() -> str:
    """Returns the version of the installed TFLite Micro."""
    return registry.installed_version(PACKAGE)


def require() -> None:
    """Checks that TFLite Micro is installed.

    Raises:
        ImportError: If it is not.
    """
    if not is_installed():
        raise ImportError(
            "Running files in TFLite Micro needs its wheel: pip install --pre tflite-micro"
        )


def run(
    contents: bytes | TFLiteFile, inputs: Sequence[np.ndarray], tensors: Sequence[int] = ()
) -> process.Run:
    """Runs a file in the reference kernels of TFLite Micro.

    Args:
        contents: Contents of a `.tflite` file, or a `TFLiteFile`.
        inputs: Arrays of real values, one per input in the file's order, shape `[samples, ...]`.
        tensors: Indices of tensors of the first subgraph to read after the last input. The arena
            is then not measured.

    Returns:
        A `runtimes.Run`.

    Raises:
        ImportError: If the `tflite-micro` wheel is not installed.
        VerificationError: If TFLite Micro cannot run the file; the message says why.
    """
    require()
    return process.run(contents, inputs, runtime=PACKAGE, tensors=tensors)


def arena_bytes(contents: bytes | TFLiteFile) -> int:
    """Returns the size of the smallest tensor arena in which the reference kernels run a file.

    It is found by trying, in steps of 16 bytes, on this machine. Pointers have 64 bits here, so a
    microcontroller's own structures are smaller. Optimized kernels may need more scratch memory.

    Args:
        contents: Contents of a `.tflite` file, or a `TFLiteFile`.

    Raises:
        ImportError: If the `tflite-micro` wheel is not installed.
        VerificationError: If TFLite Micro cannot run the file; the message says why.
    """
    file = TFLiteFile.of(contents)
    measured = run(file, random_inputs_of(file, 1)).arena_bytes
    assert measured is not None, "TFLite Micro measures the arena of every run without tensors"
    return measured
