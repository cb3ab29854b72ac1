"""Finds which operator, constant and tensor of a converted file belongs to which layer.

Tensors are identified by their markers, weights by their content, and an operator by the first
marked tensor downstream of it. Names are not used, because they do not survive the converter.
"""

import dataclasses
from typing import Any

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import ModelT
from dqmq_tf.flatbuffer.serialization import SubGraphT
from dqmq_tf.lowering import folding, tensor_markers
from dqmq_tf.lowering.folding import FoldedWeights
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.lowering.stored_weights import StoredWeights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """The correspondence between a float file and its lowered model.

    Attributes:
        tensors: `{tensor index: key}` of the marked tensors; their grid is that of the key.
        weights: `{operator index: FoldedWeights}` of the integer kernels with weights.
        stored: `{tensor index: StoredWeights}` of constants that kernels in floating point read.
        floating: Indices of the operators that stay in floating point.
        paths: `{operator index: layer that it is part of}`; a reshaped input is of none.
    """

    tensors: dict
    weights: dict
    stored: dict
    floating: frozenset
    paths: dict


def match_tensors(model: ModelT, lowered: LoweredModel) -> Match:
    """Finds the tensors and weights of a lowered model in its converted file.

    Args:
        model: `ModelT` of the float file; its markers are removed.
        lowered: `LoweredModel` that it was converted from.

    Returns:
        `Match`.

    Raises:
        ConversionError: If quantized weights are not in the file, or equal tensors have different
            grids.
    """
    tensors = {
        index: _one_key([lowered.marked[number] for number in numbers], lowered)
        for index, numbers in tensor_markers.remove_markers(model).items()
    }
    graph = model.subgraphs[0]
    destinations = _destinations(graph, tensors)
    # The converter reshapes an input before its marker: that is as good in integers.
    floats = lowered.floating - {key for key in lowered.inputs if key in lowered.quantization}
    floating = frozenset(
        index
        for index in range(len(graph.operators))
        if destinations.get(index) is None or destinations[index] in floats
    )
    folded = [w for w in lowered.weights if isinstance(w, FoldedWeights)]
    weights = _match_weights(model, graph, folded, floating)
    others = [w for w in lowered.weights if not isinstance(w, FoldedWeights)]
    return Match(
        tensors=tensors,
        weights=weights,
        stored=_match_stored(model, graph, others, floating),
        floating=floating,
        paths={index: lowered.paths[key] for index, key in destinations.items()},
    )


def _one_key(keys: list[str], lowered: LoweredModel) -> str:
    """The key of a tensor behind which the converter found several equal ones."""
    grids = {lowered.quantization[key] for key in keys if key in lowered.quantization}
    if len(grids) > 1:
        raise ConversionError(
            f"Tensors {', '.join(keys)} of the model are one tensor of the file, but were trained "
            "with different quantization. Remove the layer between them, which changes nothing."
        )
    return next((key for key in keys if key in lowered.quantization), keys[0])


def _destinations(graph: SubGraphT, tensors: dict[int, str]) -> dict[int, str]:
    """`{operator index: key of the first marked tensor that it leads to}`."""
    found: dict[int, str] = {}
    after = dict(tensors)
    for index in reversed(range(len(graph.operators))):
        operator = graph.operators[index]
        keys = [after[int(i)] for i in operator.outputs if int(i) in after]
        if not keys:
            continue
        found[index] = keys[0]
        for i in operator.inputs:
            after.setdefault(int(i), keys[0])
    return found


def _match_weights(
    model: ModelT, graph: SubGraphT, expected: list[Any], floating: frozenset[int]
) -> dict[int, FoldedWeights]:
    remaining = list(expected)
    found: dict[int, FoldedWeights] = {}
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


def _match_stored(
    model: ModelT, graph: SubGraphT, expected: list[Any], floating: frozenset[int]
) -> dict[int, StoredWeights]:
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


def _check_found(missing: list[Any]) -> None:
    if missing:
        paths = ", ".join(repr(weights.path) for weights in missing)
        raise ConversionError(
            f"The weights of {paths} are not in the converted file: the converter rewrote the "
            "layer. Leave it in floating point by dqmq_tf.LayerRule(pattern=..., quantize=False)."
        )


def _same_content(weights: FoldedWeights, values: np.ndarray) -> bool:
    expected = weights.values
    return expected.size == values.size and np.array_equal(expected.ravel(), values.ravel())
