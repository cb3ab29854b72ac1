"""The discretized Gaussian over candidate bit-widths, as pure functions.

Its probabilities are `p(b) ~ exp(-(b - mean)^2 / (2 sigma^2))` on a grid of bit-widths, of which
each decision point allows some. Two numbers describe a distribution, however many candidates there
are. Wang et al. 2023, arXiv 2302.04453, also encode the distribution of each layer with few
parameters; the Gaussian is a choice of this package.

The functions share these arguments, where P counts decision points and K bit-widths:

- `mean`: the means in bits, shape `[..., P]`;
- `sigma`: the widths in bits, shape `[P]`;
- `grid`: the bit-widths, ascending, shape `[K]`;
- `allowed`: 1 for the bit-widths that a decision point may have and 0 for the others, shape
  `[P, K]`.
"""

import numpy as np
import tensorflow as tf
from keras import ops

_EXCLUDED = -1e9


def log_probabilities(
    mean: tf.Tensor, sigma: tf.Tensor, grid: np.ndarray, allowed: np.ndarray
) -> tf.Tensor:
    """Returns the log-probabilities, shape `[..., P, K]`, about -1e9 for excluded bit-widths.

    Example:

    >>> p = ops.exp(log_probabilities([[4.0]], [0.5], [3.0, 4.0, 5.0], [[1.0, 1.0, 1.0]]))
    """
    distance = (ops.expand_dims(mean, -1) - grid) / ops.expand_dims(sigma, -1)
    logits = -0.5 * ops.square(distance) + (1.0 - allowed) * _EXCLUDED
    return logits - ops.logsumexp(logits, axis=-1, keepdims=True)


def draw(log_p: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Draws bit-widths by inverting the cumulative distribution.

    Args:
        log_p: The log-probabilities, shape `[..., P, K]`.
        uniform: Random numbers in [0, 1), shape `[..., P]`.

    Returns:
        An int32 tensor of shape `[..., P]`: the indices of the drawn bit-widths on the grid.
    """
    cumulative = ops.cumsum(ops.exp(log_p), axis=-1)
    index = ops.sum(ops.cast(cumulative <= ops.expand_dims(uniform, -1), "int32"), axis=-1)
    # The sum may round to just below 1. A `uniform` above it selects the last allowed bit-width.
    last = ops.max(
        ops.where(log_p > 0.5 * _EXCLUDED, ops.arange(log_p.shape[-1], dtype="int32"), 0), axis=-1
    )
    return ops.minimum(index, last)


def mode(mean: tf.Tensor, grid: np.ndarray, allowed: np.ndarray) -> tf.Tensor:
    """Returns the index of the allowed bit-width nearest to `mean`, the lower one at a tie."""
    distance = ops.abs(ops.expand_dims(mean, -1) - grid) + (1.0 - allowed) * -_EXCLUDED
    return ops.argmin(distance, axis=-1)


def expectation(log_p: tf.Tensor, grid: np.ndarray) -> tf.Tensor:
    """Returns the mean bit-width under `log_p` `[..., P, K]`, shape `[..., P]`."""
    return ops.sum(ops.exp(log_p) * grid, axis=-1)


def entropy(log_p: tf.Tensor) -> tf.Tensor:
    """Returns the entropy of `log_p` `[..., P, K]` in nats, shape `[..., P]`."""
    p = ops.exp(log_p)
    return -ops.sum(ops.where(p > 0, p * ops.maximum(log_p, -50.0), 0.0), axis=-1)


def neighbors(
    mean: tf.Tensor, grid: np.ndarray, allowed: np.ndarray
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the two allowed bit-widths around `mean`.

    If `mean` is itself an allowed bit-width, the pair is that bit-width and the next higher one.
    Below the range, the pair is the two lowest bit-widths; at the upper end and above it, the two
    highest. If only one bit-width is allowed, it is both.

    Returns:
        `(low, high)`, each of shape `[..., P]`.
    """
    lowest = ops.min(ops.where(allowed > 0, grid, 1e9), axis=-1)
    highest = ops.max(ops.where(allowed > 0, grid, -1e9), axis=-1)
    mean = ops.expand_dims(ops.clip(mean, lowest, highest), -1)
    at_most_mean = ops.where((grid <= mean) & (allowed > 0), grid, -1e9)
    low = ops.max(at_most_mean, axis=-1)
    above = ops.where((grid > ops.expand_dims(low, -1)) & (allowed > 0), grid, 1e9)
    high = ops.min(above, axis=-1)
    below = ops.where((grid < ops.expand_dims(low, -1)) & (allowed > 0), grid, -1e9)
    next_lower = ops.max(below, axis=-1)
    at_end = high > 1e8
    is_single = at_end & (next_lower < -1e8)
    return (
        ops.where(is_single, low, ops.where(at_end, next_lower, low)),
        ops.where(at_end, low, high),
    )
