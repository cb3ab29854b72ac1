"""How many samples a model computes at once where it runs layer by layer, outside of training.

Such a run keeps all activations until it ends, and a gradient needs them anyway. A network of a phone
has millions of values in them for each image.
"""

import math
from collections.abc import Sequence

import numpy as np

from dqmq_tf.graph.graph import Graph

# The number of values in all activations together (128 MB in float32), and the fewest samples.
_VALUES, _FEWEST = 2**25, 8


def samples_at_once(graph: Graph, arrays: Sequence[np.ndarray]) -> int:
    """Returns the number of samples for one run of a model, at least 8.

    Args:
        graph: The graph of the model.
        arrays: Its inputs, shape `[N, ...]` each, which tell sizes that the graph leaves open.
    """
    shapes = [graph.shapes[tensor][1:] for tensor in graph.inputs]
    open_sizes = max(
        math.prod(array.shape[1:]) // _known(shape) for array, shape in zip(arrays, shapes)
    )
    values = sum(
        _known(shape[1:]) * (open_sizes if None in shape[1:] else 1)
        for shape in graph.shapes.values()
    )
    return max(_VALUES // max(values, 1), _FEWEST)


def _known(shape: Sequence[int | None]) -> int:
    """Returns the product of the sizes that are known and not 0."""
    return math.prod(size or 1 for size in shape)
