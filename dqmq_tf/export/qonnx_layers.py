"""Writes the layers of a graph as nodes of a QONNX graph.

To support a further layer, add its class to `_WRITERS`, or the class name of an operation to
`_OPERATION_WRITERS`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from dqmq_tf.errors import UnsupportedLayerError
from dqmq_tf.export.qonnx_graph import Value
from dqmq_tf.export.qonnx_writer import QonnxWriter, refuse
from dqmq_tf.graph import Graph, Node
from dqmq_tf.graph.activations import is_relu
from dqmq_tf.graph.aliases import sources_of
from dqmq_tf.graph.constant_maps import Affine
from dqmq_tf.graph.fusion import pool_size
from dqmq_tf.graph.plain_classes import keras_name
from dqmq_tf.lowering.folding import as_float64

_layers = keras.layers
# Writes a node and returns its output, before the quantizer.
LayerWriter: TypeAlias = Callable[[QonnxWriter, Node], Value]


def write(writer: QonnxWriter, node: Node) -> list[Value]:
    """Writes a node and returns its outputs, before their quantizers.

    Raises:
        UnsupportedLayerError: If QONNX cannot hold the layer.
    """
    sources = sources_of(writer.graph, node)
    if sources is not None:
        return [writer.values[source] for source in sources]
    return [_writer(node)(writer, node)]


def check_layers(graph: Graph) -> None:
    """Rejects a graph with a layer or an input that a QONNX file cannot hold.

    Raises:
        UnsupportedLayerError: For the first such layer.
    """
    for tensor, name in zip(graph.inputs, graph.input_names):
        if None in graph.shapes[tensor][1:]:
            raise UnsupportedLayerError(
                name,
                f"shape {graph.shapes[tensor]}",
                "A QONNX file has fixed sizes: call `dqmq_tf.change_input_shape` first.",
            )
    for node in graph.nodes:
        if sources_of(graph, node) is None:
            _writer(node)


def _writer(node: Node) -> LayerWriter:
    """Returns the function that writes a node."""
    layer = node.layer
    writer = _WRITERS.get(type(layer))
    if writer is None and not isinstance(layer, keras.Layer):
        writer = _OPERATION_WRITERS.get(keras_name(layer))
    if isinstance(layer, _layers.Activation):
        writer = _ACTIVATION_WRITERS.get(layer.activation)
    if writer is None:
        refuse(node)
    if getattr(layer, "data_format", None) == "channels_first":
        refuse(node, "data_format='channels_first'")
    return writer


def _convolution(writer: QonnxWriter, node: Node) -> Value:
    layer, file = node.layer, writer.file
    source = file.channels_first(writer.source(node))
    rank = len(source.shape) - 2
    is_depthwise = isinstance(layer, (_layers.DepthwiseConv1D, _layers.DepthwiseConv2D))
    sizes = tuple(layer.kernel_size)
    strides, dilations = _each(layer.strides, rank), _each(layer.dilation_rate, rank)
    channels = source.shape[-1]

    def arrange(kernel: np.ndarray) -> np.ndarray:
        if is_depthwise:
            # Output channel `c * multiplier + m` reads input channel `c` in Keras as in ONNX.
            kernel = np.reshape(kernel, (*sizes, 1, -1))
        return np.moveaxis(kernel, (-1, -2), (0, 1))

    result = file.add(
        "Conv",
        [source.name, writer.kernel(node, arrange), *writer.bias(node)],
        node.path,
        kernel_shape=sizes,
        strides=strides,
        dilations=dilations,
        group=channels if is_depthwise else layer.groups,
        pads=_pads(source.shape[1:-1], sizes, strides, dilations, layer.padding),
    )
    result = writer.activated(result, node)
    return Value(name=result, shape=writer.shape(node), is_channels_first=True)


def _dense(writer: QonnxWriter, node: Node) -> Value:
    file, source = writer.file, writer.file.channels_last(writer.source(node))
    result = file.add("MatMul", [source.name, writer.kernel(node, lambda x: x)], node.path)
    for bias in writer.bias(node):
        result = file.add("Add", [result, bias], f"{node.path}/biased")
    result = writer.activated(result, node)
    return Value(name=result, shape=writer.shape(node), is_channels_first=False)


def _batch_norm(writer: QonnxWriter, node: Node) -> Value:
    """Writes a batch normalization, and what follows the quality behind it in the same operator."""
    layer, source = node.layer, writer.source(node)
    rank, channels = len(source.shape), source.shape[-1]
    if layer.axis % rank != rank - 1:
        refuse(node, f"axis={layer.axis}")
    source = writer.file.channels_first(source)
    gamma = as_float64(layer.gamma) if layer.scale else np.ones(channels)
    beta = as_float64(layer.beta) if layer.center else np.zeros(channels)
    quality = writer.affines.get(node.path)
    if quality is not None:
        gamma = gamma * quality.multiplier
        beta = beta * quality.multiplier + quality.offset
    statistics = as_float64(layer.moving_mean), as_float64(layer.moving_variance)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    constants = [
        writer.file.constant(f"{node.path}/{name}", values)
        for name, values in zip(names, (gamma, beta, *statistics))
    ]
    name = writer.file.add(
        "BatchNormalization",
        [source.name, *constants],
        node.path,
        epsilon=float(layer.epsilon),
    )
    return dataclasses.replace(source, name=name)


def _rescaling(writer: QonnxWriter, node: Node) -> Value:
    source, layer = writer.source(node), node.layer
    name = source.name
    for operator, values, neutral in (("Mul", layer.scale, 1.0), ("Add", layer.offset, 0.0)):
        values = np.asarray(values, np.float64)
        if np.any(values != neutral):
            path = f"{node.path}/{operator.lower()}"
            if values.ndim:
                constant = writer.file.per_channel(source, f"{path}_constant", values)
            else:
                constant = writer.file.constant(f"{path}_constant", values)
            name = writer.file.add(operator, [name, constant], path)
    return dataclasses.replace(source, name=name)


def _relu(writer: QonnxWriter, node: Node) -> Value:
    if not is_relu(node.layer):
        refuse(node, "negative_slope, threshold or max_value=0")
    source = writer.source(node)
    name = writer.rectified(source.name, node.layer, node.path)
    return dataclasses.replace(source, name=name)


def _elementwise(operator: str) -> LayerWriter:
    """Returns the function that writes an operator of one tensor in any layout."""

    def write(writer: QonnxWriter, node: Node) -> Value:
        source = writer.source(node)
        name = writer.file.add(operator, [source.name], node.path)
        return dataclasses.replace(source, name=name)

    return write


def _softmax(writer: QonnxWriter, node: Node) -> Value:
    source = writer.file.channels_last(writer.source(node))
    rank = len(source.shape)
    axis = getattr(node.layer, "axis", -1)
    if axis not in (-1, rank - 1):
        refuse(node, f"axis={axis}")
    name = writer.file.add("Softmax", [source.name], node.path, axis=rank - 1)
    return dataclasses.replace(source, name=name)


def _add(writer: QonnxWriter, node: Node) -> Value:
    """Writes a sum of tensors. Constants and tensors of different ranks are refused."""
    arguments, keywords = node.arguments(writer.values)
    operands = keras.tree.flatten((arguments, keywords))
    if not all(isinstance(operand, Value) for operand in operands):
        refuse(node, "it adds a constant")
    if len({len(operand.shape) for operand in operands}) > 1:
        refuse(node, f"shapes {[operand.shape for operand in operands]}")
    first, *rest = _same_layout(writer, operands)
    name = first.name
    for operand in rest:
        name = writer.file.add("Add", [name, operand.name], node.path)
    return Value(name=name, shape=writer.shape(node), is_channels_first=first.is_channels_first)


def _concatenate(writer: QonnxWriter, node: Node) -> Value:
    operands = _same_layout(writer, [writer.values[tensor] for tensor in _all_inputs(writer, node)])
    axis = operands[0].axis(node.layer.axis)
    name = writer.file.add("Concat", [operand.name for operand in operands], node.path, axis=axis)
    return Value(
        name=name, shape=writer.shape(node), is_channels_first=operands[0].is_channels_first
    )


def _pool(operator: str) -> LayerWriter:
    def write(writer: QonnxWriter, node: Node) -> Value:
        layer, source = node.layer, writer.file.channels_first(writer.source(node))
        rank = len(source.shape) - 2
        sizes, strides = pool_size(layer, rank), _each(layer.strides, rank)
        name = writer.file.add(
            operator,
            [source.name],
            node.path,
            kernel_shape=sizes,
            strides=strides,
            pads=_pads(source.shape[1:-1], sizes, strides, (1,) * rank, layer.padding),
        )
        return Value(name=name, shape=writer.shape(node), is_channels_first=True)

    return write


def _global_pool(operator: str) -> LayerWriter:
    def write(writer: QonnxWriter, node: Node) -> Value:
        source = writer.file.channels_first(writer.source(node))
        name = writer.file.add(operator, [source.name], node.path)
        if not node.layer.keepdims:
            name = writer.file.add("Flatten", [name], f"{node.path}/flat", axis=1)
        return Value(
            name=name, shape=writer.shape(node), is_channels_first=bool(node.layer.keepdims)
        )

    return write


def _reshape(writer: QonnxWriter, node: Node) -> Value:
    """Writes a reshape of the values in Keras's order, the channels last."""
    source, shape = writer.source(node), writer.shape(node)
    if any(n != 1 for n in source.shape[1:-1]):
        source = writer.file.channels_last(source)
    if len(shape) == 2:
        name = writer.file.add("Flatten", [source.name], node.path, axis=1)
    else:
        # 0 keeps the size of the batch, so that other tools can change it.
        target = writer.file.constant(f"{node.path}/shape", np.array([0, *shape[1:]], np.int64))
        name = writer.file.add("Reshape", [source.name, target], node.path)
    return Value(name=name, shape=shape, is_channels_first=False)


