"""The degradations by name, and `degrade`, which applies one to images."""

import functools
import numbers

import tensorflow as tf

from dqmq_tf.quality import blur, noise, photometric, resolution
from dqmq_tf.quality.value_range import from_unit, resolve_value_range, to_unit

DEGRADATIONS = {
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
SEVERITIES = (1, 2, 3, 4, 5)


def check_kind(kind):
    """Raises ValueError unless ``kind`` is one of `KINDS`."""
    if kind not in KINDS:
        raise ValueError(f"`kind` {kind!r} is not known. Choose from: {', '.join(KINDS)}.")


def check_severity(severity):
    """Raises ValueError unless ``severity`` is one of `SEVERITIES`."""
    whole = isinstance(severity, numbers.Integral) and not isinstance(severity, bool)
    if not whole or severity not in SEVERITIES:
        raise ValueError(
            f"`severity` must be a whole number from {SEVERITIES[0]} (mild) to {SEVERITIES[-1]} "
            f"(strong). Found {severity!r}."
        )


def check_image_shape(shape):
    """Raises ValueError unless a static shape is of one image or a batch, its channels known."""
    if shape.rank not in (3, 4):
        raise ValueError(
            "`images` must have shape [height, width, channels] or "
            f"[batch, height, width, channels]. Found shape {shape}; add or remove axes."
        )
    if shape[-1] is None:
        raise ValueError(
            f"`images` must have a known number of channels. Found shape {shape}; set it with "
            "`tf.ensure_shape`."
        )
    if 0 in shape[-3:]:
        raise ValueError(f"`images` must hold pixels. Found shape {shape}, which has none.")


@functools.cache
def _batch_degradation(kind, channels):
    """The degradation of a batch as one graph, so that an eager call does not run op by op."""
    function = DEGRADATIONS[kind]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, channels], tf.float32),
            tf.TensorSpec([], tf.int32),
            tf.TensorSpec([None, 2], tf.int64),
        ]
    )
    def apply(images, severity, seeds):
        return tf.map_fn(
            lambda image_and_seed: function(image_and_seed[0], severity, image_and_seed[1]),
            (images, seeds),
            fn_output_signature=tf.TensorSpec([None, None, channels], tf.float32),
        )

    return apply


def degrade(images, kind, severity, seed=0, value_range=None):
    """Degrades images by one kind at one severity.

    Names and severities are those of CIFAR-10-C (Hendrycks and Dietterich, "Benchmarking Neural
    Network Robustness to Common Corruptions and Perturbations", ICLR 2019; ``make_cifar_c.py`` of
    https://github.com/hendrycks/robustness), which were chosen for 32x32 images; ``low_resolution``
    and ``low_light`` are ours. Each kind's function in `noise`, `blur`, `resolution` and
    `photometric` gives its formula. It all runs as TensorFlow operations, so it may be called in
    a ``tf.data`` map; there pass a ``seed`` that differs from element to element, or use
    `mixed_quality`.

    Args:
        images: one image ``[height, width, channels]`` or a batch
            ``[batch, height, width, channels]``, integers or floats, of any size and number of channels.
        kind: one of `KINDS`.
        severity: 1 (mild) to 5 (strong).
        seed: an int or a scalar int tensor. The same seed gives the same result; the images of
            a batch get different random numbers, by their place in it.
        value_range: (low, high) of the images' values. None means (0, 255) for integers and
            (0, 1) for floats.

    Returns:
        Images of the same shape and dtype, clipped to the range.

    Raises:
        TypeError: if the dtype is neither an integer nor a float.
        ValueError: if an argument is not as above.
        tf.errors.InvalidArgumentError: if float images are far outside the range.

    Example:

    ```python
    noisy = quality.degrade(image, "gaussian_noise", severity=3, seed=1)
    ```
    """
    check_kind(kind)
    check_severity(severity)
    seed = tf.convert_to_tensor(seed)
    if not seed.dtype.is_integer or seed.shape.rank != 0:
        raise ValueError(f"`seed` must be an int or a scalar int tensor. Found {seed!r}.")
    images = tf.convert_to_tensor(images)
    check_image_shape(images.shape)
    value_range = resolve_value_range(images.dtype, value_range)
    # An accelerator's random numbers may differ in the last bit: one device, one result.
    with tf.device("CPU:0"):
        batch = images if images.shape.rank == 4 else images[None]
        index = tf.range(tf.shape(batch)[0], dtype=tf.int64)
        seeds = tf.stack([tf.fill(tf.shape(index), tf.cast(seed, tf.int64)), index], axis=-1)
        apply = _batch_degradation(kind, images.shape[-1])
        degraded = apply(to_unit(batch, value_range), tf.constant(severity, tf.int32), seeds)
        degraded = from_unit(degraded, images.dtype, value_range)
        degraded = degraded if images.shape.rank == 4 else degraded[0]
        return tf.ensure_shape(degraded, images.shape)
