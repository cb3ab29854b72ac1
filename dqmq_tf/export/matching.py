"""Which tensor of a converted file is which tensor of the skeleton.

Names do not survive the converter, so nothing here goes by names: weights are recognised by their
content, activations by their values on a probe input.
"""

import dataclasses

import numpy as np

from dqmq_tf.export import flatbuffer, runtimes
from dqmq_tf.export.errors import ConversionError

_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_RELATIVE_TOLERANCE = 1e-4
_SEED = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """The correspondence between a float file and its skeleton.

    Attributes:
        weights: `{operator index: FoldedWeights}`; operators that stay in floating point lack.
        tensors: `{tensor index: tuple of keys}`: keys whose values are those of the tensor.
    """

    weights: dict
    tensors: dict


def match(model, data, skeleton):
    """Finds weights and activations of a skeleton in its converted file.

    Args:
        model: `ModelT` of the float file.
        data: Contents of the float file.
        skeleton: `Skeleton` that it was converted from.

    Returns:
        `Match`.

    Raises:
        ConversionError: If quantized weights are not in the file, or not once.
    """
    graph = model.subgraphs[0]
    return Match(
        weights=_match_weights(model, graph, skeleton.weights),
        tensors=_match_tensors(model, graph, data, skeleton),
    )


def probe_inputs(skeleton, count=1, seed=_SEED):
    """Random inputs that cover the ranges that the inputs are quantized for.

    Args:
        skeleton: `Skeleton`.
        count: Batch size.
        seed: Seed of the draw.

    Returns:
        List of float32 arrays.
    """
    generator, arrays = np.random.default_rng(seed), []
    for key in skeleton.inputs:
        found, shape = skeleton.quantization.get(key), skeleton.tensors[key].shape[1:]
        low, high = -1.0, 1.0
        if found is not None:
            low = -found.step * found.zero_point
            high = low + found.step * (2**found.bit_width - 1)
        arrays.append(generator.uniform(low, high, (count, *shape)).astype(np.float32))
    return arrays


def _match_weights(model, graph, expected):
    remaining, found = list(expected), {}
    for index, operator in enumerate(graph.operators):
        if flatbuffer.operator_name(model, operator) not in _WEIGHTED:
            continue
        tensor = graph.tensors[operator.inputs[1]]
        if not flatbuffer.is_constant(model, tensor):
            continue
        values = flatbuffer.constant(model, tensor)
        candidates = [w for w in remaining if _same_content(w, values)]
        # A shared layer makes several operators with the same weights.
        candidates += [w for w in found.values() if _same_content(w, values)]
        if candidates:
            found[index] = candidates[0]
            if candidates[0] in remaining:
                remaining.remove(candidates[0])
    if remaining:
        sites = ", ".join(repr(weights.site) for weights in remaining)
        raise ConversionError(
            f"The weights of {sites} are not in the converted file: the converter rewrote the "
            "layer. Please report the model."
        )
    return found


def _same_content(weights, values):
    expected = weights.values
    return expected.size == values.size and np.array_equal(expected.ravel(), values.ravel())


def _match_tensors(model, graph, data, skeleton):
    inputs = probe_inputs(skeleton)
    expected = skeleton.values(inputs)
    indices = activation_tensors(model, graph)
    ordered = [inputs[position] for position in input_order(model, skeleton)]
    read = runtimes.run(data, ordered, runtime="litert-builtin", tensors=indices).tensors
    found = {}
    for index in indices:
        values = read[index]
        found[index] = tuple(key for key, other in expected.items() if _close(values, other))
    return found


def _close(values, expected):
    # The converter adds and drops axes of length one.
    values, expected = np.squeeze(values), np.squeeze(expected)
    if values.shape != expected.shape:
        return False
    bound = _RELATIVE_TOLERANCE * max(np.abs(expected).max(initial=0), 1e-6)
    return bool(np.abs(values - expected).max(initial=0) <= bound)


def activation_tensors(model, graph):
    """Indices of float tensors that operators make or that enter the graph, in order."""
    indices = [*graph.inputs]
    for operator in graph.operators:
        indices.extend(operator.outputs)
    return [
        i for i in dict.fromkeys(indices) if flatbuffer.type_name(graph.tensors[i]) == "FLOAT32"
    ]


def input_order(model, skeleton):
    """Position of the skeleton's input behind each input of the file's first subgraph."""
    names = {
        entry.tensorIndex: flatbuffer.text(entry.name)
        for definition in model.signatureDefs or ()
        for entry in definition.inputs
    }
    tensors = list(model.subgraphs[0].inputs)
    if len(tensors) == 1:
        return [0]
    # Keras names the arguments of an exported model in the order of its inputs.
    ranked = sorted(tensors, key=lambda index: (len(names[index]), names[index]))
    return [ranked.index(index) for index in tensors]
