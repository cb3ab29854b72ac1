"""The tensor form of a decision, and how a quantizer reads its part of it.

A decision tensor has shape `[samples or groups, decision points, fields]`. With one field, it holds
the bit-width to execute. With five fields, as during the search, it also holds what the pathwise
gradient needs: the two candidates around the mean, the slope and the mean itself.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.policy import discrete_gaussian

EXECUTED, LOW, HIGH, SLOPE, MEAN = range(5)
FIELDS = 5


def bit_widths_of(row: tf.Tensor) -> tf.Tensor:
    """Returns the bit-widths of a decision.

    Args:
        row: A decision of one decision point, shape `[..., 1]` or `[..., FIELDS]`.

    Returns:
        A tensor of shape `[..., 1]` or `[..., 3]`: the executed bit-width, and the two candidates
        around the mean if `row` holds them.
    """
    return row[..., :SLOPE] if row.shape[-1] == FIELDS else row


def look_up(table: tf.Tensor, candidates: Sequence[int], bit_widths: tf.Tensor) -> tf.Tensor:
    """Looks up the rows of a table by bit-width.

    Args:
        table: A tensor of shape `[K, n]`, one row per candidate.
        candidates: The K candidate bit-widths.
        bit_widths: The bit-widths to look up, a tensor of any shape `[...]`.

    Returns:
        A tensor of shape `[..., n]`, zero for a bit-width that is not a candidate.
    """
    # One lookup serves all fields, because every operation here is traced once per layer.
    is_candidate = ops.equal(
        ops.expand_dims(bit_widths, -1), ops.convert_to_tensor(candidates, bit_widths.dtype)
    )
    return ops.matmul(ops.cast(is_candidate, table.dtype), table)


def without_contrast(bit_widths: tf.Tensor, fields: int) -> tf.Tensor:
    """Returns a decision tensor that executes given bit-widths, and from which no mean learns.

    Args:
        bit_widths: The bit-widths, shape `[..., 1]`.
        fields: The number of fields, 1 or `FIELDS`.

    Returns:
        A tensor of shape `[..., fields]`, in which the slope is 0.
    """
    if fields == 1:
        return bit_widths
    columns = [bit_widths] * FIELDS
    columns[SLOPE] = ops.zeros_like(bit_widths)
    return ops.concatenate(columns, axis=-1)


def draw_fields(
    means: tf.Tensor,
    sigma: tf.Tensor,
    grid: np.ndarray,
    allowed: np.ndarray,
    uniform: tf.Tensor,
    bit_widths: np.ndarray | None = None,
) -> list[tf.Tensor]:
    """Draws bit-widths and computes what the pathwise gradient needs to know about them.

    Args:
        means: The means of the discretized Gaussians in levels, shape `[B, P]`.
        sigma: Their widths in levels, shape `[P]`.
        grid: The levels of the bit-widths, shape `[K]`.
        allowed: 1 for the bit-widths that a decision point may have and 0 for the others, shape
            `[P, K]`.
        uniform: Random numbers in [0, 1), shape `[B, P]`.
        bit_widths: The bit-widths, shape `[K]`. None if they are their levels.

    Returns:
        The fields `EXECUTED`, `LOW`, `HIGH` and `SLOPE`, each of shape `[B, P]` and without a
        gradient. The slope is 0 if the executed bit-width is not a neighbor of the mean.
    """
    log_p = discrete_gaussian.log_probabilities(means, sigma, grid, allowed)
    executed = ops.take(grid, discrete_gaussian.draw(log_p, uniform))
    low, high = discrete_gaussian.neighbors(means, grid, allowed)
    distance = (ops.square(means - high) - ops.square(means - low)) / (2 * ops.square(sigma))
    probability = ops.sigmoid(ops.where(ops.equal(executed, low), distance, -distance))
    is_neighbor = ops.equal(executed, low) | ops.equal(executed, high)
    gap = high - low
    slope = trapezoid_slope(probability, ops.maximum(gap, 1.0))
    slope = ops.where(is_neighbor & (gap > 0), slope, 0.0)
    if bit_widths is not None and not np.array_equal(bit_widths, grid):
        columns = list(zip(grid.tolist(), bit_widths.tolist()))

        def bits_of(levels: tf.Tensor) -> tf.Tensor:
            return tf.add_n([b * tf.cast(tf.equal(levels, one), "float32") for one, b in columns])

        executed, low, high = map(bits_of, (executed, low, high))
    return [ops.stop_gradient(x) for x in (executed, low, high, slope)]


def trapezoid_slope(probability: tf.Tensor, gap: tf.Tensor, bound: float = 4.0) -> tf.Tensor:
    """Returns the slope that makes the pathwise gradient a trapezoid rule.

    To second order, `loss(high) - loss(low)` is the change of the output times the mean of the
    upstream gradients at both ends. Only one end is executed. Its half of the sum is therefore
    divided by the probability that this end is executed, which keeps the estimate unbiased.

    Args:
        probability: The probability of the executed neighbor, given that one of the two neighbors
            of the mean is executed.
        gap: The distance `high - low` in bits, a tensor of the same shape.
        bound: The largest value of `0.5 / probability`, which bounds the variance.

    Returns:
        A tensor of the same shape, per bit.
    """
    return tf.minimum(0.5 / tf.maximum(probability, 1e-6), bound) / gap
