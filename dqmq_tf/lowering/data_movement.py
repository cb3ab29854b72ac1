"""Layers that move, select or average values on the integer road."""

import keras

from dqmq_tf.errors import FloatOnly, UnsupportedLayerError
from dqmq_tf.graph.fusion import is_global_average
from dqmq_tf.lowering.elementwise import call_again, check_data_format

_RESIZES = ("nearest", "bilinear")


def check_interpolation(node):
    """Refuses a resize that TFLite has in floating point neither."""
    layer = node.layer
    if not isinstance(layer, (keras.layers.Resizing, keras.layers.UpSampling2D)):
        return
    found = f"interpolation={layer.interpolation!r}" if layer.interpolation not in _RESIZES else ""
    if getattr(layer, "antialias", False):
        found = "antialias=True"
    if found:
        raise UnsupportedLayerError(
            node.path,
            f"{type(layer).__name__}: {found}",
            "Use interpolation='bilinear' or 'nearest', without antialias.",
        )


def move_values(builder, node):
    """A layer that only moves or selects values: it keeps the quantization of its input."""
    check_data_format(node)
    builder.emit(node.outputs[0], call_again(builder, node), like=node.inputs[0])


def local(of_images, *names):
    """Lowering of a layer for signals by its twin for images of height 1.

    Args:
        of_images: The twin.
        names: Arguments of the layer that are numbers along the signal; along the height they are 1,
            or 0 for what is added or cut off.
    """

    def function(builder, node):
        check_data_format(node)
        config, beside = node.layer.get_config(), {}
        for name in names:
            value = config[name]
            if name in ("padding", "cropping"):
                beside[name] = ((0, 0), tuple(value))
            else:
                value = value[0] if isinstance(value, (list, tuple)) else value
                beside[name] = (1, value)
        for name in set(config) & {"padding"} - set(names):
            beside[name] = config[name]
        value = builder.values[node.inputs[0]]
        image = of_images(**beside)(keras.ops.expand_dims(value, 1))
        builder.emit(node.outputs[0], keras.ops.squeeze(image, 1), like=node.inputs[0])

    return function


def average(builder, node):
    """A pool over the whole image becomes a mean, which has a scale of its own."""
    if not is_global_average(builder.graph, node):
        return move_values(builder, node)
    check_data_format(node)
    pool = keras.layers.GlobalAveragePooling2D(keepdims=True)
    builder.emit(node.outputs[0], pool(builder.values[node.inputs[0]]))


def global_average(builder, node):
    """A mean over all positions; over one it is that position."""
    if is_global_average(builder.graph, node):
        check_data_format(node)
        builder.emit(node.outputs[0], call_again(builder, node))
        return
    _reshaped(builder, node, builder.values[node.inputs[0]])


def global_max(builder, node):
    """A maximum over all positions: a pool."""
    check_data_format(node)
    value = builder.values[node.inputs[0]]
    if len(value.shape) == 3:
        value = keras.ops.expand_dims(value, 1)
    _reshaped(builder, node, keras.layers.MaxPooling2D(value.shape[1:3], strides=1)(value))


def upsampling(builder, node):
    """`UpSampling2D`: it repeats by TILE, which has no int8 form; a resize is the same."""
    check_data_format(node)
    value = builder.values[node.inputs[0]]
    size = [n * factor for n, factor in zip(value.shape[1:3], node.layer.size)]
    _resized(builder, node, size, node.layer.interpolation)


def upsampling_of_signals(builder, node):
    """`UpSampling1D`."""
    value = keras.ops.expand_dims(builder.values[node.inputs[0]], 1)
    size = (1, value.shape[2] * node.layer.size)
    result = keras.ops.image.resize(value, size, interpolation="nearest")
    builder.emit(node.outputs[0], keras.ops.squeeze(result, 1), like=node.inputs[0])


def resizing(builder, node):
    """`Resizing`."""
    layer = node.layer
    if layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio:
        raise FloatOnly("a resize that crops or pads has no integer kernel")
    check_data_format(node)
    _resized(builder, node, (layer.height, layer.width), layer.interpolation)


def _resized(builder, node, size, interpolation):
    value = builder.values[node.inputs[0]]
    result = keras.ops.image.resize(value, size, interpolation=interpolation)
    builder.emit(node.outputs[0], result, like=node.inputs[0])


def _reshaped(builder, node, value):
    """A value in the shape of the node's output."""
    shape = builder.graph.shapes[node.outputs[0]][1:]
    if tuple(value.shape[1:]) != tuple(shape):
        value = keras.ops.reshape(value, (-1, *shape))
    builder.emit(node.outputs[0], value, like=node.inputs[0])
