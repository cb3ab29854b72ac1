"""LSQ fake quantization as pure functions of tensors.

`Q(x) = clip(round(x / step), q_min, q_max) * step` with a straight-through round and a learned
step size (Esser et al. 2020, "Learned Step Size Quantization", arXiv 1902.08153). A zero point is
part of the limits: `q_min = -zero_point`, `q_max = 2**bits - 1 - zero_point`.

`relaxed_quantize` adds the pathwise gradient of a bit-width: a mean between two neighbouring
candidates executes as a draw of one of them and carries the gradient of their mixture.
"""

import tensorflow as tf


def weight_limits(bit_width):
    """Returns `(q_min, q_max)` of symmetric narrow-range weights, such as (-7, 7) at 4 bits."""
    q_max = 2.0 ** (bit_width - 1.0) - 1.0
    return -q_max, q_max


def quantize(x, step, q_min, q_max):
    """Fake-quantizes `x` with one step size.

    Args:
        x: Tensor of any shape.
        step: Step sizes that broadcast against `x` (same rank). 0 leaves `x` as it is: a step
            that has not been calibrated yet.
        q_min, q_max: Limits of the integers, shaped like `step`.

    Returns:
        A tensor like `x`, on the grid. Gradients: straight-through to `x` within the limits;
        LSQ's to `step`.

    Example:

    >>> quantize(tf.constant([0.24, 9.0]), tf.constant([0.1]), tf.constant([0.0]),
    ...          tf.constant([15.0]))          # 4 bits, unsigned: [0.2, 1.5]
    """

    @tf.custom_gradient
    def apply(x, step):
        def gradient(upstream):
            return _gradients(upstream, x, step, q_min, q_max)

        return _forward(x, step, q_min, q_max), gradient

    return apply(x, step)


def relaxed_quantize(x, executed, low, high, mean, slope):
    """Fake-quantizes `x` at the executed bit-width, with a gradient to the mean bit-width.

    Args:
        x: Tensor of any shape.
        executed, low, high: `(step, q_min, q_max)` of the executed candidate and of the two
            candidates around the mean, each shaped to broadcast against `x`.
        mean: Mean bit-widths, one value per sample or in all; its value is not used, its gradient
            is.
        slope: What the change of the output from `low` to `high` weighs in the gradient to
            `mean`, shaped like `mean` (see `trapezoid_slope`).

    Returns:
        A tensor like `x`. The gradient to `mean` is `slope * <upstream, Q_high(x) - Q_low(x)>`.
    """
    step, q_min, q_max = executed

    @tf.custom_gradient
    def apply(x, step, mean):
        def gradient(upstream):
            to_x, to_step = _gradients(upstream, x, step, q_min, q_max)
            exact, incoming = tf.cast(x, step.dtype), tf.cast(upstream, step.dtype)
            q_low, q_high = (_values(exact, *limits)[1] * limits[0] for limits in (low, high))
            contrast = _summed(incoming * (q_high - q_low), mean)
            return to_x, to_step, slope * contrast

        return _forward(x, step, q_min, q_max), gradient

    return apply(x, step, mean)


def _values(x, step, q_min, q_max):
    ratio = x / tf.where(step > 0, step, 1.0)
    return ratio, tf.clip_by_value(tf.round(ratio), q_min, q_max)


def _forward(x, step, q_min, q_max):
    exact = tf.cast(x, step.dtype)
    _, integers = _values(exact, step, q_min, q_max)
    return tf.cast(tf.where(step > 0, integers * step, exact), x.dtype)


def _gradients(upstream, x, step, q_min, q_max):
    exact, incoming = tf.cast(x, step.dtype), tf.cast(upstream, step.dtype)
    ratio, integers = _values(exact, step, q_min, q_max)
    inside = tf.cast((ratio >= q_min) & (ratio <= q_max), step.dtype)
    live = tf.cast(step > 0, step.dtype)
    to_x = incoming * (inside * live + 1.0 - live)
    to_step = incoming * (integers - ratio * inside) * live
    return tf.cast(to_x, x.dtype), _summed(to_step, step)


def _summed(values, like):
    """Sums over the axes along which `like`, of the same rank, was broadcast."""
    axes = [i for i, n in enumerate(like.shape) if n == 1 and values.shape[i] != 1]
    return tf.reduce_sum(values, axes, keepdims=True)
