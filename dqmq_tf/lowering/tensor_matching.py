"""Finds which operator, constant and tensor of a converted file belongs to which layer.

Tensors are identified by their markers, weights by their values, and an operator by the first
marked tensor downstream of it. Names cannot be used, because the converter does not keep them.
"""

import dataclasses
import re
from collections.abc import Sequence

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
        tensors: `{tensor index: key}` of the marked tensors, with their keys in the lowered model.
        weights: `{operator index: FoldedWeights}` of the integer kernels with weights.
        stored: `{tensor index: StoredWeights}` of the constants that floating-point kernels read.
        floating: The indices of the operators that stay in floating point.
        paths: `{operator index: path of its layer}`. An operator that reshapes an input has the path
            `""`.
    """

    tensors: dict[int, str]
    weights: dict[int, FoldedWeights]
    stored: dict[int, StoredWeights]
    floating: frozenset[int]
    paths: dict[int, str]


def match_tensors(model: ModelT, lowered: LoweredModel) -> Match:
    """Finds the tensors and weights of a lowered model in its converted file.

    Args:
        model: The `ModelT` of the float file. Its markers are removed.
        lowered: The `LoweredModel` that it was converted from.

    Returns:
        A `Match`.

    Raises:
        ConversionError: If quantized weights are not in the file, or if tensors that are one tensor
            in the file have different quantization.
    """
    tensors = {
        index: _key_of([lowered.marked[number] for number in numbers], lowered)
        for index, numbers in tensor_markers.remove_markers(model).items()
    }
    graph = model.subgraphs[0]
    destinations = _destinations(graph, tensors)
    # The converter may reshape an input before its marker. A reshape works on integers as well, so
    # an operator that leads to a quantized input need not stay in floating point.
    float_keys = lowered.floating - {key for key in lowered.inputs if key in lowered.quantization}
    floating = frozenset(
        index
        for index in range(len(graph.operators))
        if destinations.get(index) is None or destinations[index] in float_keys
    )
    folded = [w for w in lowered.weights if isinstance(w, FoldedWeights)]
    stored = [w for w in lowered.weights if isinstance(w, StoredWeights)]
    return Match(
        tensors=tensors,
        weights=_match_folded(model, graph, folded, floating),
        stored=_match_stored(model, graph, stored, floating),
        floating=floating,
        paths={
            index: lowered.paths[key]
            for index, key in _destinations(graph, _outputs(model, lowered) | tensors).items()
        },
    )


def _key_of(keys: list[str], lowered: LoweredModel) -> str:
    """Returns the key of a tensor of the file, which may be several tensors of the model."""
    grids = {lowered.quantization[key] for key in keys if key in lowered.quantization}
    if len(grids) > 1:
        paths = [repr(lowered.paths[key]) if lowered.paths[key] else "the input" for key in keys]
        raise ConversionError(
            f"The outputs of {' and '.join(paths)} (tensors {', '.join(keys)}) are one tensor of the "
            "file, but were trained with different quantization. Remove "
            f"{' and '.join(dict.fromkeys(paths[1:]))}, which the converter found to change nothing."
        )
    return next((key for key in keys if key in lowered.quantization), keys[0])


def _outputs(model: ModelT, lowered: LoweredModel) -> dict[int, str]:
    """Returns `{tensor index: key}` of the outputs. Those of integers have no markers."""
    (definition,) = model.signatureDefs
    return {int(entry.tensorIndex): key for entry, key in zip(definition.outputs, lowered.outputs)}


def _destinations(graph: SubGraphT, tensors: dict[int, str]) -> dict[int, str]:
    """Returns `{operator index: key of the first marked tensor downstream of it}`."""
    destinations: dict[int, str] = {}
    downstream = dict(tensors)
    for index in reversed(range(len(graph.operators))):
        operator = graph.operators[index]
        keys = [downstream[int(i)] for i in operator.outputs if int(i) in downstream]
        if not keys:
            continue
        destinations[index] = keys[0]
        for i in operator.inputs:
            downstream.setdefault(int(i), keys[0])
    return destinations


def _match_folded(
    model: ModelT, graph: SubGraphT, folded: list[FoldedWeights], floating: frozenset[int]
) -> dict[int, FoldedWeights]:
    """Returns `{operator index: its weights}` of the integer kernels."""
    unmatched = list(folded)
    matches: dict[int, FoldedWeights] = {}
    for index, operator in enumerate(graph.operators):
        name = flatbuffer.operator_name(model, operator)
        if name not in folding.OPERANDS or index in floating:
            continue
        tensor = graph.tensors[operator.inputs[folding.OPERANDS[name][0]]]
        if not flatbuffer.is_constant(model, tensor):
            continue
        values = flatbuffer.constant(model, tensor)
        # Prefer weights without an operator. Those of a shared layer belong to several operators.
        candidates = [w for w in (*unmatched, *matches.values()) if _has_values(w, values)]
        if candidates:
            matches[index] = candidates[0]
            if candidates[0] in unmatched:
                unmatched.remove(candidates[0])
    _check_all_matched(unmatched)
    return matches


def _match_stored(
    model: ModelT, graph: SubGraphT, stored: list[StoredWeights], floating: frozenset[int]
) -> dict[int, StoredWeights]:
    """Returns `{tensor index: its weights}` of the constants of floating-point kernels."""
    operands = {int(i) for index in floating for i in graph.operators[index].inputs if int(i) >= 0}
    constants = {
        i: flatbuffer.constant(model, graph.tensors[i])
        for i in sorted(operands)
        if flatbuffer.type_name(graph.tensors[i]) == "FLOAT32"
        and flatbuffer.is_constant(model, graph.tensors[i])
    }
    matches: dict[int, StoredWeights] = {}
    for weights in stored:
        for index, values in constants.items():
            if index not in matches and weights.layout_of(values):
                matches[index] = weights
    _check_all_matched([weights for weights in stored if weights not in matches.values()])
    return matches


def _check_all_matched(unmatched: Sequence[FoldedWeights | StoredWeights]) -> None:
    """Raises an error if weights were not found in the file."""
    if unmatched:
        paths = list(dict.fromkeys(weights.path for weights in unmatched))
        pattern = "|".join(map(re.escape, paths))
        raise ConversionError(
            f"The weights of {', '.join(map(repr, paths))} are not in the converted file: the "
            "converter rewrote the layer, or the layer computes with parts of a kernel. Keep it in "
            f"floating point with dqmq_tf.LayerRule(pattern={pattern!r}, quantize=False)."
        )


def _has_values(weights: FoldedWeights, values: np.ndarray) -> bool:
    """Returns whether a constant holds the values of weights, in any shape."""
    expected = weights.values
    return expected.size == values.size and np.array_equal(expected.ravel(), values.ravel())
