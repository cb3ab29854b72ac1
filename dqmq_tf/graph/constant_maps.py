"""Layers and operations that multiply and shift each channel by constants: `y = a * x + b`."""

import dataclasses
from typing import Any

import keras
import numpy as np

from dqmq_tf.errors import FloatOnly
from dqmq_tf.graph.graph import Graph, Node
from dqmq_tf.graph.plain_classes import keras_name, plain_class

# The operations of a tensor and a constant, by class name, as Keras does not export their classes.
_OPERATIONS = {"Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Negative"}
# Stands for the tensor among the operands of a node.
_TENSOR = object()


@dataclasses.dataclass(frozen=True, eq=False)
class Affine:
    """A per-channel map `y = multiplier * x + offset`.

    Attributes:
        multiplier: A float64 array, shape `(channels,)`.
        offset: A float64 array, shape `(channels,)`.
    """

    multiplier: np.ndarray
    offset: np.ndarray


def is_constant_map(node: Node) -> bool:
    """Whether a node is of a kind that `constant_map` reads: one tensor and constants."""
    if isinstance(node.layer, keras.layers.Layer):
        # A subclass may compute something else.
        return type(node.layer) in (keras.layers.Rescaling, keras.layers.Normalization)
    return keras_name(node.layer) in _OPERATIONS and len(node.inputs) == 1


def constant_map(graph: Graph, node: Node) -> Affine:
    """Returns the map that a node computes.

    Args:
        graph: The `dqmq_tf.graph.Graph` of the node.
        node: A node for which `is_constant_map` holds.

    Returns:
        An `Affine` over the last axis of its input.

    Raises:
        FloatOnly: If the constants differ along other axes, if a constant is divided by the tensor,
            or if a normalization is inverted.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(2.0, offset=1.0)])
    >>> graph = dqmq_tf.graph.trace(model)
    >>> constant_map(graph, graph.nodes[0]).multiplier
    array([2., 2., 2., 2.])
    """
    layer, shape = node.layer, graph.shapes[node.inputs[0]]
    if plain_class(layer) is keras.layers.Rescaling:
        multiplier, offset = layer.scale, layer.offset
    elif plain_class(layer) is keras.layers.Normalization:
        multiplier, offset = _of_normalization(layer, len(shape))
    else:
        multiplier, offset = _of_operation(graph, node)
    try:
        return Affine(*(of_channels(value, shape[-1]) for value in (multiplier, offset)))
    except ValueError as error:
        raise FloatOnly("its constants are not one number for each channel") from error


def of_channels(value: Any, channels: int | None) -> np.ndarray:
    """Returns one float64 value for each channel: `(channels,)`, or `(1,)` if it is not known."""
    return np.broadcast_to(np.asarray(value, np.float64), (channels or 1,))


def _of_normalization(layer: Any, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns multiplier and offset of a `Normalization`."""
    if tuple(axis % rank for axis in layer.axis) not in ((), (rank - 1,)) or layer.invert:
        raise FloatOnly("it normalizes other axes than the last, or inverts a normalization")
    mean, variance = (
        keras.ops.convert_to_numpy(value).astype(np.float64).ravel()
        for value in (layer.mean, layer.variance)
    )
    multiplier = 1 / np.maximum(np.sqrt(variance), keras.config.epsilon())
    return multiplier, -mean * multiplier


def _of_operation(graph: Graph, node: Node) -> tuple[Any, Any]:
    """Returns multiplier and offset of an operation of a tensor and a constant, or of `-x`."""
    kind, (source,) = keras_name(node.layer), node.inputs
    if kind == "Negative":
        return -1.0, 0.0
    args, kwargs = node.arguments({source: _TENSOR})
    operands = [*args, *kwargs.values()]
    (position,) = [i for i, operand in enumerate(operands) if operand is not _TENSOR]
    constant = np.asarray(keras.ops.convert_to_numpy(operands[position]), np.float64)
    shape = graph.shapes[source]
    is_of_channels = constant.size == 1 or constant.shape[-1:] == (constant.size,) == shape[-1:]
    if not is_of_channels or graph.shapes[node.outputs[0]] != shape:
        raise FloatOnly("its constant tensor differs between positions")
    constant = constant.ravel()
    is_first = position == 0
    if kind == "Add":
        return 1.0, constant
    if kind == "Subtract":
        return (-1.0, constant) if is_first else (1.0, -constant)
    if kind == "Multiply":
        return constant, 0.0
    if is_first or not np.all(constant):
        raise FloatOnly("it divides by a tensor or by 0")
    return 1 / constant, 0.0
