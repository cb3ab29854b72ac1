"""The degradations by name, and `degrade`, which applies one to images."""

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dqmq_tf.quality import blur, noise, photometric, resolution
from dqmq_tf.quality.value_range import from_unit, resolve_value_range, to_unit

# An image `[height, width, channels]`, a severity and a seed give a degraded image; see `noise`.
_Degradation = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]

DEGRADATIONS: dict[str, _Degradation] = {
    function.__name__: function
    for function in (
        noise.gaussian_noise,
        noise.shot_noise,
        noise.impulse_noise,
        noise.speckle_noise,
        blur.gaussian_blur,
        blur.defocus_blur,
        blur.motion_blur,
        resolution.low_resolution,
        resolution.pixelate,
        resolution.jpeg,
        photometric.low_light,
        photometric.brightness,
        photometric.contrast,
        photometric.fog,
    )
}

KINDS = tuple(DEGRADATIONS)
# The names of the numbers that `mixed_quality` gives with each image.
NUMBERED_KINDS = ("clean", *KINDS)
SEVERITIES = (1, 2, 3, 4, 5)
# An array of 3 axes is one image if it has at most so many channels. If it has more, it is more likely
# a batch of gray images without an axis of channels, which would be degraded as one image.
_MOST_CHANNELS = 4


def check_kind(kind: Any) -> None:
    """Raises `ValueError` unless a name is one of `KINDS`."""
    if kind not in KINDS:
        raise ValueError(f"`kind` {kind!r} is not known. Choose from: {', '.join(KINDS)}.")


def check_kind_numbers(numbers: Any) -> None:
    """Raises `ValueError` unless an array holds indices of `NUMBERED_KINDS`."""
    lowest, highest = np.min(numbers), np.max(numbers)
    if lowest < 0 or highest > len(KINDS):
        raise ValueError(
            f"`data` must have kinds from 0 (clean) to {len(KINDS)}, as quality.mixed_quality "
            f"produces them. Found {lowest} to {highest}."
        )


def check_severity(severity: Any) -> None:
    """Raises `ValueError` unless a severity is one of `SEVERITIES`."""
    is_integer = isinstance(severity, numbers.Integral) and not isinstance(severity, bool)
    if not is_integer or severity not in SEVERITIES:
        raise ValueError(
            f"`severity` must be an integer from {SEVERITIES[0]} (mild) to {SEVERITIES[-1]} "
            f"(strong). Found {severity!r}."
        )


def check_seed(seed: Any) -> None:
    """Raises `ValueError` unless a seed is an integer that fits into a tensor."""
    if not isinstance(seed, numbers.Integral) or not -(2**63) <= int(seed) < 2**63:
        raise ValueError(f"`seed` must be an int of at most 64 bits. Found {seed!r}.")


def check_image_shape(shape: tf.TensorShape) -> None:
    """Raises `ValueError` unless a static shape is that of images with known channels."""
    if shape.rank not in (3, 4):
        raise ValueError(
            "`images` must have shape [height, width, channels] or "
            f"[batch, height, width, channels]. Found shape {shape}. Add or remove axes."
        )
    if shape[-1] is None:
        raise ValueError(
            f"`images` must have a known number of channels. Found shape {shape}. Set it with "
            "`tf.ensure_shape`."
        )
    if shape.rank == 3 and shape[-1] > _MOST_CHANNELS:
        raise ValueError(
            f"`images` of shape {shape} would be one image with {shape[-1]} channels. If they are gray "
            "images, add the axis of the channels: images[..., None], in a dataset with `dataset.map`. "
            f"If it is one image with {shape[-1]} channels, put it into a batch: images[None]."
        )
    if 0 in shape[-3:]:
        raise ValueError(
            f"`images` must contain pixels. Found shape {shape}. Check how the images are cut."
        )


@functools.cache
def _batch_degradation(kind: str, channels: int) -> Callable[..., tf.Tensor]:
    """Returns the degradation of a batch as one graph, because single eager operations are slow."""
    function = DEGRADATIONS[kind]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, channels], tf.float32),
            tf.TensorSpec([], tf.int32),
            tf.TensorSpec([None, 2], tf.int64),
        ]
    )
    def apply(images: tf.Tensor, severity: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda image_and_seed: function(image_and_seed[0], severity, image_and_seed[1]),
            (images, seeds),
            fn_output_signature=tf.TensorSpec([None, None, channels], tf.float32),
        )

    return apply


def degrade(
    images: Any,
    kind: str,
    severity: int,
    seed: Any = 0,
    value_range: Sequence[float] | None = None,
) -> tf.Tensor:
    """Degrades images with one kind of degradation at one severity.

    Kinds and severities are those of CIFAR-10-C (Hendrycks and Dietterich, "Benchmarking Neural
    Network Robustness to Common Corruptions and Perturbations", ICLR 2019; `make_cifar_c.py` of
    https://github.com/hendrycks/robustness), which were chosen for 32x32 images. `low_resolution` and
    `low_light` are additions of this package. The modules `noise`, `blur`, `resolution` and
    `photometric` document the formula of each kind.

    The function uses TensorFlow operations only, so it works in the map of a `tf.data.Dataset`. In a
    map, pass a different `seed` for each element, or use `mixed_quality`.

    Args:
        images: An image `[height, width, channels]` or a batch `[batch, height, width, channels]` of
            integers or floats, of any size. A batch may have any number of channels, an image outside
            of a batch at most 4.
        kind: One of `KINDS`.
        severity: 1 (mild) to 5 (strong).
        seed: An int or a scalar int tensor. The same seed gives the same result. The images of a batch
            get different random numbers, which depend on their position.
        value_range: The range `(low, high)` of the images' values. None for (0, 255) with integers and
            (0, 1) with floats.

    Returns:
        Images of the same shape and type, clipped to the range.

    Raises:
        TypeError: If the images are neither integers nor floats.
        ValueError: If another argument is invalid.
        tf.errors.InvalidArgumentError: If images are far outside the range.

    Example:

    >>> noisy = quality.degrade(image, "gaussian_noise", severity=3, seed=1)
    """
    check_kind(kind)
    check_severity(severity)
    if isinstance(seed, numbers.Integral):
        check_seed(seed)
    seed = tf.convert_to_tensor(seed)
    if not seed.dtype.is_integer or seed.shape.rank != 0:
        raise ValueError(f"`seed` must be an int or a scalar int tensor. Found {seed!r}.")
    images = tf.convert_to_tensor(images)
    check_image_shape(images.shape)
    limits = resolve_value_range(images.dtype, value_range)
    # Random numbers may differ in the last bit between devices. The CPU gives one result everywhere.
    with tf.device("CPU:0"):
        is_batch = images.shape.rank == 4
        batch = images if is_batch else images[None]
        index = tf.range(tf.shape(batch)[0], dtype=tf.int64)
        seeds = tf.stack([tf.fill(tf.shape(index), tf.cast(seed, tf.int64)), index], axis=-1)
        apply = _batch_degradation(kind, images.shape[-1])
        degraded = apply(to_unit(batch, limits), tf.constant(severity, tf.int32), seeds)
        degraded = from_unit(degraded, images.dtype, limits)
        return tf.ensure_shape(degraded if is_batch else degraded[0], images.shape)
