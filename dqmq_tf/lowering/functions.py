"""Lowers functions of `keras.ops` to the integer kernels of the layers that do the same.

A function that has no such layer, such as `keras.ops.flip`, becomes slices and concatenations.
"""

import itertools
import math
from collections.abc import Sequence

import keras
import numpy as np

from dqmq_tf.errors import FloatOnly
from dqmq_tf.graph import Node
from dqmq_tf.graph.fusion import is_global_average, moves_values, pool_size
from dqmq_tf.lowering.builder import Lowering, LoweringBuilder
from dqmq_tf.lowering.data_movement import emit_reshaped, global_max, move_values
from dqmq_tf.lowering.elementwise import check_data_format, check_no_constants, compute_values

# A file holds one input of a CONCATENATION, 4 bytes, for each copy.
_MOST_COPIES = 64
_BATCH_AXIS = "it works along the batch axis"


def along_axis(lower_function: Lowering) -> Lowering:
    """Returns the function that lowers an operation along one axis, unless that is the batch axis.

    Args:
        lower_function: Lowers the operation along any other axis.
    """

    def lower(builder: LoweringBuilder, node: Node) -> None:
        axis, shapes = node.layer.axis, builder.graph.shapes
        # The axis counts in the shape before `unstack`, and in the shape after `stack`.
        rank = max(len(shapes[tensor]) for tensor in (node.inputs[0], node.outputs[0]))
        if axis is None or axis % rank == 0:
            raise FloatOnly(_BATCH_AXIS)
        lower_function(builder, node)

    return lower


