"""The discretised Gaussian over candidate bit-widths, as pure functions.

`p(b) ~ exp(-(b - mean)^2 / (2 sigma^2))` on a grid of bit-widths of which each decision point
allows some: two numbers describe a distribution, whatever the number of candidates (Wang et al.
2023, arXiv 2302.04453, encode each layer's distribution with few parameters; the Gaussian is our
choice). All functions take `mean` of shape `[..., P]`, `sigma` `[P]`, `grid` `[K]`, `allowed`
`[P, K]` of 0 and 1.
"""

from keras import ops

_EXCLUDED = -1e9


def log_probabilities(mean, sigma, grid, allowed):
    """Returns `log p` of shape `[..., P, K]`; excluded candidates get about -1e9.

    Example:

    >>> p = ops.exp(log_probabilities([[4.0]], [0.5], [3.0, 4.0, 5.0], [[1.0, 1.0, 1.0]]))
    """
    distance = (ops.expand_dims(mean, -1) - grid) / ops.expand_dims(sigma, -1)
    logits = -0.5 * ops.square(distance) + (1.0 - allowed) * _EXCLUDED
    return logits - ops.logsumexp(logits, axis=-1, keepdims=True)


def draw(log_p, uniform):
    """Returns the index on the grid at which the cumulative probability passes `uniform`.

    Args:
        log_p: `[..., P, K]`.
        uniform: `[..., P]`, in [0, 1).
    """
    cumulative = ops.cumsum(ops.exp(log_p), axis=-1)
    # The last allowed candidate must be reached although the sum may round to just below 1.
    index = ops.sum(ops.cast(cumulative <= ops.expand_dims(uniform, -1), "int32"), axis=-1)
    last = ops.max(
        ops.where(log_p > 0.5 * _EXCLUDED, ops.arange(log_p.shape[-1], dtype="int32"), 0), axis=-1
    )
    return ops.minimum(index, last)


def mode(mean, grid, allowed):
    """Returns the index of the allowed bit-width nearest to `mean`; the lower one at a tie."""
    distance = ops.abs(ops.expand_dims(mean, -1) - grid) + (1.0 - allowed) * -_EXCLUDED
    return ops.argmin(distance, axis=-1)


def expectation(log_p, grid):
    """Returns the mean bit-width `[..., P]` under `log_p`."""
    return ops.sum(ops.exp(log_p) * grid, axis=-1)


def entropy(log_p):
    """Returns the entropy in nats, `[..., P]`."""
    p = ops.exp(log_p)
    return -ops.sum(ops.where(p > 0, p * ops.maximum(log_p, -50.0), 0.0), axis=-1)


def neighbours(mean, grid, allowed):
    """Returns the two allowed bit-widths around `mean`, `(low, high)` of shape `[..., P]`.

    On an allowed bit-width, and below the range, the pair is that and the one above it; at the
    upper end and beyond it is the last two. Where only one is allowed both are that one.
    """
    lowest = ops.min(ops.where(allowed > 0, grid, 1e9), axis=-1)
    highest = ops.max(ops.where(allowed > 0, grid, -1e9), axis=-1)
    mean = ops.expand_dims(ops.clip(mean, lowest, highest), -1)
    below = ops.where((grid <= mean) & (allowed > 0), grid, -1e9)
    low = ops.max(below, axis=-1)
    above = ops.where((grid > ops.expand_dims(low, -1)) & (allowed > 0), grid, 1e9)
    high = ops.min(above, axis=-1)
    top = ops.max(ops.where((grid < ops.expand_dims(low, -1)) & (allowed > 0), grid, -1e9), axis=-1)
    at_end = high > 1e8
    single = at_end & (top < -1e8)
    return (
        ops.where(single, low, ops.where(at_end, top, low)),
        ops.where(at_end, low, high),
    )
