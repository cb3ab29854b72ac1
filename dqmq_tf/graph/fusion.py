"""Which tensors never exist on a device, and which share one scale.

The rules are those of the int8 kernels of TFLite's quantization specification.
"""

import keras

from dqmq_tf.graph.activations import is_relu
from dqmq_tf.graph.fold_rules import is_foldable
from dqmq_tf.graph.kernels import is_float

EXACT = {
    "Concatenate", "Cropping1D", "Cropping2D", "Dropout", "Flatten", "GaussianDropout",
    "GaussianNoise", "GetItem", "GlobalMaxPooling1D", "GlobalMaxPooling2D", "Identity",
    "MaxPooling1D", "MaxPooling2D", "Permute", "RepeatVector", "Reshape", "SpatialDropout1D",
    "SpatialDropout2D", "Squeeze", "Transpose", "ExpandDims", "ZeroPadding1D", "ZeroPadding2D",
    "ActivityRegularization", "AlphaDropout",
}  # fmt: skip
AVERAGES = {
    "AveragePooling1D", "AveragePooling2D", "Resizing", "UpSampling1D", "UpSampling2D",
}  # fmt: skip
_GLOBAL_AVERAGE = "GlobalAveragePooling"
_FUSES_RELU = {"Add", "Subtract", "Multiply"}
INPUT_CALL = -1


def fused_tensors(graph):
    """Returns the tensors that never exist on a device: their only reader is part of the same op.

    Args:
        graph: An inlined `dqmq_tf.graph.Graph` of the float model.

    Returns:
        The set of their ids: what a convolution makes before its batch norm or relu, and the like.
        No configuration has a say in it.

    Example:

    >>> graph = dqmq_tf.graph.trace(model)
    >>> dqmq_tf.graph.fusion.fused_tensors(graph)
    """
    slots = tensor_slots(graph)
    floats = [t for t in slots if is_float(graph.dtypes[t])]
    folds, producers, consumers = graph.folds, graph.producers, graph.consumers
    fused = {t for t in floats if _is_fused(graph, folds, t, producers, consumers)}
    # A layer of a nested model that is called twice has one quantizer: fuse in all calls or none.
    apart = {slots[t] for t in floats if t not in fused}
    return {t for t in fused if slots[t] not in apart}


def tensor_slots(graph):
    """`{tensor: (path, call, output)}` of where it is made."""
    slots = {tensor: ("", INPUT_CALL, i) for i, tensor in enumerate(graph.inputs)}
    for node in graph.nodes:
        for i, tensor in enumerate(node.outputs):
            slots[tensor] = (node.path, node.call, i)
    return slots


def shares_scale(graph, node):
    kind = type(node.layer).__name__
    if kind.startswith(_GLOBAL_AVERAGE):
        return not is_global_average(graph, node)
    if getattr(node.layer, "activation", None) is keras.activations.linear:
        return kind == "Activation"
    return kind in EXACT | AVERAGES and not is_global_average(graph, node)


def rounds(graph, node):
    """Whether a node that shares the scale of its input makes values between those of its input."""
    return type(node.layer).__name__ in AVERAGES


def _is_fused(graph, folds, tensor, producers, consumers):
    """Whether a tensor never exists in an int8 kernel: its only reader is part of the same op."""
    node, readers = producers.get(tensor), consumers.get(tensor, [])
    if node is None or len(readers) != 1 or tensor in graph.outputs:
        return False
    reader = readers[0]
    if reader.path in folds:
        return True
    linear = is_foldable(node.layer) or node.path in folds
    linear = linear or isinstance(node.layer, keras.layers.BatchNormalization)
    return is_relu(reader.layer) and (linear or type(node.layer).__name__ in _FUSES_RELU)


def is_global_average(graph, node):
    """Whether a node averages over the whole image: a mean, which has a scale of its own.

    The values of a mean spread over a fraction of its input's range: sharing the input's scale, as
    a local average pool must, would leave them a handful of integers. The mean of a single position
    is that position.
    """
    by_name = type(node.layer).__name__.startswith(_GLOBAL_AVERAGE)
    if not by_name and not isinstance(node.layer, keras.layers.AveragePooling2D):
        return False
    before, after = graph.shapes[node.inputs[0]], graph.shapes[node.outputs[0]]
    spatial = slice(2, None) if node.layer.data_format == "channels_first" else slice(1, -1)
    if all(n == 1 for n in before[spatial]):
        return False
    return by_name or after[spatial] == (1, 1) and before[spatial] == tuple(node.layer.pool_size)
