"""Keeps TensorFlow's converter from adding the bias of a layer to weights that are added behind it.

A custom layer may add a table to the output of a dense layer inside it, as patch encoders of vision
transformers add an embedding of each position. The converter would add up bias and table, and the
sum lies on no grid that was trained.
"""

from collections.abc import Collection
from typing import Any

import keras

from dqmq_tf.graph.cloning import layers_inside
from dqmq_tf.graph.kernels import is_linear
from dqmq_tf.lowering.tensor_markers import barrier


def separate_biases(layer: keras.layers.Layer, stored: Collection[Any]) -> None:
    """Puts a barrier behind each linear layer with a bias in a layer that has other weights too.

    Args:
        layer: A layer of a lowered model with markers, changed in place.
        stored: The variables of the layer that the file stores as integers.
    """
    linear = [inner for inner in layers_inside(layer) if is_linear(inner)]
    kernels = {id(variable) for inner in linear for variable in inner.weights}
    if all(id(variable) in kernels for variable in stored):
        return
    for inner in linear:
        if inner.bias is not None:
            inner.call = _behind_barrier(inner.call)


def _behind_barrier(call: Any) -> Any:
    """Returns a function that computes what a layer's `call` does, and passes it on by a barrier."""

    def separated(*args: Any, **kwargs: Any) -> Any:
        return barrier(call(*args, **kwargs))

    return separated
