"""Lowers layers with a kernel: convolutions, dense layers and embeddings.

TFLite has integer kernels only for convolutions of images and for products of rows with a matrix.
So a convolution of signals becomes one of images of height 1, and the input of any other product is
reshaped to rows. A batch norm or rescaling after the layer is folded into its weights (see
`_set_folded_weights`).
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf.errors import FloatOnly, UnsupportedLayerError
from dqmq_tf.graph import Node
from dqmq_tf.graph.kernels import einsum_terms, op_kind
from dqmq_tf.lowering import elementwise, folding
from dqmq_tf.lowering.builder import LoweringBuilder, tensor_key
from dqmq_tf.lowering.stored_weights import LOOKED_UP, StoredWeights
from dqmq_tf.precision import WeightPrecision

# The TFLite operator of a convolution, by `op_kind` of its layer.
_CONVOLUTIONS = {
    "conv": folding.CONVOLUTION,
    "depthwise": folding.DEPTHWISE,
    "transpose": folding.TRANSPOSED,
}


def check_dilation(node: Node) -> None:
    """Rejects dilated transposed convolutions: TFLite has no kernel for them, not even in float."""
    layer = node.layer
    if op_kind(layer) == "transpose" and set(layer.dilation_rate) != {1}:
        raise UnsupportedLayerError(
            node.path,
            f"{type(layer).__name__}: dilation_rate={layer.dilation_rate}",
            "Use dilation_rate=1 and a larger kernel.",
        )


def check_convolution(node: Node) -> None:
    """Raises `FloatOnly` for a convolution that no integer kernel computes."""
    elementwise.check_data_format(node)
    elementwise.check_fused(node.layer.activation)
    groups = getattr(node.layer, "groups", 1)
    if groups != 1:
        raise FloatOnly(f"no runtime has an integer kernel for {groups} groups of channels")


def convolution(builder: LoweringBuilder, node: Node) -> None:
    """Lowers a convolution of signals or images, depthwise and transposed ones included."""
    check_convolution(node)
    layer, kind = node.layer, _CONVOLUTIONS[op_kind(node.layer)]
    pads = node.inputs[0] in builder.padded
    value = builder.values[builder.source(node)]
    is_signal = len(value.shape) == 3
    if is_signal:
        value = _as_image(layer, value)
    if node.path not in builder.layers:
        new_layer = _image_convolution(layer, kind, is_signal, pads)
        new_layer.build((None, *value.shape[1:]))
        integers, step, bias = _kernel_and_bias(builder, node)
        if is_signal:
            integers, step = integers[None], step[None]
        _set_folded_weights(builder, node, new_layer, kind, integers, step, bias)

    def restore_shape(x: Any) -> Any:
        return keras.ops.reshape(x, (-1, *x.shape[2:])) if is_signal else x

    _emit_output(builder, node, builder.layers[node.path](value), restore_shape)


def dense(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `Dense`, a product with the last axis of a tensor."""
    layer = node.layer
    elementwise.check_fused(layer.activation)
    shape = builder.values[node.inputs[0]].shape
    axes = tuple(range(len(shape)))
    _matrix_product(
        builder,
        node,
        input_order=axes,
        kernel_order=(0, 1),
        product_shape=(*shape[1:-1], layer.units),
        bias_shape=(layer.units,),
        output_order=axes,
    )


