"""Fits step sizes and ranges to weights and activations, in NumPy."""

from collections.abc import Sequence

import numpy as np

from dqmq_tf.layers.lsq import weight_limits
from dqmq_tf.precision import INT16_BITS

# Steps are stale if they have this many times the least squared error. That need not be measured
# while the range of the most bits ends this close to the largest weight.
_STALE, _CLOSE = 2.0, 0.03
# The grid of an activation is fitted again if it has this many times the least squared error, and if
# that is more than this share of the squared values.
_LEFT_BEHIND, _LOUD = 4.0, 1e-3
# litert-quantizer writes no range below 1e-9 into a file. A fitted range may be a tenth of that of the
# values, and training lowers it further. It stays near that of the values: kernels of sums abort if the
# range of an input is half a million times that of the output.
_SMALLEST_RANGE = 1e-7


def weight_integers(weights: np.ndarray, step: np.ndarray, bit_width: int) -> np.ndarray:
    """Returns the int32 integers of weights at a step size and bit-width."""
    q_min, q_max = weight_limits(float(bit_width))
    # A training that diverges still settles its bits. What uses them refuses NaN by the layer's name.
    with np.errstate(invalid="ignore"):
        return np.clip(np.round(weights / step), q_min, q_max).astype("int32")


def fit_weight_steps(
    weights: np.ndarray,
    channel_axes: Sequence[int],
    bit_widths: Sequence[int],
    samples: int = 1024,
) -> np.ndarray:
    """Returns the step sizes per channel and candidate with the least squared error.

    Args:
        weights: The weights, of any shape.
        channel_axes: The axes with one step size for each index. The other axes share a step.
        bit_widths: The K candidate bit-widths.
        samples: The largest number of values that are examined in a channel. A tensor with a
            single step uses 64 times as many.

    Returns:
        A float32 array `[K, ...]`. Each row has the rank of the weights, with 1 on shared axes.
    """
    axes = [axis % weights.ndim for axis in channel_axes]
    shared_axes = [axis for axis in range(weights.ndim) if axis not in axes]
    channels = np.transpose(weights, axes + shared_axes).reshape(
        [int(np.prod([weights.shape[a] for a in axes])), -1]
    )
    largest = np.maximum(np.abs(channels).max(axis=1), 1e-8)
    samples *= 1 if axes else 64
    if channels.shape[1] > samples:
        # A random sample: a fixed stride could hit the same input channel every time.
        chosen = np.random.default_rng(0).choice(channels.shape[1], samples, replace=False)
        channels = channels[:, chosen]
    shape = [n if axis in axes else 1 for axis, n in enumerate(weights.shape)]
    steps = []
    for bit_width in bit_widths:
        q_min, q_max = weight_limits(float(bit_width))
        steps.append(_least_error_steps(channels, largest, q_min, q_max).reshape(shape))
    return np.stack(steps).astype("float32")


def spans(weights: np.ndarray, step: np.ndarray, bit_width: int) -> bool:
    """Returns whether the range of integers with these steps ends at about the largest weight.

    Args:
        weights: The weights, of any shape.
        step: The step sizes, which broadcast against the weights.
        bit_width: The bit-width.
    """
    largest = float(np.abs(weights).max())
    end = float(step.max()) * weight_limits(float(bit_width))[1]
    return abs(end - largest) < _CLOSE * largest


def is_stale(weights: np.ndarray, step: np.ndarray, fitted: np.ndarray, bit_width: int) -> bool:
    """Returns whether step sizes suit the weights no more.

    Args:
        weights: The weights, of any shape.
        step: The step sizes, which broadcast against the weights.
        fitted: The step sizes with the least squared error, shaped like `step`.
        bit_width: The bit-width.
    """

    def error(step: np.ndarray) -> float:
        return float(np.square(weight_integers(weights, step, bit_width) * step - weights).sum())

    return error(step) > _STALE * error(fitted)


