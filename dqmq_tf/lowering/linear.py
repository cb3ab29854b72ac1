"""Layers with a kernel on the integer road: convolutions, dense layers, embeddings.

Runtimes know convolutions of images and products of rows only, so what has one dimension runs as an
image of height 1, and what multiplies the last axes of a tensor as rows.
"""

import math

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf.errors import FloatOnly, UnsupportedLayerError
from dqmq_tf.graph.kernels import op_kind
from dqmq_tf.lowering import elementwise, folding
from dqmq_tf.lowering.stored_weights import LOOKED_UP, StoredWeights
from dqmq_tf.precision import WeightPrecision

# By the kind of operator that a layer becomes.
_KINDS = {
    "conv": folding.CONVOLUTION,
    "depthwise": folding.DEPTHWISE,
    "transpose": folding.TRANSPOSED,
}


def check_dilation(node):
    """Refuses transposed convolutions with gaps, which TFLite has in floating point neither."""
    layer = node.layer
    if op_kind(layer) == "transpose" and set(layer.dilation_rate) != {1}:
        raise UnsupportedLayerError(
            node.path,
            f"{type(layer).__name__}: dilation_rate={layer.dilation_rate}",
            "Use dilation_rate=1 and a larger kernel.",
        )


def convolution(builder, node):
    """A convolution of any kind of signals or images."""
    layer, kind = node.layer, _KINDS[op_kind(node.layer)]
    elementwise.check_data_format(node)
    elementwise.check_fused(layer.activation)
    if getattr(layer, "groups", 1) != 1:
        raise FloatOnly(f"no runtime has an integer kernel for {layer.groups} groups of channels")
    value = builder.values[node.inputs[0]]
    signal = len(value.shape) == 3
    if signal:
        value = _as_image(layer, value)
    if node.path not in builder.layers:
        double = _equivalent_layer(layer, kind, signal)
        double.build((None, *value.shape[1:]))
        kernel, step, bias = _of(builder, node)
        if signal:
            kernel, step = kernel[None], step[None]
        _fill(builder, node, double, kind, kernel, step, bias)
    result = builder.layers[node.path](value)

    def restored(x):
        return keras.ops.reshape(x, (-1, *x.shape[2:])) if signal else x

    _finish(builder, node, result, restored)


def dense(builder, node):
    """A product with the last axis."""
    elementwise.check_fused(node.layer.activation)
    entered = builder.values[node.inputs[0]].shape
    order = tuple(range(len(entered)))
    left = (*entered[1:-1], node.layer.units)
    _rows(builder, node, order, (0, 1), left, (node.layer.units,), order)


def einsum(builder, node):
    """A product with any axes, such as the projections of an attention."""
    elementwise.check_fused(node.layer.activation)
    x, w, y = einsum_letters(node.layer.equation, len(builder.values[node.inputs[0]].shape))
    contracted = [letter for letter in w if letter not in y]
    made = [letter for letter in y if letter in w]
    kept = [letter for letter in y if letter not in w]
    rows = kept[:1] == [x[0]] and not set(made) & set(x) and not set(contracted) - set(x)
    if not rows or set(x) != {*kept, *contracted} or set(node.layer.bias_axes or "") - set(made):
        raise FloatOnly(f"the product {node.layer.equation!r} is none of rows with one matrix")
    sizes = dict(zip(w, node.layer.kernel.shape))
    sizes |= dict(zip(x, builder.values[node.inputs[0]].shape))
    order, bias = kept + made, dict(zip(reversed(y), reversed(_bias_shape(node.layer))))
    _rows(
        builder,
        node,
        tuple(x.index(letter) for letter in (*kept, *contracted)),
        tuple(w.index(letter) for letter in (*contracted, *made)),
        tuple(sizes[letter] for letter in order[1:]),
        tuple(bias.get(letter, 1) for letter in made),
        tuple(order.index(letter) for letter in y),
    )


def einsum_letters(equation, rank):
    """The three terms of an equation as strings, with letters in the stead of an ellipsis."""
    x, rest = equation.replace(" ", "").split(",")
    w, y = rest.split("->")
    free = (letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation)
    dots = "".join(letter for letter, _ in zip(free, range(rank - len(x.replace("...", "")))))
    return x.replace("...", dots), w, y.replace("...", dots)


def embedding(builder, node):
    """Rows of a table by their numbers: the table in integers, what is read in floating point."""
    layer, source, target = node.layer, node.inputs[0], node.outputs[0]
    ids, count = builder.values[source], layer.input_dim
    precision = builder.precision.weights[node.path]["embeddings"]
    if source in builder.graph.inputs:
        key = f"a{source}"
        builder.vocabulary[key] = min(builder.vocabulary.get(key, count), count)
    if node.path not in builder.layers:
        weights = StoredWeights.of(node.path, "embeddings", LOOKED_UP, precision)
        builder.weights[node.path] = weights
        builder.layers[node.path] = Lookup(weights.values)
    flat = keras.ops.reshape(keras.ops.cast(ids, "int32"), (-1,))
    rows = builder.layers[node.path](flat)
    value = keras.ops.reshape(rows, (-1, *ids.shape[1:], layer.output_dim))
    builder.emit(target, value, floating=True)


