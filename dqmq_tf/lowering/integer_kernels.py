"""Writes what litert-quantizer does not support.

These are the integer weights that floating-point kernels read (`store_weights`), and the integer
form of some operators (`merge_kernels`), among them those that compute activations of 16 bits.
"""

import copy
from collections.abc import Collection, Mapping

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import ModelT, OperatorT, SubGraphT, TensorT, editing
from dqmq_tf.flatbuffer.editing import add_integer_tensor, new_operator, operator_position
from dqmq_tf.lowering.int16_kernels import is_int16_operator, make_int16
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.lowering.stored_weights import LOOKED_UP, StoredWeights
from dqmq_tf.precision import ActivationPrecision


def store_weights(model: ModelT, graph: SubGraphT, lowered: LoweredModel) -> None:
    """Replaces the float constants of `StoredWeights` with their integers.

    A DEQUANTIZE operator restores the real values for the operators that read them. A GATHER of
    rows becomes an EMBEDDING_LOOKUP, which reads integers.

    Args:
        model: The `ModelT` of a quantized file, changed in place.
        graph: Its subgraph.
        lowered: The `LoweredModel`.

    Raises:
        ConversionError: If a constant holds other values than the weights.
    """
    stored = {
        f"w{number}": weights
        for number, weights in enumerate(lowered.weights)
        if isinstance(weights, StoredWeights)
    }
    dequantize_operators = []
    for index, tensor in enumerate(list(graph.tensors)):
        weights = stored.get(flatbuffer.text(tensor.name).rstrip("_"))
        if weights is None:
            continue
        int8_index = _add_integer_constant(model, graph, tensor, weights)
        if weights.kind == LOOKED_UP:
            _replace_gathers(model, graph, index, int8_index)
            continue
        # The float tensor is no constant any more: it gets the empty buffer and a new name.
        tensor.buffer = 0
        tensor.name += b"f"
        dequantize_operators.append(new_operator(model, "DEQUANTIZE", [int8_index], [index]))
    graph.operators = dequantize_operators + list(graph.operators)


def merge_kernels(
    model: ModelT,
    graph: SubGraphT,
    names: Collection[str],
    grids: Mapping[str, ActivationPrecision],
    lowered: LoweredModel,
) -> None:
    """Merges DEQUANTIZE, a float kernel and QUANTIZE into one integer kernel.

    The inputs of a CONCATENATION are quantized to the grid of its output first. See `int16_kernels`
    for operators that compute activations of 16 bits.

    Args:
        model: The `ModelT` of a quantized file, changed in place.
        graph: Its subgraph.
        names: The names of the outputs of the operators to merge.
        grids: `{name of a float tensor: ActivationPrecision}` of their inputs and outputs.
        lowered: The `LoweredModel`, which has the weights of int16 operators.
    """
    for operator in list(graph.operators):
        output_index = int(operator.outputs[0])
        if flatbuffer.text(graph.tensors[output_index].name) not in names:
            continue
        output = _integer_output(model, graph, operator, grids)
        inputs = [_integer_input(model, graph, operator, int(i), grids) for i in operator.inputs]
        is_int16 = is_int16_operator(graph, [*inputs, output])
        if flatbuffer.operator_name(model, operator) == "CONCATENATION" and not is_int16:
            inputs = [_requantized(model, graph, i, output, operator) for i in inputs]
        operator.inputs = np.array(inputs, np.int32)
        operator.outputs = np.array([output], np.int32)
        if is_int16:
            make_int16(model, graph, operator, lowered)
    _drop_unread_dequantize(model, graph)


def _integer_input(
    model: ModelT,
    graph: SubGraphT,
    operator: OperatorT,
    index: int,
    grids: Mapping[str, ActivationPrecision],
) -> int:
    """Returns the index of the integer counterpart of a float tensor, which is added if needed.

    Args:
        model: The `ModelT`, changed in place.
        graph: Its subgraph.
        operator: An operator that reads the float tensor.
        index: The index of the float tensor. Constants and tensors of integers are returned as
            they are, as is the index -1 of an operand that is left out.
        grids: See `merge_kernels`.
    """
    is_operand = index >= 0 and not flatbuffer.is_constant(model, graph.tensors[index])
    if not is_operand or flatbuffer.type_name(graph.tensors[index]) != "FLOAT32":
        return index
    position = operator_position(graph, operator)
    for other in graph.operators[:position]:
        name = flatbuffer.operator_name(model, other)
        source, result = int(other.inputs[0]), int(other.outputs[0])
        if name == "DEQUANTIZE" and result == index:
            return source
        if name == "QUANTIZE" and source == index:
            return result
    new_index = add_integer_tensor(graph, index, grids[flatbuffer.text(graph.tensors[index].name)])
    graph.operators.insert(position, new_operator(model, "QUANTIZE", [index], [new_index]))
    return new_index


