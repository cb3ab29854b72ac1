"""Fits step sizes and ranges to weights and activations, in NumPy."""

import numpy as np

from dqmq_tf.layers.lsq import weight_limits


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
