"""Calls one layer of a graph on small random inputs, to find out what it does."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf.graph.kernels import PIXELS, is_float, kernel_variables

if typing.TYPE_CHECKING:
    from dqmq_tf.graph.graph import Graph, Node

_RECURRENT = (keras.layers.RNN, keras.layers.Bidirectional)
_MAX_STEPS = 4
_SEED = 0


def random_inputs(graph: Graph, node: Node, is_wide: bool = False) -> dict[int, Any]:
    """Returns `{tensor: values}` of the inputs of a node, with a batch of two.

    Args:
        graph: The graph.
        node: The node.
        is_wide: Whether the values spread over several orders of magnitude, so that a layer that
            clips or rounds changes some of them.
    """
    random = np.random.default_rng(_SEED)
    values = {}
    for tensor in dict.fromkeys(node.inputs):
        shape = [n or 2 for n in graph.shapes[tensor]]
        if isinstance(node.layer, _RECURRENT) and len(shape) > 2:
            shape[1] = min(shape[1], _MAX_STEPS)
        array = random.normal(size=shape)
        if is_wide:
            array *= 10.0 ** random.uniform(-2, 3, shape)
        dtype = graph.dtypes[tensor]
        if dtype == PIXELS:
            array = np.floor(100 * np.abs(array)) % 256
        elif not is_float(dtype):
            array = np.where(array > 0, 1.0, 0.0)
        values[tensor] = keras.ops.convert_to_tensor(array, dtype)
    return values


def call_at_inference(node: Node, values: Mapping[int, Any]) -> list[Any]:
    """Returns the outputs of a node, given the values of its inputs."""
    args, kwargs = node.arguments(values)
    if isinstance(node.layer, keras.layers.Layer):
        # As in a functional model at inference, where a recorded `training=True` does not count.
        kwargs = {**kwargs, "training": False}
    return keras.tree.flatten(node.layer(*args, **kwargs))


def unused_kernels(graph: Graph, node: Node) -> set[str]:
    """Returns the names of the kernels of a node on which only outputs depend that nothing reads.

    Such kernels are in no file: the converter leaves out what the model's outputs do not need.
    """
    is_read = [t in graph.consumers or t in graph.outputs for t in node.outputs]
    kernels = {} if all(is_read) else kernel_variables(node.layer)
    if not kernels:
        return set()
    tensors = [kernel.value for kernel in kernels.values()]
    try:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tensors)
            outputs = call_at_inference(node, random_inputs(graph, node))
            total = sum(tf.reduce_sum(y) for y, read in zip(outputs, is_read) if read)
        gradients = tape.gradient(total, tensors)
    except Exception:  # A layer of the user's own may not take such inputs.
        return set()
    return {name for name, gradient in zip(kernels, gradients) if gradient is None}
