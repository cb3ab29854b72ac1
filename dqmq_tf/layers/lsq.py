"""LSQ fake quantization as pure functions of tensors.

`Q(x) = clip(round(x / step), q_min, q_max) * step` with a straight-through round and a learned
step size (Esser et al. 2020, "Learned Step Size Quantization", arXiv 1902.08153). A zero point is
part of the limits: `q_min = -zero_point`, `q_max = 2**bits - 1 - zero_point`.

`relaxed_quantize` adds the pathwise gradient of a bit-width. For a mean between two neighboring
candidates, it runs one of them, drawn at random, and passes on the gradient of their mixture.
"""

from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

from dqmq_tf.layers.slices import sum_over
from dqmq_tf.precision import round_means

_Number = TypeVar("_Number", float, tf.Tensor)
# The step size, q_min and q_max of a quantizer.
_Parameters = tuple[tf.Tensor, tf.Tensor, tf.Tensor]


def weight_limits(bit_width: _Number) -> tuple[_Number, _Number]:
    """Returns `(q_min, q_max)` of symmetric narrow-range weights, such as (-7, 7) at 4 bits."""
    q_max = 2.0 ** (bit_width - 1.0) - 1.0
    return -q_max, q_max


def quantize(
    x: tf.Tensor,
    step: tf.Tensor,
    q_min: tf.Tensor,
    q_max: tf.Tensor,
    are_means: bool = False,
) -> tf.Tensor:
    """Fake-quantizes a tensor.

    Args:
        x: A tensor of any shape.
        step: The step sizes, which have the rank of `x` and broadcast against it. Where the step
            is 0, because it has not been calibrated, `x` passes unchanged.
        q_min: The smallest integers, shaped like `step`.
        q_max: The largest integers, shaped like `step`.
        are_means: Whether an average pool computed `x` (see `round_means`).

    Returns:
        A tensor like `x` whose values are multiples of `step`. The gradient of `x` is straight-through
        within the limits, the gradient of `step` is that of LSQ.

    Example:

    >>> quantize(tf.constant([0.24, 9.0]), tf.constant([0.1]), tf.constant([0.0]),
    ...          tf.constant([15.0]))          # 4 bits, unsigned: [0.2, 1.5]
    """

    @tf.custom_gradient
    def apply(
        x: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return _gradients(upstream, x, step, q_min, q_max, are_means)

        return _forward(x, step, q_min, q_max, are_means), gradient

    return apply(x, step)


def relaxed_quantize(
    x: tf.Tensor,
    executed: _Parameters,
    low: _Parameters,
    high: _Parameters,
    mean: tf.Tensor,
    slope: tf.Tensor,
    are_means: bool = False,
) -> tf.Tensor:
    """Fake-quantizes a tensor at the executed bit-width, with a gradient for the mean bit-width.

    Args:
        x: A tensor of any shape.
        executed: `(step, q_min, q_max)` of the executed candidate. Each broadcasts against `x`.
        low: The same of the candidate below the mean.
        high: The same of the candidate above the mean.
        mean: The mean bit-widths, one value per sample or one in total. Only their gradient is
            used, not their value.
        slope: The weight of the change from `low` to `high` in the gradient of `mean`, shaped like
            `mean` (see `trapezoid_slope`).
        are_means: Whether an average pool computed `x` (see `round_means`).

    Returns:
        A tensor like `x`. The gradient of `mean` is `slope * <upstream, Q_high(x) - Q_low(x)>`.
    """
    step, q_min, q_max = executed

    @tf.custom_gradient
    def apply(
        x: tf.Tensor, step: tf.Tensor, mean: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            to_x, to_step = _gradients(upstream, x, step, q_min, q_max, are_means)

            def to_mean() -> tf.Tensor:
                x_exact, upstream_exact = tf.cast(x, step.dtype), tf.cast(upstream, step.dtype)
                q_low, q_high = (
                    _integers(x_exact, *part, are_means)[1] * part[0] for part in (low, high)
                )
                return slope * _sum_like(upstream_exact * (q_high - q_low), mean)

            # Settled bits have no contrast to learn from.
            is_searched = tf.reduce_any(tf.not_equal(slope, 0.0))
            return to_x, to_step, tf.cond(is_searched, to_mean, lambda: tf.zeros_like(slope))

        return _forward(x, step, q_min, q_max, are_means), gradient

    return apply(x, step, mean)


def _integers(
    x: tf.Tensor, step: tf.Tensor, q_min: tf.Tensor, q_max: tf.Tensor, are_means: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `x / step`, and the same rounded and clipped."""
    ratio = x / tf.where(step > 0, step, 1.0)
    rounded = round_means(ratio, q_min, q_max) if are_means else tf.round(ratio)
    return ratio, tf.clip_by_value(rounded, q_min, q_max)


def _forward(
    x: tf.Tensor, step: tf.Tensor, q_min: tf.Tensor, q_max: tf.Tensor, are_means: bool
) -> tf.Tensor:
    # In the type of the step: the ratio of float16 values may overflow.
    x_exact = tf.cast(x, step.dtype)
    _, integers = _integers(x_exact, step, q_min, q_max, are_means)
    return tf.cast(tf.where(step > 0, integers * step, x_exact), x.dtype)


def _gradients(
    upstream: tf.Tensor,
    x: tf.Tensor,
    step: tf.Tensor,
    q_min: tf.Tensor,
    q_max: tf.Tensor,
    are_means: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the gradients of `x` and `step`."""
    x_exact, upstream_exact = tf.cast(x, step.dtype), tf.cast(upstream, step.dtype)
    ratio, integers = _integers(x_exact, step, q_min, q_max, are_means)
    # XLA computes products again in each loop that needs them. A quotient it would keep in memory.
    is_inside = (x_exact >= q_min * step) & (x_exact <= q_max * step)
    inside = tf.cast(is_inside, step.dtype)
    calibrated = tf.cast(step > 0, step.dtype)
    to_x = upstream_exact * (inside * calibrated + 1.0 - calibrated)
    to_step = upstream_exact * (integers - ratio * inside) * calibrated
    return tf.cast(to_x, x.dtype), _sum_like(to_step, step)


def _sum_like(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Sums over the axes along which `like`, a tensor of the same rank, was broadcast."""
    axes = [i for i, n in enumerate(like.shape) if n == 1 and values.shape[i] != 1]
    return sum_over(values, axes)
