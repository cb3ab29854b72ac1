"""LiteRT in this process, for adaptive files and timing.

It trusts its file: one that was not made by this package goes through `runtimes`.
"""

import time

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.runtimes.worker import Signature


def interpreter(data, threads=1):
    """An allocated LiteRT interpreter; XNNPACK takes what it can, as in an app.

    Args:
        data: Contents of a `.tflite` file.
        threads: CPU threads.

    Returns:
        `ai_edge_litert.interpreter.Interpreter`.

    Raises:
        ImportError: If `ai-edge-litert` is not installed.
    """
    litert = flatbuffer.litert_module("interpreter")
    result = litert.Interpreter(model_content=bytes(data), num_threads=threads)
    result.allocate_tensors()
    return result


def signature_of(runner, definition):
    """A signature of an interpreter, with inputs and outputs in the order of the file.

    Args:
        runner: What `interpreter` returned.
        definition: Its `SignatureDefT`.

    Returns:
        `worker.Signature`.
    """
    inputs, outputs = (
        [flatbuffer.text(entry.name) for entry in entries]
        for entries in (definition.inputs, definition.outputs)
    )
    return Signature(runner, flatbuffer.text(definition.signatureKey), inputs, outputs)


def signature_outputs(file, inputs):
    """Runs the first signature of a file on a batch.

    Args:
        file: A `TFLiteFile`.
        inputs: Arrays with a batch dimension, in the order of the signature.

    Returns:
        List of arrays, in the order of the signature.
    """
    run = signature_of(interpreter(file.contents), file.signature)
    rows = [run([array[i : i + 1] for array in inputs]) for i in range(len(inputs[0]))]
    return [np.concatenate(parts) for parts in zip(*rows)]


def median_milliseconds(runner, runs):
    """Median time of an inference on inputs of zeros, after a tenth as many to warm up."""
    times = []
    for entry in runner.get_input_details():
        runner.set_tensor(entry["index"], np.zeros(entry["shape"], entry["dtype"]))
    for _ in range(runs + runs // 10):
        started = time.perf_counter()
        runner.invoke()
        times.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times[runs // 10 :]))
