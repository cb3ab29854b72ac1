"""Writes what ai-edge-quantizer cannot: integer weights of float kernels, and some kernels."""

import copy

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import ModelT, editing
from dqmq_tf.flatbuffer.editing import add_int8_tensor, new_operator
from dqmq_tf.flatbuffer.serialization import OperatorT, SubGraphT, TensorT
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.lowering.stored_weights import LOOKED_UP, StoredWeights
from dqmq_tf.precision import ActivationPrecision


def store(model: ModelT, graph: SubGraphT, lowered: LoweredModel) -> None:
    """Replaces the float constants of `StoredWeights` with their integers.

    A DEQUANTIZE restores the values for the operators that read them; a lookup of rows becomes one
    that reads integers.

    Args:
        model: `ModelT` of a quantized file; changed in place.
        graph: Its subgraph.
        lowered: `LoweredModel`.
    """
    stored = {
        f"w{number}": weights
        for number, weights in enumerate(lowered.weights)
        if isinstance(weights, StoredWeights)
    }
    restoring = []
    for index, tensor in enumerate(list(graph.tensors)):
        weights = stored.get(flatbuffer.text(tensor.name).rstrip("_"))
        if weights is None:
            continue
        held = _held(model, graph, tensor, weights)
        if weights.kind == LOOKED_UP:
            _look_up(model, graph, index, held)
            continue
        tensor.buffer = 0
        tensor.name += b"f"
        restoring.append(new_operator(model, "DEQUANTIZE", [held], [index]))
    graph.operators = restoring + list(graph.operators)


def merge_kernels(
    model: ModelT, graph: SubGraphT, names: list[str], grids: dict[str, ActivationPrecision]
) -> None:
    """Merges DEQUANTIZE, a float kernel and QUANTIZE into one integer kernel.

    Inputs that must be on the grid of the result, such as those of a concatenation, are put there.

    Args:
        model: `ModelT` of a quantized file; changed in place.
        graph: Its subgraph.
        names: Names of the tensors that such kernels make.
        grids: `{name of a float tensor: ActivationPrecision}` of what they read and make.
    """
    for operator in list(graph.operators):
        made = int(operator.outputs[0])
        if flatbuffer.text(graph.tensors[made].name) not in names:
            continue
        result = _result(model, graph, operator, made, grids)
        sources = [_source(model, graph, operator, int(i), grids) for i in operator.inputs]
        if flatbuffer.operator_name(model, operator) == "CONCATENATION":
            sources = [_on_grid_of(model, graph, i, result, operator) for i in sources]
        operator.inputs = np.array(sources, np.int32)
        operator.outputs = np.array([result], np.int32)
    _drop_unread(model, graph)


def _source(
    model: ModelT,
    graph: SubGraphT,
    operator: OperatorT,
    index: int,
    grids: dict[str, ActivationPrecision],
) -> int:
    """Index of the integer twin of a float tensor that an operator reads; made if there is none."""
    place = _place(graph, operator)
    for other in graph.operators[:place]:
        name, ends = flatbuffer.operator_name(model, other), (other.inputs[0], other.outputs[0])
        if name == "DEQUANTIZE" and ends[1] == index:
            return int(ends[0])
        if name == "QUANTIZE" and ends[0] == index:
            return int(ends[1])
    twin = add_int8_tensor(graph, index, grids[flatbuffer.text(graph.tensors[index].name)])
    graph.operators.insert(place, new_operator(model, "QUANTIZE", [index], [twin]))
    return twin


def _result(
    model: ModelT,
    graph: SubGraphT,
    operator: OperatorT,
    index: int,
    grids: dict[str, ActivationPrecision],
) -> int:
    """Index of the integer twin of what an operator makes; other readers get it restored."""
    readers = [other for other in graph.operators if index in other.inputs]
    kinds = [flatbuffer.operator_name(model, other) for other in readers]
    if "QUANTIZE" in kinds:
        quantizing = readers.pop(kinds.index("QUANTIZE"))
        twin = int(quantizing.outputs[0])
        graph.operators = [other for other in graph.operators if other is not quantizing]
    else:
        twin = add_int8_tensor(graph, index, grids[flatbuffer.text(graph.tensors[index].name)])
    if readers or index in graph.outputs:
        place = _place(graph, operator) + 1
        graph.operators.insert(place, new_operator(model, "DEQUANTIZE", [twin], [index]))
    return twin


def _place(graph: SubGraphT, operator: OperatorT) -> int:
    return next(i for i, other in enumerate(graph.operators) if other is operator)


def _on_grid_of(model: ModelT, graph: SubGraphT, index: int, other: int, reader: OperatorT) -> int:
    """Index of a tensor with the values of one on the grid of another, in front of a reader."""
    own, wanted = (graph.tensors[i].quantization for i in (index, other))
    if own.scale[0] == wanted.scale[0] and own.zeroPoint[0] == wanted.zeroPoint[0]:
        return index
    tensor = copy.copy(graph.tensors[index])
    tensor.quantization, tensor.name = wanted, tensor.name + b"q"
    made = editing.add_tensor(graph, tensor)
    graph.operators.insert(_place(graph, reader), new_operator(model, "QUANTIZE", [index], [made]))
    return made


def _held(model: ModelT, graph: SubGraphT, tensor: TensorT, weights: StoredWeights) -> int:
    """Index of a new tensor with the integers of a float constant."""
    layout = weights.layout_of(flatbuffer.constant(model, tensor))
    if layout is None:
        raise ConversionError(
            f"{weights.path}/{weights.variable}: the file does not hold these weights. "
            "Please report the model."
        )
    integers, scales, axis = layout
    held, zero_points = copy.copy(tensor), np.zeros(len(scales), np.int64)
    editing.quantize_tensor(held, scales.astype(np.float32), zero_points, axis)
    held.buffer = editing.add_buffer(model, integers.tobytes())
    return editing.add_tensor(graph, held)


def _look_up(model: ModelT, graph: SubGraphT, table: int, held: int) -> None:
    """Replaces each GATHER from a float table with a lookup in the integer table."""
    for number, operator in enumerate(graph.operators):
        if flatbuffer.operator_name(model, operator) == "GATHER" and operator.inputs[0] == table:
            graph.operators[number] = new_operator(
                model, LOOKED_UP, [operator.inputs[1], held], operator.outputs
            )


def _drop_unread(model: ModelT, graph: SubGraphT) -> None:
    """Removes DEQUANTIZE operators whose outputs are no longer read."""
    read = {int(i) for operator in graph.operators for i in operator.inputs} | set(graph.outputs)
    graph.operators = [
        operator
        for operator in graph.operators
        if flatbuffer.operator_name(model, operator) != "DEQUANTIZE"
        or int(operator.outputs[0]) in read
    ]