class Lookup(keras.layers.Layer):
    """Keras's own lookup lets numbers count from the end, which takes three operators more."""

    def __init__(self, table):
        super().__init__()
        self.table = self.add_weight(name="table", shape=table.shape, initializer="zeros")
        self.table.assign(table)

    def call(self, ids):
        return tf.gather(self.table, ids)

    def compute_output_shape(self, shape):
        return (*shape, self.table.shape[-1])


def _bias_shape(layer):
    return () if layer.bias is None else tuple(layer.bias.shape)


def _rows(builder, node, entering, kernel_order, left, bias_shape, leaving):
    """A product of rows with a matrix.

    Args:
        builder, node: As ever.
        entering: Order of the input's axes in which those that are summed over come last.
        kernel_order: Order of the kernel's axes in which they come first.
        left: Shape of the result without the batch, the axes that the kernel makes last.
        bias_shape: Shape of the layer's bias along these.
        leaving: Order of the result's axes in the layer's output.
    """
    path = node.path
    kernel, step, bias = _of(builder, node)
    value = builder.values[node.inputs[0]]
    units = math.prod(left[len(left) - len(bias_shape) :])
    width = kernel.size // units
    rank = len(value.shape)
    if entering != tuple(range(rank)):
        value = keras.ops.transpose(value, entering)
    flat = rank == 2 and value.shape[1] == width
    if not flat:
        value = keras.ops.reshape(value, (-1, width))
    if path not in builder.layers:
        double = keras.layers.Dense(units)
        double.build((None, width))
        kernel, step = (
            np.broadcast_to(array, kernel.shape).transpose(kernel_order).reshape(width, units)
            for array in (kernel, step)
        )
        if bias is not None:
            made = left[len(left) - len(bias_shape) :]
            bias = np.broadcast_to(bias.reshape(bias_shape), made).ravel()
        _fill(builder, node, double, folding.FULLY_CONNECTED, kernel, step, bias)

    def restored(x):
        if len(left) > 1 or not flat:
            x = keras.ops.reshape(x, (-1, *left))
        return keras.ops.transpose(x, leaving) if leaving != tuple(range(len(leaving))) else x

    _finish(builder, node, builder.layers[path](value), restored)


def _of(builder, node):
    """Integers, steps and float bias of a node's kernel."""
    (variable,) = builder.precision.weights[node.path]
    precision = builder.precision.weights[node.path][variable]
    layer = node.layer
    bias = getattr(layer, "bias", None)
    bias = None if bias is None else keras.ops.convert_to_numpy(bias)
    step = np.broadcast_to(np.asarray(precision.step), precision.integers.shape)
    return np.asarray(precision.integers), step, bias


def _fill(builder, node, double, kind, integers, step, bias):
    """Gives a fresh layer its kernel and bias, with what follows the node folded in."""
    (variable,) = builder.precision.weights[node.path]
    follower = builder.folded_after(node.path)
    precision = WeightPrecision(
        integers=integers,
        step=step,
        bit_width=builder.precision.weights[node.path][variable].bit_width,
    )
    channels = double.bias.shape[0]
    weights = folding.fold_weights(
        node.path,
        variable,
        kind,
        precision,
        bias,
        None if follower is None else folding.following_affine(follower, channels),
        builder.input_step(node.inputs[0]),
    )
    double.kernel.assign(folding.keras_kernel(weights, double.kernel.shape))
    double.bias.assign(weights.bias)
    builder.weights[node.path] = weights
    builder.layers[node.path] = double


def _as_image(layer, value):
    """A signal as an image of height 1, padded where the layer looks back in time."""
    value = keras.ops.reshape(value, (-1, 1, *value.shape[1:]))
    if layer.padding == "causal":
        behind = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        value = keras.layers.ZeroPadding2D(((0, 0), (behind, 0)))(value)
    return value


def _equivalent_layer(layer, kind, signal):
    """A fresh layer for images that computes what a layer does, without activation."""
    padding = "valid" if layer.padding == "causal" else layer.padding

    def two(numbers):
        return (1, *numbers) if signal else tuple(numbers)

    common = {
        "kernel_size": two(layer.kernel_size),
        "strides": two(layer.strides),
        "padding": padding,
        "dilation_rate": two(layer.dilation_rate),
    }
    if kind == folding.DEPTHWISE:
        # The height of 1 is left as it is by any stride, and kernels want equal ones.
        strides = layer.strides * 2 if signal else layer.strides
        return keras.layers.DepthwiseConv2D(
            **common | {"strides": strides}, depth_multiplier=layer.depth_multiplier
        )
    if kind == folding.TRANSPOSED:
        extra = layer.output_padding
        if extra is not None and signal:
            extra = (0, *([extra] if isinstance(extra, int) else extra))
        return keras.layers.Conv2DTranspose(layer.filters, output_padding=extra, **common)
    return keras.layers.Conv2D(layer.filters, **common)


def _finish(builder, node, value, restored):
    """Ends a node with its relu, which the kernel fuses, and gives the value its shape back."""
    value = restored(elementwise.fused(node.layer.activation, value))
    if node.path in builder.folded_sites.values():
        builder.values[node.outputs[0]] = value  # What is folded in emits the tensor.
    else:
        builder.emit(node.outputs[0], value)
