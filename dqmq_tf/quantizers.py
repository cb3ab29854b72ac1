"""LSQ fake quantization as pure functions of tensors.

`Q(x) = clip(round(x / step), q_min, q_max) * step` with a straight-through round and a learned
step size (Esser et al. 2020, "Learned Step Size Quantization", arXiv 1902.08153). A zero point is
part of the limits: `q_min = -zero_point`, `q_max = 2**bits - 1 - zero_point`.

`relaxed_quantize` adds the pathwise gradient of a bit-width: a mean between two neighbouring
candidates executes as a draw of one of them and carries the gradient of their mixture.
"""

import numpy as np
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


def weight_integers(weights, step, bit_width):
    """Returns the int32 integers of weights at a step size and bit-width."""
    q_min, q_max = weight_limits(float(bit_width))
    return np.clip(np.round(weights / step), q_min, q_max).astype("int32")


def fit_weight_steps(weights, channel_axes, bit_widths, samples=1024):
    """Returns the step size per channel and candidate with the least squared error.

    Args:
        weights: Array.
        channel_axes: Axes with a step size for each index; the others are reduced.
        bit_widths: The K candidates.
        samples: Most values looked at in a channel; 64 times as many in a tensor with one step.

    Returns:
        float32 array `[K, ...]`, each row of the weights' rank with 1 on the reduced axes.
    """
    axes = [axis % weights.ndim for axis in channel_axes]
    rest = [axis for axis in range(weights.ndim) if axis not in axes]
    channels = np.transpose(weights, axes + rest).reshape(
        [int(np.prod([weights.shape[a] for a in axes])), -1]
    )
    largest = np.maximum(np.abs(channels).max(axis=1), 1e-8)
    samples *= 1 if axes else 64
    if channels.shape[1] > samples:
        # Drawn, not strided: a stride would keep meeting the same input channel.
        chosen = np.random.default_rng(0).choice(channels.shape[1], samples, replace=False)
        channels = channels[:, chosen]
    shape = [n if axis in axes else 1 for axis, n in enumerate(weights.shape)]
    return np.stack(
        [
            _least_error(channels, largest, *(float(q) for q in weight_limits(b))).reshape(shape)
            for b in bit_widths
        ]
    ).astype("float32")


def fit_activation_range(values, bit_widths):
    """Returns `(step [K], zero_point [K])` with the least squared error on observed values.

    Args:
        values: Flat array of what the tensor held on calibration data.
        bit_widths: The K candidates.
    """
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if low == high:
        high = 1.0
    steps, zero_points = [], []
    for bits in bit_widths:
        levels = 2.0**bits - 1.0
        best = (np.inf, None, None)
        for shrink in np.linspace(0.1, 1.0, 37):
            step = (high - low) * shrink / levels
            zero_point = float(np.clip(np.round(-low * shrink / step), 0, levels))
            q = np.clip(np.round(values / step), -zero_point, levels - zero_point)
            error = float(np.mean(np.square(q * step - values)))
            if error < best[0]:
                best = (error, step, zero_point)
        steps.append(best[1])
        zero_points.append(best[2])
    return np.array(steps, "float32"), np.array(zero_points, "float32")


def _least_error(channels, largest, q_min, q_max):
    best = np.full(len(channels), np.inf)
    steps = largest / q_max
    for shrink in np.linspace(0.2, 1.0, 25):
        step = (largest * shrink / q_max)[:, None]
        error = np.square(np.clip(np.round(channels / step), q_min, q_max) * step - channels)
        error = error.mean(axis=1)
        better = error < best
        steps = np.where(better, step[:, 0], steps)
        best = np.minimum(best, error)
    return steps
