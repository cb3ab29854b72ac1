"""Operator versions, and the oldest runtime that supports them.

A runtime refuses a file with an operator version that it does not know. The quantizer keeps the
versions of the float file, so an old runtime would accept the file and compute nonsense.
"""

from collections.abc import Iterable, Sequence

from dqmq_tf.flatbuffer import editing, serialization
from dqmq_tf.flatbuffer.serialization import ModelT, OperatorT, SubGraphT, TensorT

# {(operator, version): oldest TensorFlow Lite release that has it}
_RELEASES = {
    ("ABS", 1): "1.13.0",
    ("ADD", 1): "1.5.0",
    ("ADD", 2): "1.14.0",
    ("ADD", 3): "2.4.0",
    ("ARG_MAX", 1): "1.9.0",
    ("ARG_MAX", 2): "1.14.0",
    ("AVERAGE_POOL_2D", 1): "1.5.0",
    ("AVERAGE_POOL_2D", 2): "1.14.0",
    ("AVERAGE_POOL_2D", 3): "2.3.0",
    ("BATCH_MATMUL", 1): "2.3.0",
    ("BATCH_MATMUL", 2): "2.3.0",
    ("BROADCAST_TO", 2): "2.5.0",
    ("CAST", 1): "1.5.0",
    ("CONCATENATION", 1): "1.5.0",
    ("CONCATENATION", 2): "1.14.0",
    ("CONCATENATION", 3): "2.3.0",
    ("CONV_2D", 1): "1.5.0",
    ("CONV_2D", 3): "1.14.0",
    ("CONV_2D", 4): "2.3.0",
    ("CONV_2D", 7): "2.11.0",
    ("DEPTHWISE_CONV_2D", 1): "1.5.0",
    ("DEPTHWISE_CONV_2D", 2): "1.12.0",
    ("DEPTHWISE_CONV_2D", 3): "1.14.0",
    ("DEPTHWISE_CONV_2D", 5): "2.3.0",
    ("DEPTHWISE_CONV_2D", 7): "2.11.0",
    ("DEQUANTIZE", 2): "1.14.0",
    ("DEQUANTIZE", 3): "1.15.0",
    ("DEQUANTIZE", 5): "2.7.0",
    ("DIV", 1): "1.6.0",
    ("ELU", 1): "1.14.0",
    ("EMBEDDING_LOOKUP", 3): "1.14.0",
    ("EXP", 1): "1.7.0",
    ("EXPAND_DIMS", 1): "1.10.0",
    ("FILL", 1): "1.13.0",
    ("FULLY_CONNECTED", 1): "1.5.0",
    ("FULLY_CONNECTED", 4): "1.14.0",
    ("FULLY_CONNECTED", 5): "2.0.0",
    ("FULLY_CONNECTED", 6): "2.1.0",
    ("FULLY_CONNECTED", 7): "2.3.0",
    ("FULLY_CONNECTED", 10): "2.11.0",
    ("FULLY_CONNECTED", 14): "2.21.0",
    ("GATHER", 1): "1.6.0",
    ("GELU", 1): "2.9.0",
    ("GELU", 2): "2.9.0",
    ("GREATER", 1): "1.14.0",
    ("HARD_SWISH", 1): "1.15.0",
    ("IF", 1): "1.15.0",
    ("LEAKY_RELU", 1): "1.13.1",
    ("LEAKY_RELU", 2): "2.3.0",
    ("LOG", 1): "1.14.0",
    ("LOGISTIC", 1): "1.14.0",
    ("LOGISTIC", 2): "1.14.0",
    ("LOGISTIC", 3): "2.3.0",
    ("MAXIMUM", 1): "1.14.0",
    ("MAX_POOL_2D", 1): "1.5.0",
    ("MAX_POOL_2D", 2): "1.14.0",
    ("MAX_POOL_2D", 3): "2.3.0",
    ("MEAN", 1): "1.6.0",
    ("MEAN", 2): "1.14.0",
    ("MEAN", 3): "2.4.0",
    ("MINIMUM", 1): "1.14.0",
    ("MUL", 1): "1.5.0",
    ("MUL", 2): "1.14.0",
    ("MUL", 3): "1.15.0",
    ("MUL", 4): "2.3.0",
    ("NEG", 1): "1.9.0",
    ("PACK", 1): "1.11.0",
    ("PACK", 2): "1.14.0",
    ("PAD", 1): "1.5.0",
    ("PAD", 2): "1.14.0",
    ("PAD", 3): "2.4.0",
    ("PADV2", 1): "1.9.0",
    ("POW", 1): "1.10.0",
    ("PRELU", 1): "1.8.0",
    ("QUANTIZE", 1): "1.14.0",
    ("QUANTIZE", 2): "1.15.0",
    ("REDUCE_MAX", 1): "1.11.0",
    ("RELU", 1): "1.5.0",
    ("RELU", 2): "2.1.0",
    ("RELU6", 1): "1.5.0",
    ("RELU6", 2): "1.14.0",
    ("RELU6", 3): "2.5.0",
    ("RESHAPE", 1): "1.5.0",
    ("RESIZE_BILINEAR", 1): "1.7.0",
    ("RESIZE_BILINEAR", 2): "1.14.0",
    ("RESIZE_BILINEAR", 3): "2.2.0",
    ("RESIZE_NEAREST_NEIGHBOR", 1): "1.13.1",
    ("RESIZE_NEAREST_NEIGHBOR", 2): "1.14.0",
    ("RESIZE_NEAREST_NEIGHBOR", 3): "2.3.0",
    ("REVERSE_V2", 1): "1.14.0",
    ("RSQRT", 1): "1.10.0",
    ("SELECT", 1): "1.14.0",
    ("SELECT_V2", 1): "2.2.0",
    ("SLICE", 1): "1.14.0",
    ("SLICE", 2): "1.14.0",
    ("SLICE", 4): "2.4.0",
    ("SOFTMAX", 1): "1.5.0",
    ("SOFTMAX", 2): "1.14.0",
    ("SOFTMAX", 3): "2.3.0",
    ("SPLIT", 1): "1.5.0",
    ("SPLIT", 2): "1.14.0",
    ("SPLIT_V", 1): "1.13.1",
    ("SQRT", 1): "1.10.0",
    ("SQUARE", 1): "1.12.0",
    ("SQUARED_DIFFERENCE", 1): "1.13.1",
    ("SQUEEZE", 1): "1.6.0",
    ("SQUEEZE", 2): "2.5.0",
    ("STRIDED_SLICE", 1): "1.6.0",
    ("STRIDED_SLICE", 2): "1.14.0",
    ("SUB", 1): "1.6.0",
    ("SUB", 2): "1.14.0",
    ("SUB", 5): "2.4.0",
    ("SUM", 1): "1.10.0",
    ("TANH", 1): "1.14.0",
    ("TANH", 2): "1.14.0",
    ("TANH", 3): "2.3.0",
    ("TILE", 1): "1.10.1",
    ("TRANSPOSE", 1): "1.6.0",
    ("TRANSPOSE", 2): "1.14.0",
    ("TRANSPOSE", 5): "2.4.0",
    ("TRANSPOSE_CONV", 1): "1.9.0",
    ("TRANSPOSE_CONV", 2): "2.2.0",
    ("TRANSPOSE_CONV", 3): "2.3.0",
    ("TRANSPOSE_CONV", 4): "2.13.0",
    ("UNPACK", 1): "1.11.0",
    ("UNPACK", 2): "1.14.0",
}
_OLDEST_RELEASE = "1.5.0"
# Operators and versions that are not listed need the release that the tests run.
_NEWEST_RELEASE = "2.21.0"
# {operator with weights: version for INT8 activations and weights of the type}
_INT8 = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4}
_INT16 = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 5, "FULLY_CONNECTED": 7}
_INT4 = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 10}
_INT2 = {"FULLY_CONNECTED": 14}
_UNVERSIONED = ("RESHAPE", "HARD_SWISH", "IF")
# {operator: version for INT16 activations}, if it is not 3
_INT16_ALONE = {
    "SUB": 5, "MUL": 4, "SLICE": 4, "TRANSPOSE": 5, "LEAKY_RELU": 2, "STRIDED_SLICE": 1,
    "EXPAND_DIMS": 1, "SQUEEZE": 1,
}  # fmt: skip
# {operator that dequantizes: its versions for float, int8, int8 with several scales, int4}
_INT16_DEQUANTIZE = 3
_DEQUANTIZING = {"DEQUANTIZE": (1, 2, 5, 6), "EMBEDDING_LOOKUP": (1, 3, 4, 4)}
# (name, version, name of a custom operator)
_Code = tuple[str, int, bytes | None]


