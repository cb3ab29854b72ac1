"""Lowers layers that move, select or average values: reshapes, pads, crops, pools, resizes."""

from typing import Any

import keras

from dqmq_tf.errors import FloatOnly, UnsupportedLayerError
from dqmq_tf.graph import Node
from dqmq_tf.graph.fusion import is_global_average
from dqmq_tf.graph.plain_classes import keras_name
from dqmq_tf.lowering.builder import Lowering, LoweringBuilder
from dqmq_tf.lowering.elementwise import (
    call_copy,
    check_data_format,
    check_no_constants,
    check_no_mask,
    compute_values,
)

_INTERPOLATIONS = ("nearest", "bilinear")


def check_interpolation(node: Node) -> None:
    """Rejects a resize that TFLite has no kernel for, not even in floating point."""
    layer = node.layer
    is_layer = isinstance(layer, (keras.layers.Resizing, keras.layers.UpSampling2D))
    if not is_layer and keras_name(layer) != "Resize":
        return
    if getattr(layer, "antialias", False):
        option = "antialias=True"
    elif layer.interpolation not in _INTERPOLATIONS:
        option = f"interpolation={layer.interpolation!r}"
    else:
        return
    raise UnsupportedLayerError(
        node.path,
        f"{type(layer).__name__}: {option}",
        "Use interpolation='bilinear' or 'nearest', without antialias.",
    )


def move_values(builder: LoweringBuilder, node: Node) -> None:
    """Lowers a layer that shares the quantization of its input: it only moves or selects values."""
    check_data_format(node)
    check_no_constants(builder, node)
    builder.emit(node.outputs[0], call_copy(builder, node), like=node.inputs[0])


def as_image_layer(image_layer: type[keras.layers.Layer], *names: str) -> Lowering:
    """Returns the function that lowers a layer of signals to a layer of images of height 1.

    Args:
        image_layer: The class of the layer of images, such as `MaxPooling2D`.
        names: The arguments of the layer of signals that are sizes along the signal. Along the
            height, the layer of images gets 1 for them, or 0 for `padding` and `cropping`.
    """

    def lower(builder: LoweringBuilder, node: Node) -> None:
        check_data_format(node)
        config = node.layer.get_config()
        options: dict[str, Any] = {}
        for name in names:
            size = config[name]
            if name in ("padding", "cropping"):
                options[name] = ((0, 0), tuple(size))
            else:
                options[name] = (1, size[0] if isinstance(size, (list, tuple)) else size)
        # The padding of a pool is a word, which means the same for images.
        if "padding" in config and "padding" not in names:
            options["padding"] = config["padding"]
        value = builder.values[node.inputs[0]]
        image = image_layer(**options)(keras.ops.expand_dims(value, 1))
        builder.emit(node.outputs[0], keras.ops.squeeze(image, 1), like=node.inputs[0])

    return lower


def average(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `AveragePooling2D`; over the whole image it is a mean, with its own scale."""
    if not is_global_average(builder.graph, node):
        move_values(builder, node)
        return
    check_data_format(node)
    pool = keras.layers.GlobalAveragePooling2D(keepdims=True)
    builder.emit(node.outputs[0], pool(builder.values[node.inputs[0]]))


def global_average(builder: LoweringBuilder, node: Node) -> None:
    """Lowers a mean over all positions; the mean of a single position is a reshape."""
    check_no_mask(node)
    if is_global_average(builder.graph, node):
        compute_values(builder, node)
    else:
        emit_reshaped(builder, node, builder.values[node.inputs[0]])


def global_max(builder: LoweringBuilder, node: Node) -> None:
    """Lowers a maximum over all positions to a max pool."""
    check_data_format(node)
    value = builder.values[node.inputs[0]]
    if len(value.shape) == 3:
        value = keras.ops.expand_dims(value, 1)
    emit_reshaped(builder, node, keras.layers.MaxPooling2D(value.shape[1:3], strides=1)(value))


def upsampling(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `UpSampling2D` to a resize, as the TILE that it converts to has no int8 kernel."""
    check_data_format(node)
    height, width = builder.values[node.inputs[0]].shape[1:3]
    size = (height * node.layer.size[0], width * node.layer.size[1])
    _emit_resized(builder, node, size, node.layer.interpolation)


def upsampling_of_signals(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `UpSampling1D` to a resize of an image of height 1."""
    value = keras.ops.expand_dims(builder.values[node.inputs[0]], 1)
    size = (1, value.shape[2] * node.layer.size)
    result = keras.ops.image.resize(value, size, interpolation="nearest")
    builder.emit(node.outputs[0], keras.ops.squeeze(result, 1), like=node.inputs[0])


def resizing(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `Resizing` and `keras.ops.image.resize`."""
    layer = node.layer
    if layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio:
        raise FloatOnly("a resize that crops or pads has no integer kernel")
    check_data_format(node)
    is_function = type(layer).__name__ == "Resize"
    size = layer.size if is_function else (layer.height, layer.width)
    _emit_resized(builder, node, size, layer.interpolation)


def _emit_resized(
    builder: LoweringBuilder, node: Node, size: tuple[int, int], interpolation: str
) -> None:
    """Emits a node's input, resized to `(height, width)`, as its output."""
    value = builder.values[node.inputs[0]]
    result = keras.ops.image.resize(value, size, interpolation=interpolation)
    builder.emit(node.outputs[0], result, like=node.inputs[0])


def emit_reshaped(builder: LoweringBuilder, node: Node, value: Any) -> None:
    """Emits a value, reshaped to the shape of a node's output, as its output."""
    shape = builder.graph.shapes[node.outputs[0]][1:]
    if tuple(value.shape[1:]) != tuple(shape):
        value = keras.ops.reshape(value, (-1, *shape))
    builder.emit(node.outputs[0], value, like=node.inputs[0])
