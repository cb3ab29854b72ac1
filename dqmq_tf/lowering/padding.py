"""Lowers zero padding, which the convolution after it does itself where it can.

Networks made for several frameworks pad images before a convolution with `padding="valid"`. With
`padding="same"` the kernel pads, so the file has an operator and a tensor less.
"""

import keras

from dqmq_tf.errors import FloatOnly
from dqmq_tf.graph import Graph, Node
from dqmq_tf.lowering import linear
from dqmq_tf.lowering.builder import Lowering, LoweringBuilder
from dqmq_tf.lowering.elementwise import check_data_format

# Subclasses may compute something else.
_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)


def zero_padding(lower: Lowering) -> Lowering:
    """Returns the function that lowers a layer of zero padding.

    Args:
        lower: What lowers it to an operator.
    """

    def lower_or_absorb(builder: LoweringBuilder, node: Node) -> None:
        check_data_format(node)
        (source,), (target,) = node.inputs, node.outputs
        reader = _only_reader(builder.graph, target)
        if reader is None or not _pads_alike(builder.graph, node, reader):
            lower(builder, node)
        elif _is_float(builder, source, reader):
            lower(builder, node)
        else:
            builder.padded[target] = source

    return lower_or_absorb


def _only_reader(graph: Graph, tensor: int) -> Node | None:
    """Returns the convolution that alone reads a tensor, and is called once. None without one."""
    readers = graph.consumers.get(tensor, [])
    # Another layer of padding may compute the same tensor.
    is_shared = tensor in graph.outputs or tensor in graph.aliases.values()
    if len(readers) != 1 or is_shared:
        return None
    (reader,) = readers
    is_single = type(reader.layer) in _CONVOLUTIONS and graph.calls[reader.path] == 1
    return reader if is_single else None


def _pads_alike(graph: Graph, node: Node, reader: Node) -> bool:
    """Whether a convolution with `padding="same"` pads its input as a node does."""
    layer, sizes = reader.layer, [n or 0 for n in graph.shapes[node.inputs[0]][1:-1]]
    if layer.padding != "valid" or set(layer.dilation_rate) != {1}:
        return False
    padding = node.layer.padding
    padding = (padding,) if len(sizes) == 1 else padding
    totals = [
        max((-(-size // stride) - 1) * stride + window - size, 0)
        for size, stride, window in zip(sizes, layer.strides, layer.kernel_size)
    ]
    return [tuple(ends) for ends in padding] == [(n // 2, n - n // 2) for n in totals]


def _is_float(builder: LoweringBuilder, source: int, reader: Node) -> bool:
    """Whether a padded tensor or the convolution that reads it is in floating point."""
    try:
        linear.check_convolution(reader)
    except FloatOnly:
        return True
    return builder.is_float(source) or builder.float_reason(reader) is not None