def set_versions(model: ModelT) -> str:
    """Gives every operator the version that the types of its tensors require.

    Args:
        model: A `ModelT`, whose operator codes are rewritten.

    Returns:
        The oldest TensorFlow Lite release that runs all operators, such as `"2.11.0"`.
    """
    codes: dict[_Code, int] = {}
    indices, releases = [], [_OLDEST_RELEASE]
    for graph in model.subgraphs:
        for operator in graph.operators:
            name = serialization.operator_name(model, operator)
            custom_code = model.operatorCodes[operator.opcodeIndex].customCode
            version = 1 if custom_code else operator_version(model, graph, operator)
            code = (name, version, custom_code)
            indices.append((operator, codes.setdefault(code, len(codes))))
            releases.append(oldest_release(name, version))
    for operator, index in indices:
        operator.opcodeIndex = index
    _rewrite(model, codes)
    return max(releases, key=_release_number)


def oldest_release(name: str, version: int) -> str:
    """Returns the oldest TensorFlow Lite that has a version of an operator, such as `"2.11.0"`."""
    return _RELEASES.get((name, version), _NEWEST_RELEASE)


def operator_version(model: ModelT, graph: SubGraphT, operator: OperatorT) -> int:
    """Returns the version of an operator, which depends on the types of its tensors.

    Args:
        model: A `ModelT`.
        graph: The subgraph of the operator.
        operator: The operator.
    """
    name = serialization.operator_name(model, operator)
    types = [serialization.type_name(graph.tensors[i]) for i in operator.inputs if i >= 0]
    if name in _UNVERSIONED:
        return 1
    if name == "QUANTIZE":
        return 2 if serialization.type_name(graph.tensors[operator.outputs[0]]) == "INT16" else 1
    if name in _INT8:
        return _weighted_version(name, types, operator)
    if name in _DEQUANTIZING:
        return _dequantizing_version(graph.tensors[operator.inputs[-1]], *_DEQUANTIZING[name])
    if name == "TRANSPOSE_CONV":
        return _transposed_version(types, operator)
    if name == "BROADCAST_TO":
        return 2
    if name in ("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"):
        options = operator.builtinOptions
        aligned = options.alignCorners and name == "RESIZE_NEAREST_NEIGHBOR"
        if options.halfPixelCenters or aligned:
            return 3
    if types[0] == "INT16":
        return _INT16_ALONE.get(name, 3)
    if name == "MUL" and types[0] == "INT8" and _rescale(graph, operator) >= 1:
        return 3
    return 2 if types[0] == "INT8" else 1


