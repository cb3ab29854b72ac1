"""LiteRT in this process, for adaptive files and for timing.

LiteRT trusts its file: a damaged one may crash the process. Only files that this package made run
here. All others run in a process of their own, by `runtimes.run`.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.flatbuffer import SignatureDefT, TFLiteFile
from dqmq_tf.runtimes.worker import Signature


def interpreter(contents: bytes, threads: int = 1) -> Any:
    """Returns an allocated LiteRT interpreter. XNNPACK runs what it supports, as in an app.

    Args:
        contents: Contents of a `.tflite` file.
        threads: Number of CPU threads.

    Returns:
        An `ai_edge_litert.interpreter.Interpreter`.

    Raises:
        ImportError: If `ai-edge-litert` is not installed.
    """
    litert = flatbuffer.litert_module("interpreter")
    result = litert.Interpreter(model_content=contents, num_threads=threads)
    result.allocate_tensors()
    return result


def signature_of(interpreter: Any, definition: SignatureDefT) -> Signature:
    """Returns a signature, with inputs and outputs in the order of the file.

    Args:
        interpreter: An allocated LiteRT interpreter.
        definition: The `SignatureDefT` of the signature.
    """
    inputs, outputs = (
        [flatbuffer.text(entry.name) for entry in entries]
        for entries in (definition.inputs, definition.outputs)
    )
    return Signature(interpreter, flatbuffer.text(definition.signatureKey), inputs, outputs)


def signature_outputs(file: TFLiteFile, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Runs the first signature of a file on a batch.

    Args:
        file: A file that takes a batch of one.
        inputs: Arrays of shape `[N, ...]`, in the order of the signature.

    Returns:
        A list of arrays of shape `[N, ...]`, in the order of the signature.
    """
    signature = signature_of(interpreter(file.contents), file.signature)
    rows = [signature([array[i : i + 1] for array in inputs]) for i in range(len(inputs[0]))]
    return [np.concatenate(parts) for parts in zip(*rows)]


def median_milliseconds(interpreter: Any, runs: int) -> float:
    """Returns the median time of an inference on inputs of zeros.

    Args:
        interpreter: An allocated LiteRT interpreter.
        runs: Number of timed runs. A tenth as many runs warm up before.
    """
    times = []
    for entry in interpreter.get_input_details():
        interpreter.set_tensor(entry["index"], np.zeros(entry["shape"], entry["dtype"]))
    for _ in range(runs + runs // 10):
        started = time.perf_counter()
        interpreter.invoke()
        times.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times[runs // 10 :]))
