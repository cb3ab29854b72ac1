"""Random inputs for a network, within the ranges that its inputs are quantized for."""

from collections.abc import Sequence

import numpy as np

from dqmq_tf.flatbuffer import ModelT, SubGraphT, TFLiteFile, operator_name, type_name

SEED = 20
# The smallest and the largest integer of the types of activations.
INT8_ENDS, INT16_ENDS = (-128, 127), (-(2**15), 2**15 - 1)
_NO_GRID = (-1.0, 1.0)


def random_inputs(
    shapes: Sequence[tuple[int, ...]],
    ranges: Sequence[tuple[float, float] | range | None],
    seed: int = SEED,
) -> list[np.ndarray]:
    """Draws an array for each input of a network.

    Args:
        shapes: Shape of each array.
        ranges: Range of each array: `(low, high)` for real values, a `range` for integers out of
            it, None for real values from -1 to 1.
        seed: Seed of the draw.

    Returns:
        A list of arrays, float32 for real values and int64 for integers.

    Example:

    >>> random_inputs([(2, 8, 8, 3), (2, 5)], [(0.0, 1.0), range(100)])
    """
    generator, arrays = np.random.default_rng(seed), []
    for shape, limits in zip(shapes, ranges, strict=True):
        if isinstance(limits, range):
            arrays.append(generator.integers(limits.start, limits.stop, shape))
        else:
            arrays.append(generator.uniform(*(limits or _NO_GRID), shape).astype(np.float32))
    return arrays


def random_inputs_of(file: TFLiteFile, samples: int, seed: int = SEED) -> list[np.ndarray]:
    """Draws inputs of the first subgraph of a file that cover the range of each input's grid.

    Args:
        file: A `TFLiteFile`.
        samples: Number of samples.
        seed: Seed of the draw.

    Returns:
        float32 arrays `[samples, ...]`, as `runtimes.run` takes them. Inputs without a grid go from
        -1 to 1.
    """
    graph = file.model.subgraphs[0]
    shapes = [(samples, *map(int, graph.tensors[i].shape[1:])) for i in graph.inputs]
    ranges = [_grid_range(file.model, graph, index) for index in graph.inputs]
    return random_inputs(shapes, ranges, seed)


def _grid_range(model: ModelT, graph: SubGraphT, index: int) -> tuple[float, float] | None:
    """Returns the limits of the grid of an input, or of the grid it is quantized to first."""
    for operator in graph.operators:
        if index in operator.inputs and operator_name(model, operator) == "QUANTIZE":
            index = operator.outputs[0]
    grid = graph.tensors[index].quantization
    if grid is None or grid.scale is None or not len(grid.scale):
        return None
    ends = INT16_ENDS if type_name(graph.tensors[index]) == "INT16" else INT8_ENDS
    low, high = (np.array(ends) - int(grid.zeroPoint[0])) * np.float64(grid.scale[0])
    return low, high
