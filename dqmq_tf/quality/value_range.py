"""The value range of images: its default, and conversion to [0, 1] and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def resolve_value_range(
    dtype: Any, value_range: Sequence[float] | None = None
) -> tuple[float, float]:
    """Returns the value range `(low, high)` of images.

    Args:
        dtype: The type of the images.
        value_range: Two numbers. None for (0, 255) with integers and (0, 1) with floats.

    Raises:
        TypeError: If the type is neither integer nor float.
        ValueError: If the range is not two increasing finite numbers or does not fit the type.
    """
    dtype = tf.as_dtype(dtype)
    if not (dtype.is_integer or dtype.is_floating):
        raise TypeError(
            f"`images` must have an integer or float dtype. Found {dtype.name}. Cast them, "
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
            f"hold {dtype.min} to {dtype.max}. Pass the `value_range` of the images."
        )
    return low, high


def to_unit(images: tf.Tensor, value_range: tuple[float, float]) -> tf.Tensor:
    """Maps images from a value range to float32 in [0, 1]. Values slightly outside are clipped.

    Args:
        images: Images of any shape.
        value_range: The range `(low, high)`.

    Raises:
        tf.errors.InvalidArgumentError: When run, if values exceed the range by more than a quarter of
            its width. The images then have another range, and clipping would destroy them.
    """
    low, high = value_range
    unit = (tf.cast(images, tf.float32) - low) / (high - low)
    holds_others = images.dtype.is_floating or low > images.dtype.min or high < images.dtype.max
    if holds_others:
        least, most = tf.reduce_min(unit), tf.reduce_max(unit)
        inside = tf.debugging.Assert(
            tf.logical_and(least >= -0.25, most <= 1.25),
            [
                f"`images` do not have the `value_range` ({low:g}, {high:g}). Scaled by it, their "
                "values range from",
                least,
                "to",
                most,
                "instead of 0 to 1. Pass the `value_range` of the images, or degrade them before "
                "you normalize them.",
            ],
        )
        # In eager mode the assertion has already run, and there is no operation to wait for.
        with tf.control_dependencies([] if inside is None else [inside]):
            unit = tf.identity(unit)
    return tf.clip_by_value(unit, 0.0, 1.0)


def from_unit(unit: tf.Tensor, dtype: tf.DType, value_range: tuple[float, float]) -> tf.Tensor:
    """Clips values to [0, 1] and maps them to a value range and type. Integers are rounded."""
    low, high = value_range
    images = tf.clip_by_value(unit, 0.0, 1.0) * (high - low) + low
    if dtype.is_integer:
        images = tf.round(images)
    return tf.cast(images, dtype)