def get_item(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `x[...]` with integers and slices."""
    args, kwargs = node.arguments(builder.values)
    key = args[1] if len(args) > 1 else kwargs["key"]
    key = key if isinstance(key, (list, tuple)) else (key,)
    if not all(k is None or k is Ellipsis or isinstance(k, (int, slice)) for k in key):
        raise FloatOnly("it selects by more than integers and slices")
    # TFLite Micro supports neither new axes nor an ellipsis: a reshape adds the axes.
    value, parts = builder.values[node.inputs[0]], [k for k in key if k is not None]
    if Ellipsis in parts:
        position, missing = parts.index(Ellipsis), len(value.shape) - len(parts) + 1
        parts[position : position + 1] = [slice(None)] * missing
    emit_reshaped(builder, node, value[tuple(parts)])


def split(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `split` and `unstack` to slices.

    XNNPACK rejects a SPLIT operator with an output that nothing reads.
    """
    value, axis = builder.values[node.inputs[0]], node.layer.axis
    axis %= len(value.shape)
    is_unstack = type(node.layer).__name__ == "Unstack"
    start = 0
    for tensor in node.outputs:
        size = 1 if is_unstack else builder.graph.shapes[tensor][axis] or 0
        key: int | slice = start if is_unstack else slice(start, start + size)
        start += size
        if builder.is_read(tensor):
            part = value[(*(slice(None),) * axis, key)]
            builder.emit(tensor, part, like=node.inputs[0])


def stack(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `stack` to a concatenation along a new axis, which can rescale its inputs."""
    check_no_constants(builder, node)
    axis = node.layer.axis % len(builder.graph.shapes[node.outputs[0]])
    values = [keras.ops.expand_dims(builder.values[t], axis) for t in node.inputs]
    builder.emit(node.outputs[0], keras.ops.concatenate(values, axis))


def hstack(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `hstack`, a concatenation along axis 1, or along the only axis."""
    if len(builder.graph.shapes[node.outputs[0]]) < 2:
        raise FloatOnly(_BATCH_AXIS)
    compute_values(builder, node)


def take(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `take` with constant indices along an axis to a GATHER operator."""
    args, kwargs = node.arguments(builder.values)
    values, indices = [*args, *kwargs.values()]
    if not keras.backend.is_keras_tensor(values) or keras.backend.is_keras_tensor(indices):
        raise FloatOnly("it selects by indices that the model computes")
    axis = node.layer.axis % len(values.shape)
    # TFLite Micro reads int32 indices only.
    positions = np.asarray(keras.ops.convert_to_numpy(indices), np.int32) % values.shape[axis]
    result = keras.ops.take(values, positions.astype(np.int32), axis=axis)
    builder.emit(node.outputs[0], result, like=node.inputs[0])


def flip(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `flip` to a slice with a negative step."""
    value = builder.values[node.inputs[0]]
    axes = _positive_axes(node.layer.axis, len(value.shape))
    key = tuple(
        slice(None, None, -1) if axis in axes else slice(None) for axis in range(len(value.shape))
    )
    builder.emit(node.outputs[0], value[key], like=node.inputs[0])


def repeat(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `RepeatVector`, `repeat` and `tile` to concatenations.

    The TILE operator has no int8 kernel.
    """
    value, layer = builder.values[node.inputs[0]], node.layer
    shape = builder.graph.shapes[node.outputs[0]]
    kind = type(layer).__name__
    if kind == "RepeatVector":
        copies, value = {1: layer.n}, keras.ops.expand_dims(value, 1)
    elif kind == "Repeat":
        if not isinstance(layer.repeats, int):
            raise FloatOnly("it repeats some values more often than others")
        axis = layer.axis % len(value.shape)
        copies, value = {axis + 1: layer.repeats}, keras.ops.expand_dims(value, axis + 1)
    else:
        repeats = [layer.repeats] if isinstance(layer.repeats, int) else list(layer.repeats)
        first_axis = len(value.shape) - len(repeats)
        copies = {first_axis + i: count for i, count in enumerate(repeats) if count > 1}
    if min(copies, default=1) < 1:
        raise FloatOnly(_BATCH_AXIS)
    for axis, count in copies.items():
        if count > _MOST_COPIES:
            raise FloatOnly(f"it makes {count} copies, more than {_MOST_COPIES}")
        if count > 1:
            value = keras.ops.concatenate([value] * count, axis)
    if tuple(value.shape[1:]) != tuple(shape[1:]):
        value = keras.ops.reshape(value, (-1, *shape[1:]))
    builder.emit(node.outputs[0], value, like=node.inputs[0])


def pad(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `pad` with zeros or with values near the border."""
    if not moves_values(builder.graph, node):
        raise FloatOnly("it pads with another value than 0")
    if len(node.layer.pad_width) < 2 or tuple(node.layer.pad_width[0]) != (0, 0):
        raise FloatOnly("it pads the batch")
    move_values(builder, node)


def pool(image_layer: type[keras.layers.Layer]) -> Lowering:
    """Returns the function that lowers `max_pool` or `average_pool`.

    Args:
        image_layer: The layer that does the same to images. A signal is an image of height 1.
    """

    def lower(builder: LoweringBuilder, node: Node) -> None:
        check_data_format(node)
        layer, value = node.layer, builder.values[node.inputs[0]]
        if is_global_average(builder.graph, node):
            mean_of_image = keras.layers.GlobalAveragePooling2D(keepdims=True)
            builder.emit(node.outputs[0], mean_of_image(value))
            return
        rank = len(value.shape) - 2
        if rank > 2:
            raise FloatOnly("no runtime pools volumes in integers")
        size = pool_size(layer, rank)
        strides = size if layer.strides is None else layer.strides
        strides = (strides,) * rank if isinstance(strides, int) else tuple(strides)
        if rank == 1:
            value, size, strides = keras.ops.expand_dims(value, 1), (1, *size), (1, *strides)
        result = image_layer(size, strides=strides, padding=layer.padding)(value)
        if rank == 1:
            result = keras.ops.squeeze(result, 1)
        builder.emit(node.outputs[0], result, like=node.inputs[0])

    return lower


def mean(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `mean`. The mean over axes of size 1 is a reshape."""
    _positive_axes(node.layer.axis, len(builder.graph.shapes[node.inputs[0]]))
    if is_global_average(builder.graph, node):
        compute_values(builder, node)
    else:
        emit_reshaped(builder, node, builder.values[node.inputs[0]])


def maximum_of_axes(builder: LoweringBuilder, node: Node) -> None:
    """Lowers `max` to max pools, one for each group of neighboring axes."""
    if not moves_values(builder.graph, node):
        raise FloatOnly("it has an initial value")
    value, shape = builder.values[node.inputs[0]], builder.graph.shapes[node.inputs[0]]
    axes = _positive_axes(node.layer.axis, len(shape))
    if axes == list(range(1, len(shape) - 1)) and len(shape) in (3, 4):
        global_max(builder, node)
        return
    sizes = [size or 0 for size in shape[1:]]
    for group in _neighbors(axes):
        before, after = math.prod(sizes[: group[0] - 1]), math.prod(sizes[group[-1] :])
        count = math.prod(sizes[axis - 1] for axis in group)
        for axis in group:
            sizes[axis - 1] = 1
        image = keras.ops.reshape(value, (-1, before, count, after))
        value = keras.layers.MaxPooling2D((1, count))(image)
    emit_reshaped(builder, node, value)


def _positive_axes(axes: int | Sequence[int] | None, rank: int) -> list[int]:
    """Returns the axes of a function in ascending order.

    Args:
        axes: The argument `axis`. None for all axes.
        rank: The rank of the tensor.

    Raises:
        FloatOnly: If the batch axis is among them.
    """
    if axes is None:
        raise FloatOnly(_BATCH_AXIS)
    positive = sorted({axis % rank for axis in ([axes] if isinstance(axes, int) else axes)})
    if 0 in positive:
        raise FloatOnly(_BATCH_AXIS)
    return positive


def _neighbors(axes: Sequence[int]) -> list[list[int]]:
    """Returns ascending axes in groups without gaps."""
    groups = itertools.groupby(enumerate(axes), lambda pair: pair[1] - pair[0])
    return [[axis for _, axis in group] for _, group in groups]
