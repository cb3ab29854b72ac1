"""The tensor form of a decision, and how a quantizer reads its part of it.

A decision tensor is `[samples or groups, decision points, fields]`. With one field it holds the
executed bit-width; with five, as while the policy searches, also what the pathwise gradient
needs: the two candidates around the mean, the slope and the mean itself.
"""

import tensorflow as tf
from keras import ops

from dqmq_tf.policy import discrete_gaussian

EXECUTED, LOW, HIGH, SLOPE, MEAN = range(5)
FIELDS = 5


def bit_widths_of(row):
    """Returns the bit-widths `[..., 1 or 3]` of a decision row: executed, and low and high."""
    return row[..., :SLOPE] if row.shape[-1] == FIELDS else row


def look_up(table, candidates, bit_widths):
    """Looks up the rows of a table, one per candidate, for chosen bit-widths.

    Args:
        table: `[K, n]`.
        candidates: The K bit-widths.
        bit_widths: Chosen ones, `[...]`.

    Returns:
        `[..., n]`; a bit-width that is no candidate gives zeros.
    """
    # One lookup for all fields: every operation here is traced once per layer.
    hit = ops.equal(
        ops.expand_dims(bit_widths, -1), ops.convert_to_tensor(candidates, bit_widths.dtype)
    )
    return ops.matmul(ops.cast(hit, table.dtype), table)


def drawn(means, sigma, grid, allowed, uniform):
    """Draws bit-widths, with what the pathwise gradient needs to know of them.

    Args:
        means: `[B, P]`, of the discretised Gaussians.
        sigma: `[P]`, their widths.
        grid, allowed: Bit-widths `[K]`, and which of them each point may have, `[P, K]`.
        uniform: Random numbers `[B, P]` in [0, 1).

    Returns:
        The fields before the mean, each `[B, P]` and without a gradient; the slope is 0 where the
        draw is no neighbour of the mean.
    """
    log_p = discrete_gaussian.log_probabilities(means, sigma, grid, allowed)
    executed = ops.take(grid, discrete_gaussian.draw(log_p, uniform))
    low, high = discrete_gaussian.neighbours(means, grid, allowed)
    distance = (ops.square(means - high) - ops.square(means - low)) / (2 * ops.square(sigma))
    probability = ops.sigmoid(ops.where(ops.equal(executed, low), distance, -distance))
    is_neighbour = ops.equal(executed, low) | ops.equal(executed, high)
    gap = high - low
    slope = trapezoid_slope(probability, ops.maximum(gap, 1.0))
    slope = ops.where(is_neighbour & (gap > 0), slope, 0.0)
    return [ops.stop_gradient(x) for x in (executed, low, high, slope)]


def trapezoid_slope(probability, gap, bound=4.0):
    """Returns the `slope` for which the pathwise gradient is a trapezoid rule.

    `loss(high) - loss(low)` is half the upstream gradient at either end times the change of the
    output, exact to second order; one end is executed, so it is divided by its probability.

    Args:
        probability: Of the executed one of the two neighbours, given that it is one of them.
        gap: `high - low` in bits.
        bound: Largest importance, which bounds the variance.
    """
    return tf.minimum(0.5 / tf.maximum(probability, 1e-6), bound) / gap
