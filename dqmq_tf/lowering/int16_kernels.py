"""Writes the operators that compute activations of 16 bits (TFLite's "16x8").

An operator has one type of activations, but each tensor has a bit-width of its own. An operator that
reads or computes a tensor of 16 bits is therefore an int16 operator. A QUANTIZE operator widens each
of its inputs of 8 bits to int16 with the same scale and zero point 0, which is exact. An output of 8
bits is computed in int16 in units of its scale, and a QUANTIZE operator narrows it to int8, which
only clips it. So every tensor is rounded once, to the grid that it was trained with.

The exceptions are softmax, sigmoid and tanh, whose int16 kernels have one output grid. If their
output has 8 bits and their input 16, it is rounded to that grid first.

Weights stay int8, and biases become int64.
"""

import copy
import re
from collections.abc import Sequence

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import ModelT, OperatorT, SubGraphT, editing
from dqmq_tf.flatbuffer.editing import new_operator, operator_position
from dqmq_tf.lowering import folding
from dqmq_tf.lowering.folding import FoldedWeights
from dqmq_tf.lowering.lowered_model import LoweredModel

# Operators whose int16 kernels write one grid only.
_FIXED_OUTPUTS = {"LOGISTIC": 2.0**-15, "SOFTMAX": 2.0**-15, "TANH": 2.0**-15}
# By default, these expect scales that are powers of two.
_GENERAL_SCALES = ("ADD", "SUB")
# What is appended to the names of the added tensors: an input of 8 bits that is widened, one that is
# rescaled for a concatenation, and an output before it is narrowed to 8 bits.
_WIDENED, _RESCALED, _UNCLIPPED = b"w", b"c", b"u"
_WEIGHTS = re.compile(r"^w(\d+)(_|$)")
_COPY = re.compile(r"^(a\d+p?_*)[wcu]$")


def tensor_of(name: str) -> str:
    """Returns the key of the tensor whose int16 copy has a name. Other names are returned as is."""
    return _COPY.sub(r"\1", name)


def is_int16_operator(graph: SubGraphT, indices: Sequence[int]) -> bool:
    """Returns whether one of an operator's tensors is an int16 tensor."""
    return any(flatbuffer.type_name(graph.tensors[i]) == "INT16" for i in indices if i >= 0)


def make_int16(model: ModelT, graph: SubGraphT, operator: OperatorT, lowered: LoweredModel) -> None:
    """Makes an operator an int16 operator.

    Args:
        model: The `ModelT` of a file, changed in place.
        graph: Its subgraph.
        operator: The operator. Its activations are int8 or int16 tensors, its weights and bias are
            still in floating point.
        lowered: The `LoweredModel`, which has the weights.
    """
    name = flatbuffer.operator_name(model, operator)
    if name in _GENERAL_SCALES:
        _set_general_scales(operator, name)
    output = int(operator.outputs[0])
    if flatbuffer.type_name(graph.tensors[output]) == "INT8":
        scale = _FIXED_OUTPUTS.get(name, graph.tensors[output].quantization.scale[0])
        wide_output = _add_int16_tensor(graph, output, scale, _UNCLIPPED)
        narrow = new_operator(model, "QUANTIZE", [wide_output], [output])
        graph.operators.insert(operator_position(graph, operator) + 1, narrow)
        operator.outputs = np.array([wide_output], np.int32)
        output = wide_output
    # A concatenation cannot rescale.
    scale = graph.tensors[output].quantization.scale[0] if name == "CONCATENATION" else None
    operator.inputs = np.array(
        [_int16_input(model, graph, int(i), scale, operator) for i in operator.inputs], np.int32
    )
    if name in folding.KINDS:
        _store_weights_and_bias(model, graph, operator, name, lowered)


