"""Activations and per-channel maps on the integer road."""

import keras
import numpy as np

from dqmq_tf.errors import FloatOnly, UnsupportedLayerError
from dqmq_tf.lowering import folding
from dqmq_tf.precision import ActivationPrecision

# Fused into the operator before them; the tensor in front is never rounded.
_FUSED = ("linear", "relu", "relu6")
_LONE = ("relu", "softmax", "sigmoid", "tanh", "hard_silu", "gelu", "leaky_relu")
_UNIT = ActivationPrecision(step=1 / 256, zero_point=0, bit_width=8)
# Their kernels write one grid.
_FIXED_GRIDS = {
    "softmax": _UNIT,
    "sigmoid": _UNIT,
    "tanh": ActivationPrecision(step=1 / 128, zero_point=128, bit_width=8),
}


def activation_name(function):
    """Name of an activation function of Keras, or None for any other callable."""
    if function is None:
        return "linear"
    for name in dict.fromkeys((*_FUSED, *_LONE, "silu")):
        if function is keras.activations.get(name):
            return name
    return None


def check_fused(function):
    """Refuses an activation that no kernel fuses."""
    if activation_name(function) not in _FUSED:
        raise FloatOnly(f"its kernel does not fuse activation {_label(function)!r}")


def fused(function, value):
    """A value behind an activation that its kernel fuses."""
    name = activation_name(function)
    return value if name == "linear" else keras.layers.Activation(name)(value)


def check_data_format(node):
    """Refuses channels first, which no runtime knows."""
    if getattr(node.layer, "data_format", "channels_last") != "channels_last":
        raise UnsupportedLayerError(
            node.path,
            f"{type(node.layer).__name__}: data_format='channels_first'",
            "Use channels_last.",
        )


def activation(builder, node):
    """`Activation`."""
    apply(builder, node, node.layer.activation)


def apply(builder, node, function):
    """An activation that is a layer of its own."""
    source, target = node.inputs[0], node.outputs[0]
    name, value = activation_name(function), builder.values[source]
    if name == "linear":
        builder.forward(target, source)
    elif name == "silu":
        gate = builder.emit(target, keras.ops.sigmoid(value), inner=True, fixed=_UNIT)
        builder.emit(target, value * gate)
    elif name in _LONE or name == "relu6" and builder.is_fused(source):
        builder.emit(target, keras.layers.Activation(function)(value), fixed=_FIXED_GRIDS.get(name))
    else:
        raise FloatOnly(f"activation {_label(function)!r} has no integer kernel in every runtime")


def relu(builder, node):
    """`ReLU`."""
    layer = node.layer
    if not layer.negative_slope and not layer.threshold and layer.max_value in (None, 6):
        apply(builder, node, keras.activations.get("relu" if layer.max_value is None else "relu6"))
    elif layer.max_value is None and not layer.threshold:
        _leaky(builder, node, layer.negative_slope)
    else:
        raise FloatOnly(
            f"a ReLU with max_value={layer.max_value} and threshold={layer.threshold} has no "
            "integer kernel"
        )


def leaky_relu(builder, node):
    """`LeakyReLU`."""
    _leaky(builder, node, node.layer.negative_slope)


def softmax(builder, node):
    """`Softmax`."""
    rank = len(builder.values[node.inputs[0]].shape)
    if node.layer.axis not in (-1, rank - 1):
        raise FloatOnly(
            f"the integer kernel of softmax is for the last axis, not {node.layer.axis}"
        )
    apply(builder, node, keras.activations.softmax)


def function(name):
    """Lowering of an activation that is called as a function, such as `keras.ops.relu(x)`."""
    return lambda builder, node: apply(builder, node, keras.activations.get(name))


def batch_norm(builder, node):
    """`BatchNormalization`, folded into the layer before it or alone."""
    if node.path in builder.folded_sites:
        builder.emit(node.outputs[0], builder.values[node.inputs[0]])
        return
    rank = len(builder.values[node.inputs[0]].shape)
    if node.layer.axis not in (-1, rank - 1):
        raise FloatOnly(f"it normalizes axis {node.layer.axis}, and channels are the last")
    _affine(builder, node, "gamma", folding.batch_norm_affine(node.layer))


