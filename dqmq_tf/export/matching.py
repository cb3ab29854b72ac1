"""What the parts of a converted float file are: operators, weights and tensors of the skeleton.

Tensors are told by their markers, weights by their content, and an operator by the first marked
tensor that it leads to. Nothing here goes by names, which do not survive the converter.
"""

import dataclasses

import numpy as np

from dqmq_tf.export import flatbuffer, folding, markers
from dqmq_tf.export.errors import ConversionError
from dqmq_tf.export.folding import FoldedWeights

_SEED = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """The correspondence between a float file and its skeleton.

    Attributes:
        tensors: `{tensor index: key}` of the tensors that were marked; their grid is that of the key.
        weights: `{operator index: FoldedWeights}` of the integer kernels with weights.
        stored: `{tensor index: StoredWeights}` of constants that kernels in floating point read.
        floating: Indices of the operators that stay in floating point.
        sites: `{operator index: layer that it is part of}`; a reshaped input is of none.
    """

    tensors: dict
    weights: dict
    stored: dict
    floating: frozenset
    sites: dict


def match(model, skeleton):
    """Finds the tensors and weights of a skeleton in its converted file.

    Args:
        model: `ModelT` of the float file; its markers are taken out.
        skeleton: `Skeleton` that it was converted from.

    Returns:
        `Match`.

    Raises:
        ConversionError: If quantized weights are not in the file, or equal tensors have different
            grids.
    """
    tensors = {
        index: _one_key([skeleton.marked[number] for number in numbers], skeleton)
        for index, numbers in markers.take_out(model).items()
    }
    graph = model.subgraphs[0]
    destinations = _destinations(graph, tensors)
    # The converter reshapes an input before its marker: that is as good in integers.
    floats = skeleton.floating - {key for key in skeleton.inputs if key in skeleton.quantization}
    floating = frozenset(
        index
        for index in range(len(graph.operators))
        if destinations.get(index) is None or destinations[index] in floats
    )
    folded = [w for w in skeleton.weights if isinstance(w, FoldedWeights)]
    weights = _match_weights(model, graph, folded, floating)
    others = [w for w in skeleton.weights if not isinstance(w, FoldedWeights)]
    return Match(
        tensors=tensors,
        weights=weights,
        stored=_match_stored(model, graph, others, floating),
        floating=floating,
        sites={index: skeleton.sites[key] for index, key in destinations.items()},
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
        found, tensor = skeleton.quantization.get(key), skeleton.tensors[key]
        shape = tensor.shape[1:]
        if key in skeleton.vocabulary:
            ids = generator.integers(0, skeleton.vocabulary[key], (count, *shape))
            arrays.append(ids.astype(tensor.dtype))
            continue
        low, high = -1.0, 1.0
        if found is not None:
            low = -found.step * found.zero_point
            high = low + found.step * (2**found.bit_width - 1)
        arrays.append(generator.uniform(low, high, (count, *shape)).astype(np.float32))
    return arrays


def _one_key(keys, skeleton):
    """The key of a tensor behind which the converter found several equal ones."""
    grids = {skeleton.quantization[key] for key in keys if key in skeleton.quantization}
    if len(grids) > 1:
        raise ConversionError(
            f"Tensors {', '.join(keys)} of the model are one tensor of the file, but were trained "
            "with different quantization. Remove the layer between them, which changes nothing."
        )
    return next((key for key in keys if key in skeleton.quantization), keys[0])


def _destinations(graph, tensors):
    """`{operator index: key of the first marked tensor that it leads to}`."""
    found, after = {}, {index: key for index, key in tensors.items()}
    for index in reversed(range(len(graph.operators))):
        operator = graph.operators[index]
        keys = [after[int(i)] for i in operator.outputs if int(i) in after]
        if not keys:
            continue
        found[index] = keys[0]
        for i in operator.inputs:
            after.setdefault(int(i), keys[0])
    return found


def _match_weights(model, graph, expected, floating):
    remaining, found = list(expected), {}
    for index, operator in enumerate(graph.operators):
        name = flatbuffer.operator_name(model, operator)
        if name not in folding.OPERANDS or index in floating:
            continue
        tensor = graph.tensors[operator.inputs[folding.OPERANDS[name][0]]]
        if not flatbuffer.is_constant(model, tensor):
            continue
        values = flatbuffer.constant(model, tensor)
        # A shared layer makes several operators with the same weights.
        candidates = [w for w in (*remaining, *found.values()) if _same_content(w, values)]
        if candidates:
            found[index] = candidates[0]
            if candidates[0] in remaining:
                remaining.remove(candidates[0])
    _check_found(remaining)
    return found


def _match_stored(model, graph, expected, floating):
    read = {int(i) for index in floating for i in graph.operators[index].inputs if int(i) >= 0}
    constants = {
        i: flatbuffer.constant(model, graph.tensors[i])
        for i in sorted(read)
        if flatbuffer.type_name(graph.tensors[i]) == "FLOAT32"
        and flatbuffer.is_constant(model, graph.tensors[i])
    }
    found = {}
    for weights in expected:
        for index, values in constants.items():
            if index not in found and weights.layout_of(values):
                found[index] = weights
    _check_found([weights for weights in expected if weights not in found.values()])
    return found


def _check_found(missing):
    if missing:
        sites = ", ".join(repr(weights.site) for weights in missing)
        raise ConversionError(
            f"The weights of {sites} are not in the converted file: the converter rewrote the "
            "layer. Leave it in floating point by dqmq_tf.LayerRule(pattern=..., quantize=False)."
        )


def _same_content(weights, values):
    expected = weights.values
    return expected.size == values.size and np.array_equal(expected.ravel(), values.ravel())


def activation_tensors(model, graph):
    """Indices of float tensors that operators make or that enter the graph, in order."""
    indices = [*graph.inputs]
    for operator in graph.operators:
        indices.extend(operator.outputs)
    return [
        i for i in dict.fromkeys(indices) if flatbuffer.type_name(graph.tensors[i]) == "FLOAT32"
    ]
