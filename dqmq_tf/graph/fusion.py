"""Which tensors never exist on a device, and which share one scale.

The rules are those of the int8 kernels in TFLite's quantization specification.
"""

from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from dqmq_tf.graph.activations import is_relu, is_silu
from dqmq_tf.graph.fold_rules import is_foldable
from dqmq_tf.graph.graph import Graph, Node
from dqmq_tf.graph.kernels import is_float
from dqmq_tf.graph.plain_classes import keras_name, plain_class

# A slot is the place where a tensor is computed: the path of the layer, the number of the call and
# the number of the output. The model's inputs have the empty path and the call `INPUT_CALL`.
Slot = tuple[str, int, int]
INPUT_CALL = -1
# Layers and operations by class name, as Keras does not export the classes of its operations.
# These only move or select values:
_EXACT = {
    "Concatenate", "Cropping1D", "Cropping2D", "ExpandDims", "Flatten", "GetItem",
    "GlobalMaxPooling1D", "GlobalMaxPooling2D", "MaxPooling1D", "MaxPooling2D", "Permute",
    "RepeatVector", "Reshape", "Squeeze", "Transpose", "ZeroPadding1D", "ZeroPadding2D",
}  # fmt: skip
# So do these functions, which have quantizers of their own in models of earlier versions (see
# `Graph.functions_share_scales`):
_EXACT_FUNCTIONS = {
    "Amax", "Append", "Flip", "Hstack", "Max", "MaxPool", "Moveaxis", "Pad", "Repeat", "Split",
    "Stack", "Swapaxes", "Take", "Tile", "Unstack",
}  # fmt: skip
_JOINS = {"Append", "Concatenate", "Hstack", "Stack"}
# These compute means of neighboring values, and round them to the scale of their input:
_AVERAGES = {
    "AveragePooling1D", "AveragePooling2D", "Resizing", "UpSampling1D", "UpSampling2D",
}  # fmt: skip
_AVERAGE_FUNCTIONS = {"AveragePool", "Resize"}
# Of these, the kernel of an average pool computes those of neighbors in a window.
_AVERAGE_POOLS = {"AveragePool", "AveragePooling1D", "AveragePooling2D"}
_GLOBAL_AVERAGE = "GlobalAveragePooling"
_FUSES_RELU = {"Add", "Subtract", "Multiply"}


def fused_tensors(graph: Graph) -> set[int]:
    """Returns the tensors that never exist on a device: their only reader is in the same operator.

    Args:
        graph: An inlined `dqmq_tf.graph.Graph` of the float model.

    Returns:
        The ids of these tensors: the output of a convolution before its batch norm or relu, and
        the like. The configuration does not change them.

    Example:

    >>> graph = dqmq_tf.graph.trace(model)
    >>> dqmq_tf.graph.fusion.fused_tensors(graph)
    """
    slots = tensor_slots(graph)
    floats = [t for t in slots if is_float(graph.dtypes[t])]
    fused = {t for t in floats if _is_fused(graph, t)}
    # A layer of a nested model that is called twice has one quantizer: fuse in all calls or none.
    not_fused = {slots[t] for t in floats if t not in fused}
    return {t for t in fused if slots[t] not in not_fused}


def operator_tensors(graph: Graph, node: Node, fused: set[int]) -> list[int]:
    """Returns the tensors that the operator of a layer with weights reads and computes.

    Args:
        graph: An inlined `dqmq_tf.graph.Graph`.
        node: The node of the layer.
        fused: What `fused_tensors` returns.
    """
    result = node.outputs[0]
    while result in fused:
        result = graph.consumers[result][0].outputs[0]
    return [*node.inputs, result]


def tensor_slots(graph: Graph) -> dict[int, Slot]:
    """Returns `{tensor: slot where it is computed}`."""
    slots: dict[int, Slot] = {t: ("", INPUT_CALL, i) for i, t in enumerate(graph.inputs)}
    for node in graph.nodes:
        for i, tensor in enumerate(node.outputs):
            slots[tensor] = (node.path, node.call, i)
    return slots


def shares_scale(graph: Graph, node: Node) -> bool:
    """Whether the outputs of a node have the scale of its inputs: it moves or averages values."""
    kind = keras_name(node.layer)
    is_average = kind in _AVERAGES or kind.startswith(_GLOBAL_AVERAGE)
    if graph.functions_share_scales:
        is_average = is_average or kind in _AVERAGE_FUNCTIONS or kind == "Mean"
    return moves_values(graph, node) or is_average and not is_global_average(graph, node)


