"""Keeps TensorFlow's converter from merging the layers inside a layer that computes in floating point.

A custom layer may add a table to the output of a dense layer inside it, as patch encoders of vision
transformers add an embedding of each position, or normalize the output of a convolution. The converter
would add up bias and table, and fold the normalization into the kernel. What it makes of them lies on
no grid that was trained.
"""

from collections.abc import Collection
from typing import Any

import keras

from dqmq_tf.graph.cloning import layers_inside
from dqmq_tf.graph.kernels import is_linear
from dqmq_tf.lowering.tensor_markers import barrier


def separate_layers(layer: keras.layers.Layer, stored: Collection[Any]) -> None:
    """Puts a barrier behind each linear layer in a layer whose other parts may be merged into it.

    Args:
        layer: A layer of a lowered model with markers, changed in place.
        stored: The variables of the layer that the file stores as integers.
    """
    inside = layers_inside(layer)
    linear = [inner for inner in inside if is_linear(inner)]
    kernels = {id(variable) for inner in linear for variable in inner.weights}
    adds_table = any(id(variable) not in kernels for variable in stored)
    normalizes = any(isinstance(inner, keras.layers.BatchNormalization) for inner in inside)
    for inner in linear:
        if normalizes or (adds_table and inner.bias is not None):
            inner.call = _behind_barrier(inner.call)


def _behind_barrier(call: Any) -> Any:
    """Returns a function that computes what a layer's `call` does, and passes it on by a barrier."""

    def separated(*args: Any, **kwargs: Any) -> Any:
        return barrier(call(*args, **kwargs))

    return separated