def _pad(writer: QonnxWriter, node: Node) -> Value:
    source = writer.source(node)
    padding = node.layer.padding
    spatial = [padding] if len(source.shape) == 3 else padding
    pairs: Sequence[tuple[int, int]] = [(0, 0), *(tuple(pair) for pair in spatial), (0, 0)]
    if source.is_channels_first:
        pairs = (pairs[0], pairs[-1], *pairs[1:-1])
    pads = np.array([*(before for before, _ in pairs), *(after for _, after in pairs)], np.int64)
    zero = writer.file.constant(f"{node.path}/zero", np.float32(0.0))
    inputs = [source.name, writer.file.constant(f"{node.path}/pads", pads), zero]
    name = writer.file.add("Pad", inputs, node.path, mode="constant")
    return Value(name=name, shape=writer.shape(node), is_channels_first=source.is_channels_first)


def _all_inputs(writer: QonnxWriter, node: Node) -> list[int]:
    """Returns the tensors that a call takes, repeated ones as often as they appear."""
    ids = {tensor: _Id(tensor) for tensor in node.inputs}
    leaves = keras.tree.flatten(node.arguments(ids))
    return [leaf.tensor for leaf in leaves if isinstance(leaf, _Id)]


class _Id:
    """Stands for a tensor among the arguments of a call.

    Args:
        tensor: The id of the tensor.
    """

    def __init__(self, tensor: int) -> None:
        self.tensor = tensor


