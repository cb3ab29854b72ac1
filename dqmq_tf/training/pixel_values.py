"""Warns of images that were scaled before they reach a model that takes pixels.

A model that begins with `Rescaling(1 / 255)` and gets images from 0 to 1 divides them twice. It trains
all the same, and its file says that apps feed pixels from 0 to 255.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from dqmq_tf.graph import Graph
from dqmq_tf.graph.plain_pixels import plain_pixel_inputs

# Images of this absolute value or less were scaled: as pixels they would all be black.
_LARGEST_SCALED = 1.0


def warn_of_scaled_images(graph: Graph, arrays: Sequence[np.ndarray], stacklevel: int) -> None:
    """Warns, with the name of the input, if images for an input of pixels are scaled already.

    Args:
        graph: The inlined `Graph` of the float model.
        arrays: The calibration data, one array `[N, ...]` per input.
        stacklevel: That of `warnings.warn`, seen from the caller.
    """
    takes_pixels = plain_pixel_inputs(graph)
    for name, array in zip(graph.input_names, arrays):
        if name in takes_pixels and np.abs(array).max() <= _LARGEST_SCALED:
            warnings.warn(
                f"Input {name!r} takes pixels from 0 to 255, which the model divides into a small "
                f"range itself, but the data has values from {array.min():.3g} to "
                f"{array.max():.3g}, as if the images were scaled before. Pass the pixels as they "
                "are, or remove the rescaling from the model. An app feeds the file with pixels.",
                stacklevel=stacklevel + 1,
            )