def rescaling(builder, node):
    """`Rescaling`, folded into the layer before it or alone."""
    if node.path in builder.folded_sites:
        builder.emit(node.outputs[0], builder.values[node.inputs[0]])
        return
    channels = builder.values[node.inputs[0]].shape[-1]
    _affine(builder, node, "scale", folding.following_affine(node.layer, channels))


def computed(builder, node):
    """A layer without weights whose output has a quantization of its own."""
    check_data_format(node)
    builder.emit(node.outputs[0], call_again(builder, node))


def product(builder, node):
    """A matrix product of two tensors."""
    if len(node.inputs) != 2:
        raise FloatOnly("one of its operands is a constant")
    computed(builder, node)


def arithmetic(multiplier, offset):
    """Lowering of an operator between two tensors, or a tensor and a number.

    Args:
        multiplier, offset: Functions of the number, and of whether it comes first, that give the
            map which the operator is.
    """

    def lowering(builder, node):
        if len(node.inputs) == 2:
            computed(builder, node)
            return
        args, kwargs = node.arguments(builder.values)
        operands = [*args, *kwargs.values()]
        numbers = [i for i, operand in enumerate(operands) if np.ndim(operand) == 0]
        if len(operands) != 2 or len(numbers) != 1:
            raise FloatOnly("one of its operands is a constant tensor")
        (place,) = numbers
        number = float(operands[place])
        channels = builder.values[node.inputs[0]].shape[-1]
        affine = folding.Affine(
            np.full(channels, multiplier(number, place == 0)),
            np.full(channels, offset(number, place == 0)),
        )
        _affine(builder, node, "constant", affine)

    return lowering


def call_again(builder, node):
    """The value of a layer without weights, or an operation, called once more."""
    args, kwargs = node.arguments(builder.values)
    layer = node.layer
    if isinstance(layer, keras.layers.Layer):
        config = {k: v for k, v in layer.get_config().items() if k not in ("name", "dtype")}
        layer = type(layer).from_config(config)
    return layer(*args, **kwargs)


def _leaky(builder, node, slope):
    layer = keras.layers.LeakyReLU(slope)
    builder.emit(node.outputs[0], layer(builder.values[node.inputs[0]]))


def normalization(builder, node):
    """`Normalization` of the last axis, whose mean and variance are adapted to data or given."""
    layer = node.layer
    rank = len(builder.values[node.inputs[0]].shape)
    if tuple(axis % rank for axis in layer.axis) not in ((), (rank - 1,)) or layer.invert:
        raise FloatOnly("it normalizes other axes than the last, or inverts a normalization")
    channels = builder.values[node.inputs[0]].shape[-1]
    mean, variance = (
        np.broadcast_to(keras.ops.convert_to_numpy(value).astype(np.float64).ravel(), (channels,))
        for value in (layer.mean, layer.variance)
    )
    multiplier = 1 / np.maximum(np.sqrt(variance), keras.config.epsilon())
    _affine(builder, node, "variance", folding.Affine(multiplier, -mean * multiplier))


def _affine(builder, node, variable, affine):
    """A lone per-channel map: a depthwise convolution of 1 x 1, which rounds nothing."""
    source, target = node.inputs[0], node.outputs[0]
    value = builder.values[source]
    rank = len(value.shape)
    if rank > 4:
        raise FloatOnly(f"no runtime convolves a tensor of rank {rank}")
    image = value
    if rank < 4:
        image = keras.ops.reshape(value, (-1, *(1,) * (4 - rank), *value.shape[1:]))
    if node.path not in builder.layers:
        weights = folding.affine_weights(node.path, variable, affine, builder.input_step(source))
        layer = keras.layers.DepthwiseConv2D(1)
        layer.build((None, 1, 1, value.shape[-1]))
        layer.kernel.assign(weights.values.reshape(layer.kernel.shape))
        layer.bias.assign(weights.bias)
        builder.layers[node.path] = layer
        builder.weights[node.path] = weights
    result = builder.layers[node.path](image)
    if rank < 4:
        result = keras.ops.reshape(result, (-1, *value.shape[1:]))
    builder.emit(target, result)


def _label(activation):
    return getattr(activation, "__name__", activation)
