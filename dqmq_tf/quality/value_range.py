"""The range of values of images: what it is by default, and the way to [0, 1] and back."""

import numpy as np
import tensorflow as tf


def resolve_value_range(dtype, value_range=None):
    """Returns the (low, high) range of images of a dtype.

    Args:
        dtype: the images' dtype.
        value_range: two numbers, or None for (0, 255) with integers and (0, 1) with floats.

    Raises:
        TypeError: if the dtype is neither an integer nor a float.
        ValueError: if the range is not two increasing finite numbers, or does not fit the dtype.
    """
    dtype = tf.as_dtype(dtype)
    if not (dtype.is_integer or dtype.is_floating):
        raise TypeError(
            f"`images` must be of an integer or float dtype. Found {dtype.name}; cast them, "
            "for example to uint8."
        )
    if value_range is None:
        value_range = (0, 255) if dtype.is_integer else (0, 1)
    try:
        low, high = (float(limit) for limit in value_range)
    except (TypeError, ValueError):
        low = high = float("nan")
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(
            "`value_range` must be two finite numbers (low, high) with low < high, for example "
            f"(0, 255). Found {value_range!r}."
        )
    if dtype.is_integer and not (dtype.min <= low and high <= dtype.max):
        raise ValueError(
            f"`value_range` ({low:g}, {high:g}) does not fit images of dtype {dtype.name}, which "
            f"hold {dtype.min} to {dtype.max}. Pass the `value_range` that the images have."
        )
    return low, high


def to_unit(images, value_range):
    """Maps a range to float32 in [0, 1]; values a little outside it are clipped.

    Raises:
        tf.errors.InvalidArgumentError: when run, if float values lie outside the range by more than
            a quarter of its width: the images are of another range, and clipping would destroy them.
    """
    low, high = value_range
    unit = (tf.cast(images, tf.float32) - low) / (high - low)
    if images.dtype.is_floating:
        least, most = tf.reduce_min(unit), tf.reduce_max(unit)
        inside = tf.debugging.Assert(
            tf.logical_and(least >= -0.25, most <= 1.25),
            [
                f"`images` do not have the `value_range` ({low:g}, {high:g}): in its units they go from",
                least,
                "to",
                most,
                "where 0 to 1 was expected. Pass the `value_range` that the images have, or degrade "
                "before normalising.",
            ],
        )
        # Eagerly the assertion has already run and there is no operation to wait for.
        with tf.control_dependencies([] if inside is None else [inside]):
            unit = tf.identity(unit)
    return tf.clip_by_value(unit, 0.0, 1.0)


def from_unit(unit, dtype, value_range):
    """Clips to [0, 1] and maps to a range and dtype; integers are rounded to the nearest."""
    low, high = value_range
    images = tf.clip_by_value(unit, 0.0, 1.0) * (high - low) + low
    if dtype.is_integer:
        images = tf.round(images)
    return tf.cast(images, dtype)
