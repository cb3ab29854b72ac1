"""LiteRT, the runtime that the files are made for and checked on."""

import time
import warnings

import numpy as np


def interpreter(data, delegates=True, all_tensors=False, threads=1):
    """An allocated LiteRT interpreter.

    Args:
        data: Contents of a `.tflite` file.
        delegates: Let XNNPACK take what it can, as an app would.
        all_tensors: Keep every tensor readable after a run; needs `delegates=False`.
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
    resolvers = litert.OpResolverType
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Reading all tensors is what is wanted.
        result = litert.Interpreter(
            model_content=bytes(data),
            num_threads=threads,
            experimental_op_resolver_type=(
                resolvers.AUTO if delegates else resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
            experimental_preserve_all_tensors=all_tensors,
        )
    result.allocate_tensors()
    return result


def version():
    """Version of the installed LiteRT."""
    import importlib.metadata

    return importlib.metadata.version("ai-edge-litert")


def run(runner, inputs):
    """Runs one batch, example by example.

    Args:
        runner: What `interpreter` returned.
        inputs: Float arrays, one per model input, each with a batch dimension.

    Returns:
        List of float arrays, one per model output; integer outputs are dequantized.
    """
    entries, exits = runner.get_input_details(), runner.get_output_details()
    collected = [[] for _ in exits]
    for i in range(len(inputs[0])):
        for entry, array in zip(entries, inputs):
            runner.set_tensor(entry["index"], _to_file(entry, array[i : i + 1]))
        runner.invoke()
        for results, leave in zip(collected, exits):
            results.append(dequantized(leave, runner.get_tensor(leave["index"])))
    return [np.concatenate(results) for results in collected]


def dequantized(details, values):
    """Real values of a tensor that was read from an interpreter."""
    scale, zero_point = details["quantization"]
    if not np.issubdtype(values.dtype, np.integer) or not scale:
        return values
    return ((values.astype(np.int32) - zero_point) * np.float32(scale)).astype(np.float32)


def _to_file(details, values):
    values = np.asarray(values, np.float32)
    scale, zero_point = details["quantization"]
    if not np.issubdtype(details["dtype"], np.integer):
        return values
    limits = np.iinfo(details["dtype"])
    integers = np.rint(values / np.float32(scale)) + zero_point
    return np.clip(integers, limits.min, limits.max).astype(details["dtype"])


class Signature:
    """One signature of an interpreter, with inputs and outputs in the order of the file.

    Args:
        runner: What `interpreter` returned.
        key: Name of the signature.
        definition: Its `SignatureDefT`.
    """

    def __init__(self, runner, key, definition):
        self._run = runner.get_signature_runner(key)
        self._entries = [_name(entry) for entry in definition.inputs]
        self._exits = [_name(entry) for entry in definition.outputs]

    def __call__(self, one):
        """Runs arrays with a batch of one; returns outputs, integers of a grid dequantized."""
        entries, exits = self._run.get_input_details(), self._run.get_output_details()
        for name, array in zip(self._entries, one):
            wanted = tuple(int(n) for n in entries[name]["shape"])
            if array.shape != wanted:
                raise ValueError(
                    f"Input {name!r} takes {wanted[1:]}, but the data have {array.shape[1:]}."
                )
        results = self._run(
            **{n: _to_file(entries[n], array) for n, array in zip(self._entries, one)}
        )
        return [dequantized(exits[name], results[name]) for name in self._exits]


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
    run = Signature(runner, _text(definition.signatureKey), definition)
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


def _text(name):
    return name.decode() if isinstance(name, bytes) else name


def _name(entry):
    return _text(entry.name)