def activation_error(values: np.ndarray, step: float, zero_point: float, bit_width: int) -> float:
    """Returns the mean squared error of values on the grid of an activation."""
    levels = 2.0**bit_width - 1.0
    q = np.clip(np.round(values / step), -zero_point, levels - zero_point)
    return float(np.mean(np.square(q * step - values)))


def following_range(
    values: np.ndarray, step: np.ndarray, zero_point: np.ndarray, bit_widths: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and zero points of an activation, fitted again where they suit it no more.

    Args:
        values: The values of the tensor now, a flat array.
        step, zero_point: The grid of each of the K candidates so far, arrays `[K]`.
        bit_widths: The K candidate bit-widths.

    Returns:
        `(step, zero_point)`, arrays `[K]`. A grid whose error is small beside the values, or not
        much larger than it has to be, is exactly the same as before.
    """
    step, zero_point = step.copy(), zero_point.copy()
    loud = _LOUD * float(np.mean(np.square(values)))
    for i, bit_width in enumerate(bit_widths):
        error = activation_error(values, step[i], zero_point[i], bit_width)
        if error <= loud:
            continue
        (new_step,), (new_zero_point,) = fit_activation_range(values, [bit_width])
        if error > _LEFT_BEHIND * activation_error(values, new_step, new_zero_point, bit_width):
            step[i], zero_point[i] = new_step, new_zero_point
    return step, zero_point


def fit_activation_range(
    values: np.ndarray, bit_widths: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and zero points with the least squared error on observed values.

    Args:
        values: The values of the tensor on calibration data, a flat array.
        bit_widths: The K candidate bit-widths.

    Returns:
        `(step, zero_point)`, float32 arrays `[K]`. At 16 bits, the zero point is in the middle.
    """
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if low == high:
        high = 1.0
    widening = max(_SMALLEST_RANGE / (high - low), 1.0)
    low, high = low * widening, high * widening
    steps, zero_points = [], []
    for bit_width in bit_widths:
        if bit_width == INT16_BITS:
            # Nothing is clipped: the step is 256 times smaller than at 8 bits, and gains nothing by
            # a smaller range.
            middle = 2.0 ** (INT16_BITS - 1)
            steps.append(max(-low, high) / (middle - 1.0))
            zero_points.append(middle)
            continue
        levels = 2.0**bit_width - 1.0
        least_error, best_step, best_zero_point = np.inf, 0.0, 0.0
        for shrink in np.linspace(0.1, 1.0, 37):
            step = (high - low) * shrink / levels
            zero_point = float(np.clip(np.round(-low * shrink / step), 0, levels))
            error = activation_error(values, step, zero_point, bit_width)
            if error < least_error:
                least_error, best_step, best_zero_point = error, step, zero_point
        steps.append(best_step)
        zero_points.append(best_zero_point)
    return np.array(steps, "float32"), np.array(zero_points, "float32")


def _least_error_steps(
    channels: np.ndarray, largest: np.ndarray, q_min: float, q_max: float
) -> np.ndarray:
    """Returns the step of each channel, `[channels]`, with the least squared error.

    Args:
        channels: The weights, shape `[channels, values]`.
        largest: The largest absolute value of each channel.
        q_min: The smallest integer.
        q_max: The largest integer.
    """
    shrinks = np.linspace(0.2, 1.0, 25)
    errors = np.empty((len(shrinks), len(channels)), "float32")
    quantized = np.empty(channels.shape, "float32")
    for shrink, row in zip(shrinks, errors):
        step = (largest * np.float32(shrink / q_max))[:, None]
        np.rint(np.divide(channels, step, out=quantized), out=quantized)
        np.clip(quantized, q_min, q_max, out=quantized)
        quantized *= step
        quantized -= channels
        np.einsum("ij,ij->i", quantized, quantized, out=row)
    steps: np.ndarray = largest * shrinks[errors.argmin(axis=0)] / q_max
    return steps