def _int16_input(
    model: ModelT, graph: SubGraphT, index: int, scale: float | None, reader: OperatorT
) -> int:
    """Returns the index of an activation as an int16 tensor, which is added if needed.

    Args:
        model: The `ModelT`, changed in place.
        graph: Its subgraph.
        index: The index of an input of `reader`. Constants are returned as they are.
        scale: The scale that the tensor must have. None for its own.
        reader: The operator before which the tensor is widened or rescaled.
    """
    if index < 0 or flatbuffer.is_constant(model, graph.tensors[index]):
        return index
    kind = flatbuffer.type_name(graph.tensors[index])
    if kind not in ("INT8", "INT16"):
        return index
    own_scale = graph.tensors[index].quantization.scale[0]
    scale = own_scale if scale is None else scale
    if kind == "INT16" and own_scale == scale:
        return index
    for other in graph.operators[: operator_position(graph, reader)]:
        result = int(other.outputs[0])
        if (
            flatbuffer.operator_name(model, other) == "QUANTIZE"
            and int(other.inputs[0]) == index
            and flatbuffer.type_name(graph.tensors[result]) == "INT16"
            and graph.tensors[result].quantization.scale[0] == scale
        ):
            return result
    suffix = _WIDENED if own_scale == scale else _RESCALED
    wide_index = _add_int16_tensor(graph, index, scale, suffix)
    widen = new_operator(model, "QUANTIZE", [index], [wide_index])
    graph.operators.insert(operator_position(graph, reader), widen)
    return wide_index


def _store_weights_and_bias(
    model: ModelT, graph: SubGraphT, operator: OperatorT, kind: str, lowered: LoweredModel
) -> None:
    """Stores the weights of an operator as int8 and its bias as int64."""
    kernel, bias = folding.OPERANDS[kind]
    tensor = graph.tensors[operator.inputs[kernel]]
    found = _WEIGHTS.match(flatbuffer.text(tensor.name))
    weights = lowered.weights[int(found[1])] if found else None
    if not isinstance(weights, FoldedWeights) or weights.integers.shape != tuple(tensor.shape):
        raise ConversionError(
            f"{flatbuffer.text(tensor.name)}: the weights of an int16 {kind} are not those of the "
            "model. Give its layer and the layer before it activation_bits=(8,), and please report "
            "the model."
        )
    stored = [
        index
        for index, other in enumerate(graph.tensors)
        if found and flatbuffer.text(other.name) == f"w{found[1]}" and other is not tensor
    ]
    if stored and flatbuffer.type_name(graph.tensors[stored[0]]) == "INT8":
        # Another call of the layer is an int8 operator. litert-quantizer gave it a tensor of its own.
        inputs = list(operator.inputs)
        inputs[kernel] = stored[0]
        operator.inputs = np.array(inputs, np.int32)
    elif flatbuffer.type_name(tensor) == "FLOAT32":
        # Another operator may read the same buffer in floating point, so this is a new one.
        tensor.buffer = editing.add_buffer(model, weights.integers.tobytes())
        zero_points = np.zeros(len(weights.scales), np.int64)
        editing.quantize_tensor(tensor, weights.scales, zero_points, weights.channel_axis)
    if len(operator.inputs) <= bias or operator.inputs[bias] < 0:
        return
    source = graph.tensors[operator.inputs[folding.data_operand(kind)]]
    input_step = float(source.quantization.scale[0])
    bias_tensor = copy.copy(graph.tensors[operator.inputs[bias]])
    scales = (np.float64(input_step) * weights.scales.astype(np.float64)).astype(np.float32)
    editing.quantize_tensor(bias_tensor, scales, np.zeros(len(scales), np.int64))
    bias_tensor.type = flatbuffer.schema().TensorType.INT64
    integers = weights.bias_integers(input_step)
    bias_tensor.buffer = editing.add_buffer(model, integers.tobytes())
    inputs = list(operator.inputs)
    inputs[bias] = editing.add_tensor(graph, bias_tensor)
    operator.inputs = np.array(inputs, np.int32)


def _add_int16_tensor(graph: SubGraphT, index: int, scale: float, suffix: bytes) -> int:
    """Adds an int16 tensor with the shape of another tensor, and returns its index."""
    tensor = copy.copy(graph.tensors[index])
    # litert-quantizer appends this to some names.
    tensor.name = tensor.name.removesuffix(b"_quantized") + suffix
    editing.quantize_tensor(tensor, np.array([scale], np.float32), np.zeros(1, np.int64))
    tensor.type = flatbuffer.schema().TensorType.INT16
    return editing.add_tensor(graph, tensor)


def _set_general_scales(operator: OperatorT, name: str) -> None:
    """Lets an addition or subtraction have any scales."""
    schema = flatbuffer.schema()
    kind = {"ADD": "AddOptions", "SUB": "SubOptions"}[name]
    if operator.builtinOptions is None:
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        operator.builtinOptions = getattr(schema, f"{kind}T")()
    operator.builtinOptions.potScaleInt16 = False