def einsum(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `EinsumDense`, a product with any axes, such as the projections of an attention."""
    layer, value = node.layer, builder.values[node.inputs[0]]
    elementwise.check_fused(layer.activation)
    # The terms are strings with one letter per axis: `x` the input, `w` the kernel, `y` the output.
    x, w, y = einsum_terms(layer.equation, len(value.shape))
    summed = [letter for letter in w if letter not in y]
    units = [letter for letter in y if letter in w]
    rows = [letter for letter in y if letter not in w]
    is_matrix_product = (
        rows[:1] == [x[0]]
        and not set(units) & set(x)
        and not set(summed) - set(x)
        and set(x) == {*rows, *summed}
        and not set(layer.bias_axes or "") - set(units)
    )
    if not is_matrix_product:
        raise FloatOnly(f"the equation {layer.equation!r} is not a product of rows with one matrix")
    sizes = dict(zip(w, layer.kernel.shape)) | dict(zip(x, value.shape))
    bias_sizes = dict(zip(reversed(y), reversed(_bias_shape(layer))))
    product = rows + units
    _matrix_product(
        builder,
        node,
        input_order=tuple(x.index(letter) for letter in (*rows, *summed)),
        kernel_order=tuple(w.index(letter) for letter in (*summed, *units)),
        product_shape=tuple(sizes[letter] for letter in product[1:]),
        bias_shape=tuple(bias_sizes.get(letter, 1) for letter in units),
        output_order=tuple(product.index(letter) for letter in y),
    )


def embedding(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `Embedding`: the file stores its table in integers, the output is in float."""
    layer, source, target = node.layer, node.inputs[0], node.outputs[0]
    indices, row_count = builder.values[source], layer.input_dim
    precision = builder.precision.weights[node.path]["embeddings"]
    if source in builder.graph.inputs:
        key = tensor_key(source)
        builder.vocabulary[key] = min(builder.vocabulary.get(key, row_count), row_count)
    if node.path not in builder.layers:
        weights = builder.distinct(StoredWeights.of(node.path, "embeddings", LOOKED_UP, precision))
        builder.weights[node.path] = weights
        builder.layers[node.path] = Lookup(weights.values)
    flat = keras.ops.reshape(keras.ops.cast(indices, "int32"), (-1,))
    rows = builder.layers[node.path](flat)
    value = keras.ops.reshape(rows, (-1, *indices.shape[1:], layer.output_dim))
    builder.emit(target, value, floating=True)


class Lookup(keras.layers.Layer):
    """Returns rows of a table.

    `keras.layers.Embedding` also accepts negative indices, which costs three more operators.

    Args:
        table: A float32 array, shape `(rows, columns)`.
    """

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self.table = self.add_weight(name="table", shape=table.shape, initializer="zeros")
        self.table.assign(table)

    def call(self, indices: Any) -> Any:
        return tf.gather(self.table, indices)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*shape, self.table.shape[-1])


class Convolution(keras.layers.Conv2D):
    """A convolution that becomes one operator, also if it is dilated.

    Keras dilates by moving pixels into the batch and back. The converter turns that into one operator
    only if no other convolution reads the same tensor.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        return tf.nn.conv2d(
            inputs, kernel, self.strides, self.padding.upper(), dilations=self.dilation_rate
        )


class DepthwiseConvolution(keras.layers.DepthwiseConv2D):
    """The same of a depthwise convolution."""

    def call(self, inputs: Any) -> Any:
        if set(self.dilation_rate) == {1}:
            return super().call(inputs)
        # `tf.nn.depthwise_conv2d` moves pixels as well.
        outputs = tf.raw_ops.DepthwiseConv2dNative(
            input=inputs,
            filter=self.kernel,
            strides=[1, 1, 1, 1],
            padding=self.padding.upper(),
            dilations=[1, *self.dilation_rate, 1],
        )
        return tf.nn.bias_add(outputs, self.bias)


def _matrix_product(
    builder: LoweringBuilder,
    node: Node,
    *,
    input_order: tuple[int, ...],
    kernel_order: tuple[int, ...],
    product_shape: tuple[int, ...],
    bias_shape: tuple[int, ...],
    output_order: tuple[int, ...],
) -> None:
    """Lowers a layer to a product of rows with a matrix.

    The input is transposed and reshaped to rows, the kernel to a matrix. The product is reshaped to
    `(batch, *product_shape)` and transposed to the output.

    Args:
        builder: The `LoweringBuilder`, changed in place.
        node: The node of the layer.
        input_order: The order of the input's axes in which the axes to sum over come last.
        kernel_order: The order of the kernel's axes in which the axes to sum over come first.
        product_shape: The shape of the product without the batch. The axes of the kernel come last.
        bias_shape: The shape of the layer's bias along the axes of the kernel, 1 where all indices
            share a value.
        output_order: The order of the product's axes in the layer's output.
    """
    path = node.path
    integers, step, bias = _kernel_and_bias(builder, node)
    value = builder.values[node.inputs[0]]
    unit_shape = product_shape[len(product_shape) - len(bias_shape) :]
    units = math.prod(unit_shape)
    width = integers.size // units
    rank = len(value.shape)
    if input_order != tuple(range(rank)):
        value = keras.ops.transpose(value, input_order)
    is_matrix = rank == 2 and value.shape[1] == width
    if not is_matrix:
        value = keras.ops.reshape(value, (-1, width))
    if path not in builder.layers:
        new_layer = keras.layers.Dense(units)
        new_layer.build((None, width))
        integers, step = (
            np.broadcast_to(array, integers.shape).transpose(kernel_order).reshape(width, units)
            for array in (integers, step)
        )
        if bias is not None:
            bias = np.broadcast_to(bias.reshape(bias_shape), unit_shape).ravel()
        _set_folded_weights(builder, node, new_layer, folding.FULLY_CONNECTED, integers, step, bias)

    def restore_shape(x: Any) -> Any:
        if len(product_shape) > 1 or not is_matrix:
            x = keras.ops.reshape(x, (-1, *product_shape))
        is_in_order = output_order == tuple(range(len(output_order)))
        return x if is_in_order else keras.ops.transpose(x, output_order)

    _emit_output(builder, node, builder.layers[path](value), restore_shape)


def _bias_shape(layer: keras.layers.EinsumDense) -> tuple[int, ...]:
    """Returns the shape of a layer's bias, `()` without a bias."""
    return () if layer.bias is None else tuple(layer.bias.shape)