def _same_layout(writer: QonnxWriter, values: Iterable[Value]) -> list[Value]:
    """Returns tensors in the layout of the first one."""
    first, *rest = values
    arrange = writer.file.channels_first if first.is_channels_first else writer.file.channels_last
    return [first, *map(arrange, rest)]


def _each(sizes: Any, rank: int) -> tuple[int, ...]:
    """Returns a size for each of `rank` axes."""
    return (sizes,) * rank if isinstance(sizes, int) else tuple(sizes)


def _pads(
    lengths: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    padding: str,
) -> tuple[int, ...]:
    """Returns ONNX's pads, first those before each axis, then those after, as TensorFlow pads."""
    before, after = [], []
    for length, size, stride, dilation in zip(lengths, sizes, strides, dilations):
        reach = dilation * (size - 1)
        total = 0
        if padding == "causal":
            total = reach
        elif padding == "same":
            total = max((-(-length // stride) - 1) * stride + reach + 1 - length, 0)
        before.append(total if padding == "causal" else total // 2)
        after.append(total - before[-1])
    return (*before, *after)


def quality_affine(affine: Any, embedding: np.ndarray) -> Affine:
    """Returns the map that a `QualityAffine` computes for the embedding of a frozen profile.

    Args:
        affine: The `QualityAffine`.
        embedding: The embedding, shape `[1, d]`.
    """
    scale, shift = affine.factors(keras.ops.convert_to_tensor(embedding))
    return Affine(as_float64(scale)[0], as_float64(shift)[0])


_WRITERS: dict[type, LayerWriter] = {
    _layers.Conv1D: _convolution,
    _layers.Conv2D: _convolution,
    _layers.DepthwiseConv1D: _convolution,
    _layers.DepthwiseConv2D: _convolution,
    _layers.Dense: _dense,
    _layers.BatchNormalization: _batch_norm,
    _layers.Rescaling: _rescaling,
    _layers.ReLU: _relu,
    _layers.Softmax: _softmax,
    _layers.Add: _add,
    _layers.Concatenate: _concatenate,
    _layers.MaxPooling1D: _pool("MaxPool"),
    _layers.MaxPooling2D: _pool("MaxPool"),
    _layers.AveragePooling1D: _pool("AveragePool"),
    _layers.AveragePooling2D: _pool("AveragePool"),
    _layers.GlobalAveragePooling1D: _global_pool("GlobalAveragePool"),
    _layers.GlobalAveragePooling2D: _global_pool("GlobalAveragePool"),
    _layers.GlobalMaxPooling1D: _global_pool("GlobalMaxPool"),
    _layers.GlobalMaxPooling2D: _global_pool("GlobalMaxPool"),
    _layers.Flatten: _reshape,
    _layers.Reshape: _reshape,
    _layers.ZeroPadding1D: _pad,
    _layers.ZeroPadding2D: _pad,
}
_ACTIVATION_WRITERS: dict[Any, LayerWriter] = {
    keras.activations.relu: _relu,
    keras.activations.relu6: _relu,
    keras.activations.softmax: _softmax,
    keras.activations.sigmoid: _elementwise("Sigmoid"),
    keras.activations.tanh: _elementwise("Tanh"),
}
# By class name, as Keras does not export the classes of its operations.
_OPERATION_WRITERS: dict[str, LayerWriter] = {
    "Add": _add,
    "Concatenate": _concatenate,
    "Relu": _relu,
    "Relu6": _relu,
    "ReLU": _relu,
    "Reshape": _reshape,
    "Sigmoid": _elementwise("Sigmoid"),
    "Softmax": _softmax,
    "Tanh": _elementwise("Tanh"),
}
