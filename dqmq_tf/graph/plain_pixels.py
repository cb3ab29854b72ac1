"""Finds the image inputs that take pixels as they are, because the model rescales them itself."""

from typing import Any

import keras
import numpy as np

from dqmq_tf.graph.graph import Graph
from dqmq_tf.graph.kernels import PIXELS
from dqmq_tf.graph.plain_classes import plain_class

# An image is `[batch, height, width, channels]`, in gray, in color, or in color with a fourth channel.
IMAGE_RANK = 4
_CHANNELS = (1, 3, 4)
# Pixels have steps of one. A layer that divides them by less than this leaves a range of 32 or more,
# so it was made for other values: `Rescaling(2, offset=-1)` takes images from 0 to 1.
_SMALLEST_DIVISOR = 8.0
_WHITE = 255.0


def plain_pixel_inputs(graph: Graph) -> dict[str, int]:
    """Returns the inputs that are images with pixels from 0 to 255.

    Such an input has dtype uint8, or is read only by `Rescaling` and `Normalization` layers that
    divide pixels into a small range, as `Rescaling(1 / 255)` and a `Normalization` that was adapted
    to pixels do. Spectrograms in decibels and other values below 0 have the shape of images, too:
    layers that add to what they divide, and statistics that pixels cannot have, are for those.

    Args:
        graph: The inlined `Graph` of a float model.

    Returns:
        `{name of the input: number of channels}`.

    Example:

    >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Rescaling(1 / 255)])
    >>> list(plain_pixel_inputs(dqmq_tf.graph.trace(model)).values())
    [3]
    """
    found = {}
    for name, tensor in zip(graph.input_names, graph.inputs):
        shape = graph.shapes[tensor]
        is_image = len(shape) == IMAGE_RANK and shape[-1] in _CHANNELS
        if is_image and (graph.dtypes[tensor] == PIXELS or _is_rescaled(graph, tensor)):
            assert shape[-1] is not None
            found[name] = shape[-1]
    return found


def _is_rescaled(graph: Graph, tensor: int) -> bool:
    """Whether all layers that read an input divide pixels into a small range."""
    # Layers that act in training alone, such as augmentations, may stand before the rescaling.
    same = {tensor, *(t for t, first in graph.aliases.items() if first == tensor)}
    readers = [
        node
        for value in same
        for node in graph.consumers.get(value, [])
        if not same.issuperset(node.outputs)
    ]
    if not readers or same.intersection(graph.outputs):
        return False
    return all(_divides_pixels(node.layer) for node in readers)


def _divides_pixels(layer: Any) -> bool:
    """Returns whether a layer divides pixels, or other values from 0 to 255, into a small range."""
    if plain_class(layer) is keras.layers.Rescaling:
        scale, offset = (np.asarray(value, np.float64) for value in (layer.scale, layer.offset))
        largest = 1.0 / _SMALLEST_DIVISOR
        return bool(np.all((scale != 0) & (np.abs(scale) <= largest)) and np.all(offset <= 0))
    if plain_class(layer) is keras.layers.Normalization and not layer.invert:
        mean, variance = (
            keras.ops.convert_to_numpy(value).astype(np.float64)
            for value in (layer.mean, layer.variance)
        )
        # Of values from 0 to 255, no variance is larger (Bhatia and Davis 2000, "A better bound on
        # the variance").
        is_possible = variance <= mean * (_WHITE - mean)
        return bool(np.all(is_possible & (variance >= _SMALLEST_DIVISOR**2)))
    return False