def _weighted_version(name: str, types: Sequence[str], operator: OperatorT) -> int:
    if types[0] == "INT16":
        return _INT16[name]
    if types[0] != "INT8":
        options = operator.builtinOptions
        dilated = name == "DEPTHWISE_CONV_2D" and (
            options.dilationWFactor != 1 or options.dilationHFactor != 1
        )
        return 2 if dilated else 1
    version = {"INT4": _INT4, "INT2": _INT2}.get(types[1], _INT8)[name]
    if name == "FULLY_CONNECTED" and len(operator.inputs) == 2:
        version = max(version, 6)
    if name == "FULLY_CONNECTED" and operator.builtinOptions.keepNumDims:
        version = max(version, 5)
    return version


def _dequantizing_version(
    tensor: TensorT, floating: int, int8: int, per_channel: int, int4: int
) -> int:
    """Returns the one of four versions that dequantizes a tensor."""
    kind = serialization.type_name(tensor)
    if kind == "INT4":
        return int4
    if kind == "INT16":
        return _INT16_DEQUANTIZE
    if kind != "INT8":
        return floating
    return per_channel if len(tensor.quantization.scale) > 1 else int8


def _transposed_version(types: Sequence[str], operator: OperatorT) -> int:
    # The inputs are the shape of the output, the kernel, the data and, possibly, a bias.
    if operator.builtinOptions.fusedActivationFunction:
        return 4
    return 3 if len(types) == 4 else 2 if types[1] == "INT8" else 1


def _rescale(graph: SubGraphT, operator: OperatorT) -> float:
    """Returns the factor by which a multiplication rescales the product of its integers."""
    scales = [graph.tensors[i].quantization.scale[0] for i in (*operator.inputs, *operator.outputs)]
    return scales[0] * scales[1] / scales[2]


def _rewrite(model: ModelT, codes: Iterable[_Code]) -> None:
    model.operatorCodes = []
    for name, version, custom_code in codes:
        editing.add_operator_code(model, name, version=version, custom_code=custom_code)


def _release_number(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))
