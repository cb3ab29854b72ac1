"""Which layers may read and compute activations of 16 bits.

They are those whose operators have an int16 kernel in LiteRT and in TFLite Micro, and which Vela maps
to the NPU. Weights then stay int8, and biases become int64 (TFLite's "16x8").
"""

from collections.abc import Iterable

import keras

from dqmq_tf.graph.fusion import fused_tensors
from dqmq_tf.graph.graph import Graph, Node
from dqmq_tf.graph.kernels import PIXELS, is_linear
from dqmq_tf.graph.plain_classes import keras_name

# Layers and operations by class name, as Keras does not export the classes of its operations.
_LAYERS = {
    "Add", "AveragePooling1D", "AveragePooling2D", "BatchNormalization", "Concatenate",
    "Cropping1D", "Cropping2D", "Flatten", "GlobalAveragePooling1D", "GlobalAveragePooling2D",
    "GlobalMaxPooling1D", "GlobalMaxPooling2D", "LeakyReLU", "MaxPooling1D", "MaxPooling2D",
    "Multiply", "Normalization", "Permute", "ReLU", "Rescaling", "Reshape", "Softmax", "Subtract",
    "ZeroPadding1D", "ZeroPadding2D",
}  # fmt: skip
_FUNCTIONS = {
    "Amax", "AveragePool", "Divide", "ExpandDims", "GetItem", "LeakyRelu", "Max", "MaxPool", "Mean",
    "Moveaxis", "Negative", "Relu", "Relu6", "Sigmoid", "Silu", "Squeeze", "Swapaxes", "Tanh", "Transpose",
    "TrueDivide",
}  # fmt: skip
_ACTIVATIONS = ("linear", "relu", "relu6", "sigmoid", "tanh", "softmax", "leaky_relu", "silu")


def without_int16_kernel(graph: Graph, tensors: Iterable[int]) -> str | None:
    """Returns what keeps tensors from having 16 bits, for messages, or None if nothing does.

    Args:
        graph: An inlined `dqmq_tf.graph.Graph` of the float model.
        tensors: The ids of tensors that share a scale.
    """
    aliases, fused = graph.aliases, fused_tensors(graph)
    for tensor in tensors:
        if graph.dtypes[aliases.get(tensor, tensor)] == PIXELS:
            return "an image of uint8 has 8 bits"
        for node in [*_computing(graph, tensor, fused), *graph.consumers.get(tensor, ())]:
            is_same_tensor = all(aliases.get(t, t) < node.outputs[0] for t in node.outputs)
            if not is_same_tensor and not _has_kernel(node):
                return f"layer {node.path!r} ({type(node.layer).__name__}) has no int16 kernel"
    return None


def _computing(graph: Graph, tensor: int, fused: set[int]) -> list[Node]:
    """Returns the nodes of the operator that computes a tensor."""
    node = graph.producers.get(tensor)
    if node is None:
        return []
    before = [n for t in node.inputs if t in fused for n in _computing(graph, t, fused)]
    return [node, *before]


def _has_kernel(node: Node) -> bool:
    """Returns whether the operator of a node has an int16 kernel."""
    layer, kind = node.layer, keras_name(node.layer)
    if is_linear(layer) or isinstance(layer, keras.layers.Activation):
        known = [keras.activations.get(name) for name in _ACTIVATIONS]
        return getattr(layer, "groups", 1) == 1 and layer.activation in (None, *known)
    return kind in _LAYERS or kind in _FUNCTIONS