def _integer_output(
    model: ModelT,
    graph: SubGraphT,
    operator: OperatorT,
    grids: Mapping[str, ActivationPrecision],
) -> int:
    """Returns the index of the integer counterpart of an operator's float output.

    It is the output of the QUANTIZE operator that reads the float output, which is removed, or else
    a new tensor. If other operators read the float output as well, or the graph returns it, a
    DEQUANTIZE operator computes it.

    Args:
        model: The `ModelT`, changed in place.
        graph: Its subgraph.
        operator: The operator.
        grids: See `merge_kernels`.
    """
    index = int(operator.outputs[0])
    readers = [other for other in graph.operators if index in other.inputs]
    names = [flatbuffer.operator_name(model, other) for other in readers]
    if "QUANTIZE" in names:
        quantize = readers.pop(names.index("QUANTIZE"))
        new_index = int(quantize.outputs[0])
        graph.operators = [other for other in graph.operators if other is not quantize]
    else:
        precision = grids[flatbuffer.text(graph.tensors[index].name)]
        new_index = add_integer_tensor(graph, index, precision)
    if readers or index in graph.outputs:
        dequantize = new_operator(model, "DEQUANTIZE", [new_index], [index])
        graph.operators.insert(operator_position(graph, operator) + 1, dequantize)
    return new_index


def _requantized(model: ModelT, graph: SubGraphT, index: int, other: int, reader: OperatorT) -> int:
    """Returns the index of an int8 tensor, requantized to the grid of another one.

    Args:
        model: The `ModelT`, changed in place.
        graph: Its subgraph.
        index: The index of the tensor.
        other: The index of the tensor with the grid.
        reader: The operator before which the tensor is requantized.

    Returns:
        The index of a new tensor, or `index` if the two grids are equal.
    """
    current, new = graph.tensors[index].quantization, graph.tensors[other].quantization
    if current.scale[0] == new.scale[0] and current.zeroPoint[0] == new.zeroPoint[0]:
        return index
    tensor = copy.copy(graph.tensors[index])
    tensor.quantization, tensor.name = new, tensor.name + b"q"
    new_index = editing.add_tensor(graph, tensor)
    requantize = new_operator(model, "QUANTIZE", [index], [new_index])
    graph.operators.insert(operator_position(graph, reader), requantize)
    return new_index


def _add_integer_constant(
    model: ModelT, graph: SubGraphT, tensor: TensorT, weights: StoredWeights
) -> int:
    """Adds a constant int8 tensor with the integers of weights, in the layout of a float constant.

    Args:
        model: The `ModelT`, changed in place.
        graph: Its subgraph.
        tensor: The constant, which holds the real values of the weights.
        weights: The `StoredWeights`.

    Returns:
        The index of the new tensor.
    """
    layout = weights.layout_of(flatbuffer.constant(model, tensor))
    if layout is None:
        raise ConversionError(
            f"{weights.path}/{weights.variable}: the file does not hold these weights. Keep the "
            "layer in floating point with dqmq_tf.LayerRule(pattern=..., quantize=False), and "
            "please report the model."
        )
    integers, scales, axis = layout
    int8_tensor, zero_points = copy.copy(tensor), np.zeros(len(scales), np.int64)
    editing.quantize_tensor(int8_tensor, scales.astype(np.float32), zero_points, axis)
    int8_tensor.buffer = editing.add_buffer(model, integers.tobytes())
    return editing.add_tensor(graph, int8_tensor)


def _replace_gathers(model: ModelT, graph: SubGraphT, float_table: int, int8_table: int) -> None:
    """Replaces each GATHER from a float table with an EMBEDDING_LOOKUP in the int8 table.

    Args:
        model: The `ModelT`, changed in place.
        graph: Its subgraph.
        float_table: The index of the float table.
        int8_table: The index of the int8 table.
    """
    for position, operator in enumerate(graph.operators):
        name = flatbuffer.operator_name(model, operator)
        if name == "GATHER" and operator.inputs[0] == float_table:
            graph.operators[position] = new_operator(
                model, LOOKED_UP, [operator.inputs[1], int8_table], operator.outputs
            )


def _drop_unread_dequantize(model: ModelT, graph: SubGraphT) -> None:
    """Removes the DEQUANTIZE operators whose outputs nothing reads."""
    read = {int(i) for operator in graph.operators for i in operator.inputs} | set(graph.outputs)
    graph.operators = [
        operator
        for operator in graph.operators
        if flatbuffer.operator_name(model, operator) != "DEQUANTIZE"
        or int(operator.outputs[0]) in read
    ]
