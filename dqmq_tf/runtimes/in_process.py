"""LiteRT in this process, for adaptive files and timing.

It trusts its file: one that was not made by this package goes through `runtimes`.
"""

import time

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.runtimes.worker import from_file, grid_of, to_file


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
    try:
        from ai_edge_litert import interpreter as litert
    except ImportError as error:
        raise ImportError(
            "Running .tflite files needs ai-edge-litert: pip install ai-edge-litert"
        ) from error
    result = litert.Interpreter(model_content=bytes(data), num_threads=threads)
    result.allocate_tensors()
    return result


class Signature:
    """One signature of an interpreter, with inputs and outputs in the order of the file.

    Args:
        runner: What `interpreter` returned.
        key: Name of the signature.
        definition: Its `SignatureDefT`.
    """

    def __init__(self, runner, key, definition):
        self._run = runner.get_signature_runner(key)
        entries, exits = self._run.get_input_details(), self._run.get_output_details()
        names = [flatbuffer.text(entry.name) for entry in definition.inputs]
        self._entries = [(name, _shape(entries[name]), grid_of(entries[name])) for name in names]
        names = [flatbuffer.text(entry.name) for entry in definition.outputs]
        self._exits = [(name, grid_of(exits[name])) for name in names]

    def __call__(self, one):
        """Runs arrays with a batch of one; returns outputs, integers of a grid dequantized."""
        arguments = {}
        for (name, shape, grid), array in zip(self._entries, one):
            if array.shape != shape:
                raise ValueError(
                    f"Input {name!r} takes {shape[1:]}, but the data have {array.shape[1:]}."
                )
            arguments[name] = to_file(array, grid)
        results = self._run(**arguments)
        return [from_file(results[name], grid) for name, grid in self._exits]


def signature_outputs(runner, model, inputs):
    """Runs a file of one signature on a batch.

    Args:
        runner: What `interpreter` returned.
        model: `ModelT` of the file.
        inputs: Arrays with a batch dimension, in the order of the signature.

    Returns:
        List of arrays, in the order of the signature.
    """
    (definition,) = model.signatureDefs
    run = Signature(runner, flatbuffer.text(definition.signatureKey), definition)
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


def _shape(details):
    return tuple(int(n) for n in details["shape"])
