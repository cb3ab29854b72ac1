"""Finds the grid on which a quantizer of the user's own puts values, from the values alone."""

from collections.abc import Callable, Sequence

import numpy as np

# Integers beyond these do not fit into int8.
_LOWEST, _HIGHEST = -128, 127
# The largest distance of a value from its integer, in steps. Float32 computes 127 steps to 1e-5.
_TOLERANCE = 1e-3
# The number of values of each channel that rule out most steps before all values are compared.
_SAMPLES = 64
_MAX_LEVELS = 256
# Far beyond what an activation reaches. Two ends, to tell a limit from a range that follows them.
_FAR, _FARTHER = 1e6, 1e8
# Rounding may go either way for values this close to the middle of two levels, in steps.
_TIE = 1e-2


def weight_grid(
    values: np.ndarray, channel_axes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns integers and steps whose products are the given weights.

    One step for all weights is preferred to one for each channel.

    Args:
        values: Quantized weights, of any shape.
        channel_axes: The axes that may have a step for each index.

    Returns:
        `(integers, step)`: an int32 array from -128 to 127 of the same shape, and a float32 array
        of the same rank, with 1 on all axes but `channel_axes`. None if there is no such step.
    """
    axes = [axis % values.ndim for axis in channel_axes]
    shape = [n if axis in axes else 1 for axis, n in enumerate(values.shape)]
    grid = _grid_of_rows(values.reshape(1, -1))
    if grid is not None:
        integers, step = grid
        return integers.reshape(values.shape), np.full(shape, step[0], "float32")
    if not axes:
        return None
    others = [axis for axis in range(values.ndim) if axis not in axes]
    moved = np.transpose(values, axes + others)
    grid = _grid_of_rows(moved.reshape(int(np.prod([values.shape[a] for a in axes])), -1))
    if grid is None:
        return None
    integers, step = grid
    order = np.argsort(axes + others)
    return integers.reshape(moved.shape).transpose(order), step.reshape(shape).astype("float32")


def bits_of(integers: np.ndarray) -> int:
    """Returns the bits that hold signed integers, at least 2."""
    low, high = int(integers.min(initial=0)), int(integers.max(initial=0))
    return max(2, 1 + max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0))


def activation_grid(
    quantize: Callable[[np.ndarray], np.ndarray],
) -> tuple[float, int, int] | str:
    """Returns the grid to which a function rounds single values.

    Args:
        quantize: A function of a float32 array `[N]` that returns an array `[N, channels]`: what
            becomes of each value in each channel.

    Returns:
        `(step, zero_point, levels)`, so that the function is
        `step * clip(round(x / step), -zero_point, levels - 1 - zero_point)`. Otherwise the reason
        why it is no such function, as a clause.
    """
    ends = np.array([-_FARTHER, -_FAR, _FAR, _FARTHER], "float32")
    limits = _same_in_channels(quantize(ends))
    if limits is None:
        return "it differs between channels"
    low, high = float(limits[1]), float(limits[2])
    if not np.isfinite(limits).all() or limits[0] != limits[1] or limits[2] != limits[3]:
        return "it does not clip values to a range"
    if not low < high:
        return "it makes one number of all values"
    margin = 0.1 * (high - low)
    x = np.linspace(low - margin, high + margin, 32 * _MAX_LEVELS, dtype="float32")
    y = _same_in_channels(quantize(x))
    if y is None:
        return "it differs between channels"
    found = np.unique(y)
    gaps = np.diff(found) > 1e-3 * (high - low) / _MAX_LEVELS
    levels = int(gaps.sum()) + 1
    if levels > _MAX_LEVELS:
        return f"it has more than {_MAX_LEVELS} levels"
    step = (high - low) / (levels - 1)
    zero_point = -low / step
    if (
        abs(zero_point - np.round(zero_point)) > _TOLERANCE
        or not 0 <= np.round(zero_point) < levels
    ):
        return "0 is not among its values"
    zero_point = int(np.round(zero_point))
    ratio = x.astype("float64") / step
    expected = np.clip(np.round(ratio), -zero_point, levels - 1 - zero_point)
    is_tie = np.abs(np.abs(ratio - np.trunc(ratio)) - 0.5) < _TIE
    if (np.abs(y / step - expected)[~is_tie] > _TOLERANCE * max(levels, 1)).any():
        return "it does not round to the nearest of equally spaced levels"
    return step, zero_point, levels


def _same_in_channels(values: np.ndarray) -> np.ndarray | None:
    """Returns the column that all columns of `[N, channels]` are equal to, None if they differ."""
    column = values[:, 0].astype("float64")
    tolerance = 1e-6 * np.abs(column).max(initial=0.0)
    # What is not finite has no tolerance: the caller refuses it in the first column.
    if not np.isfinite(tolerance):
        return column
    is_same = np.isclose(values, values[:, :1], rtol=1e-5, atol=tolerance).all()
    return column if is_same else None


def _grid_of_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns integers `[N, M]` and a step for each row `[N]`, or None if a row has no step.

    Of the steps that fit, the largest is returned, which has the smallest integers.
    """
    rows = rows.astype("float64")
    largest = np.abs(rows).max(axis=1)
    if not np.isfinite(largest).all():
        return None
    chosen = np.linspace(0, rows.shape[1] - 1, min(rows.shape[1], _SAMPLES)).astype(int)
    integers = np.zeros(rows.shape, "int32")
    steps = np.where(largest > 0, 0.0, max(largest.max(), 1.0))
    for count in range(1, -_LOWEST + 1):
        open_rows = np.flatnonzero(steps == 0)
        open_rows = open_rows[_fits(rows[open_rows][:, chosen], largest[open_rows] / count)]
        open_rows = open_rows[_fits(rows[open_rows], largest[open_rows] / count)]
        step = largest[open_rows] / count
        integers[open_rows] = np.round(rows[open_rows] / step[:, None])
        steps[open_rows] = step
        if steps.all():
            return integers, steps
    return None


def _fits(rows: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Returns whether each row consists of multiples of its step, within the range of int8."""
    ratio = rows / steps[:, None]
    whole = np.round(ratio)
    is_near = np.abs(ratio - whole) <= _TOLERANCE
    return (is_near & (whole >= _LOWEST) & (whole <= _HIGHEST)).all(axis=1)