def moves_values(graph: Graph, node: Node) -> bool:
    """Whether each value that a node outputs is a value of its inputs, or zero."""
    kind = keras_name(node.layer)
    if kind in _EXACT:
        return True
    if kind not in _EXACT_FUNCTIONS or not graph.functions_share_scales:
        return False
    if kind == "Pad":
        args, kwargs = node.arguments(dict.fromkeys(node.inputs))
        constants = [value for value in (*args, *kwargs.values()) if value is not None]
        return not np.any([np.any(keras.ops.convert_to_numpy(value)) for value in constants])
    return getattr(node.layer, "initial", None) is None


def joins_values(node: Node) -> bool:
    """Whether a node moves the values of all its operands into one tensor."""
    return keras_name(node.layer) in _JOINS


def rounds(node: Node) -> bool:
    """Whether a node that shares the scale of its input computes new values, between the old."""
    return keras_name(node.layer) in _AVERAGES | _AVERAGE_FUNCTIONS


def computes_means(graph: Graph, node: Node) -> bool:
    """Whether the integer kernel of an average pool computes a node, which rounds in its own way."""
    is_pool = keras_name(node.layer) in _AVERAGE_POOLS
    return is_pool and shares_scale(graph, node)


def gated_paths(graph: Graph, quantized: Collection[Slot]) -> set[str]:
    """Returns the paths of silus that integer kernels compute, as `x * sigmoid(x)`.

    The kernel of the sigmoid rounds it to a fixed scale.

    Args:
        graph: An inlined `dqmq_tf.graph.Graph`.
        quantized: The slots of tensors of 8 bits.
    """
    slots = tensor_slots(graph)
    paths: set[str] = set()
    others: set[str] = set()

    def has_grid(tensor: int) -> bool:
        while slots[tensor] not in quantized:
            node = graph.producers.get(tensor)
            if node is None or not shares_scale(graph, node):
                return False
            tensor = node.inputs[0]
        return True

    for node in graph.nodes:
        if is_silu(node.layer):
            is_integer = has_grid(node.inputs[0]) and slots[node.outputs[0]] in quantized
            (paths if is_integer else others).add(node.path)
    return paths - others


def is_global_average(graph: Graph, node: Node) -> bool:
    """Whether a node averages over the whole image: a mean, which has its own scale.

    The values of a mean spread over a fraction of its input's range. With the input's scale, which
    a local average pool must share, only a few integers would be left for them. The mean of a
    single position is that position.
    """
    layer, kind = node.layer, keras_name(node.layer)
    before, after = graph.shapes[node.inputs[0]], graph.shapes[node.outputs[0]]
    if kind == "Mean":
        axes = range(len(before)) if layer.axis is None else layer.axis
        return any(before[axis] != 1 for axis in axes)
    by_name = kind.startswith(_GLOBAL_AVERAGE)
    is_pool = isinstance(layer, keras.layers.AveragePooling2D) or kind == "AveragePool"
    if not by_name and not (is_pool and len(before) == 4):
        return False
    spatial = slice(2, None) if layer.data_format == "channels_first" else slice(1, -1)
    if all(n == 1 for n in before[spatial]):
        return False
    return by_name or after[spatial] == (1, 1) and before[spatial] == pool_size(layer, 2)


def pool_size(layer: Any, rank: int) -> tuple[int, ...]:
    """Returns the size of the window of a pool along each of its `rank` axes."""
    size = layer.pool_size
    return (size,) * rank if isinstance(size, int) else tuple(size)


def _is_fused(graph: Graph, tensor: int) -> bool:
    """Whether the only reader of a tensor is part of the operator that computes it."""
    node, reader = graph.producers.get(tensor), graph.only_reader(tensor)
    if node is None or reader is None:
        return False
    if reader.path in graph.folds:
        return True
    is_affine = (
        is_foldable(node.layer)
        or node.path in graph.folds
        or plain_class(node.layer) is keras.layers.BatchNormalization
    )
    return is_relu(reader.layer) and (is_affine or keras_name(node.layer) in _FUSES_RELU)
