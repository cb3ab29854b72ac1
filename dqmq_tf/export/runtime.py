"""LiteRT, the runtime that the files are made for and checked on."""

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
