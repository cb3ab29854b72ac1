"""Lowers activations, batch norms and other per-channel maps, and arithmetic."""

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf.errors import FloatOnly, UnsupportedLayerError
from dqmq_tf.graph import Node
from dqmq_tf.graph.activations import grid_ceiling, is_relu
from dqmq_tf.graph.cloning import clone_layer
from dqmq_tf.graph.constant_maps import Affine, constant_map
from dqmq_tf.graph.plain_classes import keras_name
from dqmq_tf.lowering import folding
from dqmq_tf.lowering.builder import Lowering, LoweringBuilder
from dqmq_tf.precision import INT16_BITS, ActivationPrecision

# Activations that TFLite fuses into the operator before them. Its result is rounded only after the
# activation.
_FUSED = ("linear", "relu", "relu6")
# Activations for which TFLite has a separate integer operator.
_STANDALONE = ("relu", "softmax", "sigmoid", "tanh", "hard_silu", "gelu", "leaky_relu")
# Images with fewer channels than this, and at least so many positions, are convolved several columns
# at once: as many as there are with no more channels than this side by side (measured on x86-64).
_FEW_CHANNELS, _MANY_POSITIONS, _SIDE_BY_SIDE = 8, 1024, 64
_ZERO_TO_ONE = ActivationPrecision(step=1 / 256, zero_point=0, bit_width=8)
_INT16_GRID = ActivationPrecision(step=2.0**-15, zero_point=2**15, bit_width=INT16_BITS)
# Activations whose integer kernels support only one quantization of the output.
_FIXED_GRIDS = {
    "softmax": _ZERO_TO_ONE,
    "sigmoid": _ZERO_TO_ONE,
    "tanh": ActivationPrecision(step=1 / 128, zero_point=128, bit_width=8),
}


def activation_name(function: Any) -> str | None:
    """Returns the name of an activation function.

    Args:
        function: A function of `keras.activations`, or any other callable. None for the identity.

    Returns:
        The name, such as `"relu"`. None if no integer kernel computes the function.
    """
    if function is None:
        return "linear"
    for name in dict.fromkeys((*_FUSED, *_STANDALONE, "silu")):
        if function is keras.activations.get(name):
            return name
    return None


def check_fused(function: Any) -> None:
    """Raises `FloatOnly` for an activation function that TFLite cannot fuse."""
    if activation_name(function) not in _FUSED:
        raise FloatOnly(f"its kernel does not fuse activation {_label(function)!r}")


def apply_fused(function: Any, value: Any) -> Any:
    """Applies an activation function that TFLite fuses into the operator that computes `value`."""
    name = activation_name(function)
    return value if name == "linear" else keras.layers.Activation(name)(value)


def check_data_format(node: Node) -> None:
    """Rejects `data_format="channels_first"`, which no runtime supports."""
    if getattr(node.layer, "data_format", None) == "channels_first":
        raise UnsupportedLayerError(
            node.path,
            f"{type(node.layer).__name__}: data_format='channels_first'",
            "Use channels_last.",
        )