def _kernel_and_bias(
    builder: LoweringBuilder, node: Node
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns `(integers, steps, bias)` of a node's layer: steps for each weight, a float bias."""
    (precision,) = builder.precision.weights[node.path].values()
    bias = getattr(node.layer, "bias", None)
    bias = None if bias is None else keras.ops.convert_to_numpy(bias)
    steps = np.broadcast_to(np.asarray(precision.step), precision.integers.shape)
    return np.asarray(precision.integers), steps, bias


def _set_folded_weights(
    builder: LoweringBuilder,
    node: Node,
    new_layer: Any,
    kind: str,
    integers: np.ndarray,
    steps: np.ndarray,
    bias: np.ndarray | None,
) -> None:
    """Sets the weights of a new layer, with the batch norm or rescaling after it folded in.

    Args:
        builder: The `LoweringBuilder`, which gets the layer and its `FoldedWeights`.
        node: The node of the trained layer.
        new_layer: The layer of the lowered model that replaces it, built.
        kind: One of `folding.KINDS`.
        integers: The trained integers in the shape of the new layer's kernel.
        steps: The step of each of them.
        bias: The float bias. None for no bias.
    """
    ((variable, precision),) = builder.precision.weights[node.path].items()
    folded_layer = builder.folded_layer(node.path)
    channels = new_layer.bias.shape[0]
    weights = builder.distinct(
        folding.fold_weights(
            node.path,
            variable,
            kind,
            WeightPrecision(integers=integers, step=steps, bit_width=precision.bit_width),
            bias,
            None if folded_layer is None else folding.layer_affine(folded_layer, channels),
            builder.input_step(builder.source(node)),
            builder.runs_in_int16(node),
        )
    )
    new_layer.kernel.assign(folding.keras_kernel(weights, new_layer.kernel.shape))
    new_layer.bias.assign(weights.bias)
    builder.weights[node.path] = weights
    builder.layers[node.path] = new_layer


def _as_image(layer: Any, value: Any) -> Any:
    """Returns a signal as an image of height 1, padded on the left for a causal convolution."""
    value = keras.ops.reshape(value, (-1, 1, *value.shape[1:]))
    if layer.padding == "causal":
        padding = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        value = keras.layers.ZeroPadding2D(((0, 0), (padding, 0)))(value)
    return value


def _image_convolution(layer: Any, kind: str, is_signal: bool, pads: bool) -> Any:
    """Returns a new layer that convolves images as a layer does, without its activation.

    Args:
        layer: A convolution of signals or images.
        kind: Its TFLite operator, one of `folding.KINDS`.
        is_signal: Whether it convolves signals. The new layer then convolves images of height 1.
        pads: Whether it pads its input in place of a layer before it (see `padding`).
    """

    def for_image(sizes: tuple[int, ...]) -> tuple[int, ...]:
        return (1, *sizes) if is_signal else tuple(sizes)

    options = {
        "kernel_size": for_image(layer.kernel_size),
        "strides": for_image(layer.strides),
        # `_as_image` pads the input of a causal convolution.
        "padding": "same" if pads else "valid" if layer.padding == "causal" else layer.padding,
        "dilation_rate": for_image(layer.dilation_rate),
    }
    if kind == folding.DEPTHWISE:
        # Depthwise kernels need equal strides, and any vertical stride leaves a height of 1 as is.
        strides = layer.strides * 2 if is_signal else layer.strides
        return DepthwiseConvolution(
            **options | {"strides": strides}, depth_multiplier=layer.depth_multiplier
        )
    if kind == folding.TRANSPOSED:
        output_padding = layer.output_padding
        if output_padding is not None and is_signal:
            sizes = [output_padding] if isinstance(output_padding, int) else output_padding
            output_padding = (0, *sizes)
        return keras.layers.Conv2DTranspose(layer.filters, output_padding=output_padding, **options)
    return Convolution(layer.filters, **options)


def _emit_output(
    builder: LoweringBuilder, node: Node, value: Any, restore_shape: Callable[[Any], Any]
) -> None:
    """Applies a node's activation, which the kernel fuses, and emits the output in its shape."""
    value = restore_shape(elementwise.apply_fused(node.layer.activation, value))
    if builder.folded_layer(node.path) is None:
        builder.emit(node.outputs[0], value)
    else:
        # The output is quantized after the batch norm or rescaling, whose node emits it.
        builder.values[node.outputs[0]] = value