def activation(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `Activation`."""
    _lower_activation(builder, node, node.layer.activation)


def activation_function(name: str) -> Lowering:
    """Returns the function that lowers a call of an activation, such as `keras.ops.relu(x)`."""
    return lambda builder, node: _lower_activation(builder, node, keras.activations.get(name))


def relu(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `ReLU`."""
    layer = node.layer
    ceiling = grid_ceiling(layer)
    if ceiling is not None and _ends_at(builder, node, ceiling):
        _lower_activation(builder, node, keras.activations.relu)
    elif is_relu(layer) and ceiling is None:
        name = "relu" if layer.max_value is None else "relu6"
        _lower_activation(builder, node, keras.activations.get(name))
    elif layer.max_value is None and not layer.threshold:
        _lower_leaky_relu(builder, node, layer.negative_slope)
    else:
        raise FloatOnly(
            f"a ReLU with max_value={layer.max_value} and threshold={layer.threshold} has no "
            "integer kernel"
        )


def _ends_at(builder: LoweringBuilder, node: Node, ceiling: float) -> bool:
    """Returns whether the grid of a relu's output ends at its ceiling, so that it clips there."""
    grid = builder.precision.activations.get(node.outputs[0])
    if grid is None:
        return False
    largest = grid.step * (2**grid.bit_width - 1 - grid.zero_point)
    # The step is the float32 next to a fraction of the ceiling.
    return abs(largest - ceiling) <= 1e-6 * ceiling


def leaky_relu(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `LeakyReLU`."""
    _lower_leaky_relu(builder, node, node.layer.negative_slope)


def softmax(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `Softmax`."""
    check_no_mask(node)
    rank = len(builder.values[node.inputs[0]].shape)
    if node.layer.axis not in (-1, rank - 1):
        raise FloatOnly(
            f"the integer kernel of softmax is for the last axis, not {node.layer.axis}"
        )
    _lower_activation(builder, node, keras.activations.softmax)


def batch_norm(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `BatchNormalization`.

    A batch norm that is folded is already part of the weights of the layer before it (see
    `linear._set_folded_weights`). Any other becomes a depthwise convolution.
    """
    if node.path in builder.graph.folds:
        builder.emit(node.outputs[0], builder.values[node.inputs[0]])
        return
    rank = len(builder.values[node.inputs[0]].shape)
    if node.layer.axis not in (-1, rank - 1):
        raise FloatOnly(f"it normalizes axis {node.layer.axis}, but channels are the last axis")
    _lower_affine(builder, node, "gamma", folding.batch_norm_affine(node.layer))


def rescaling(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `Rescaling`, in the same two ways as `batch_norm`."""
    if node.path in builder.graph.folds:
        builder.emit(node.outputs[0], builder.values[node.inputs[0]])
        return
    _lower_affine(builder, node, "scale", constant_map(builder.graph, node))


def normalization(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `Normalization` of the last axis, or of all axes by one mean and variance."""
    _lower_affine(builder, node, "variance", constant_map(builder.graph, node))


def compute_values(builder: LoweringBuilder, node: Node) -> None:
    """Lowers a layer without weights whose output has a quantization of its own."""
    check_data_format(node)
    check_no_constants(builder, node)
    builder.emit(node.outputs[0], call_copy(builder, node))


def check_no_constants(builder: LoweringBuilder, node: Node) -> None:
    """Raises `FloatOnly` if an operand is a constant tensor, which has no quantization."""
    for operand in keras.tree.flatten(node.arguments(builder.values)):
        if keras.ops.is_tensor(operand) or isinstance(operand, np.ndarray):
            raise FloatOnly("one of its operands is a constant tensor")


def check_no_mask(node: Node) -> None:
    """Raises `FloatOnly` if a call gets a mask, which no integer kernel reads."""
    args, kwargs = node.arguments(dict.fromkeys(node.inputs, True))
    if any(argument is not None for argument in (*args[1:], kwargs.get("mask"))):
        raise FloatOnly("it gets a mask")


def product(builder: LoweringBuilder, node: Node) -> None:
    """Lowers a matrix product of two tensors."""
    if len(node.inputs) != 2:
        raise FloatOnly("one of its operands is a constant")
    compute_values(builder, node)


def arithmetic(builder: LoweringBuilder, node: Node) -> None:
    """Lowers an operator of two tensors, or of a tensor and a constant of each channel."""
    if len(node.inputs) == 2:
        compute_values(builder, node)
    else:
        _lower_affine(builder, node, "constant", constant_map(builder.graph, node))


def call_copy(builder: LoweringBuilder, node: Node) -> Any:
    """Calls a copy of a layer without weights, or an operation, on the lowered inputs.

    Args:
        builder: The `LoweringBuilder`.
        node: The node of the layer or operation.

    Returns:
        The KerasTensor of the output.
    """
    args, kwargs = node.arguments(builder.values)
    layer = node.layer
    if isinstance(layer, keras.layers.Layer):
        config = {k: v for k, v in layer.get_config().items() if k not in ("name", "dtype")}
        layer = type(layer).from_config(config)
    return call(layer, args, kwargs)


def call(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls a layer or an operation of `keras.ops`.

    For a batch of one, `keras.ops.add` takes a tensor `[1, n, 1]` for the bias of n channels, in a
    layout that TensorFlow's converter does not support. `_Sum` adds such tensors.
    """
    operands = keras.tree.flatten((args, kwargs))
    if (
        keras_name(layer) == "Add"
        and all(keras.backend.is_keras_tensor(operand) for operand in operands)
        and any(len(operand.shape) > 2 and operand.shape[-1] == 1 for operand in operands)
    ):
        return _Sum()(operands)
    if not isinstance(layer, keras.layers.Layer):
        # Functions in two models inside the model may have the same name.
        layer = clone_layer(layer, name=f"{layer.name}_lowered_{keras.backend.get_uid('lowered')}")
    return layer(*args, **kwargs)


class _Sum(keras.layers.Layer):
    """Adds tensors."""

    def call(self, operands: list[Any]) -> Any:
        return functools.reduce(tf.add, operands)


def _lower_activation(builder: LoweringBuilder, node: Node, function: Any) -> None:
    """Lowers a node that applies an activation function."""
    source, target = node.inputs[0], node.outputs[0]
    name, value = activation_name(function), builder.values[source]
    if name == "linear":
        builder.forward(target, source)
    elif name == "silu":
        # TFLite has no kernel for silu: it becomes x * sigmoid(x).
        fixed = _INT16_GRID if builder.runs_in_int16(node) else _ZERO_TO_ONE
        gate = builder.emit(target, keras.ops.sigmoid(value), inner=True, fixed=fixed)
        builder.emit(target, value * gate)
    elif name in _STANDALONE or name == "relu6" and builder.is_fused(source):
        grid = _FIXED_GRIDS.get(name)
        if grid is not None and builder.has_16_bits(target):
            grid = _INT16_GRID
        builder.emit(target, keras.layers.Activation(function)(value), fixed=grid)
    else:
        raise FloatOnly(f"activation {_label(function)!r} has no integer kernel in every runtime")


def _lower_leaky_relu(builder: LoweringBuilder, node: Node, slope: float) -> None:
    layer = keras.layers.LeakyReLU(slope)
    builder.emit(node.outputs[0], layer(builder.values[node.inputs[0]]))


def _lower_affine(builder: LoweringBuilder, node: Node, variable: str, affine: Affine) -> None:
    """Lowers a per-channel map to a depthwise convolution of 1 x 1, which is exact.

    Args:
        builder: The `LoweringBuilder`, changed in place.
        node: The node of the map.
        variable: The name under which reports list the weights.
        affine: The map, over the last axis.
    """
    source, target = node.inputs[0], node.outputs[0]
    value = builder.values[source]
    shape = value.shape[1:]
    if len(shape) > 3:
        raise FloatOnly(f"no runtime convolves a tensor of rank {len(shape) + 1}")
    columns = _columns_as_channels(shape) if builder.graph.calls[node.path] == 1 else 1
    image_shape = (*(1,) * (3 - len(shape)), *shape)
    if columns > 1:
        image_shape = (shape[0], shape[1] // columns, columns * shape[2])
    is_reshaped = image_shape != shape
    image = keras.ops.reshape(value, (-1, *image_shape)) if is_reshaped else value
    if node.path not in builder.layers:
        affine = Affine(np.tile(affine.multiplier, columns), np.tile(affine.offset, columns))
        weights = builder.distinct(
            folding.affine_weights(
                node.path, variable, affine, builder.input_step(source), builder.runs_in_int16(node)
            )
        )
        layer = keras.layers.DepthwiseConv2D(1)
        layer.build((None, 1, 1, image_shape[-1]))
        layer.kernel.assign(weights.values.reshape(layer.kernel.shape))
        layer.bias.assign(weights.bias)
        builder.layers[node.path] = layer
        builder.weights[node.path] = weights
    result = builder.layers[node.path](image)
    if is_reshaped:
        result = keras.ops.reshape(result, (-1, *shape))
    builder.emit(target, result)


def _columns_as_channels(shape: tuple[int, ...]) -> int:
    """Returns how many columns of an image one convolution of single positions takes as channels.

    Kernels compute many channels at once. Of an image they would compute only three, and a rescaling
    would take longer than the convolution behind it.

    Args:
        shape: The shape without the batch.
    """
    if len(shape) != 3 or shape[2] >= _FEW_CHANNELS or shape[0] * shape[1] < _MANY_POSITIONS:
        return 1
    possible = range(1, max(_SIDE_BY_SIDE // shape[2], 1) + 1)
    return max(n for n in possible if shape[1] % n == 0)


def _label(function: Any) -> Any:
    """Returns what messages call an activation function."""
    return getattr(function, "__name__", function)
