"""Optical blur and motion blur of one image. See `noise` for the signature and the source.

A blur is a list of taps: each output pixel is a weighted sum of the pixels at certain offsets.
Outside the image, the nearest border pixel is used. Therefore no border darkens, and images may be
smaller than the kernel. Radii and widths are in pixels and chosen for 32x32 images. They do not grow
with the image.
"""

import math

import numpy as np
import tensorflow as tf

from dqmq_tf.quality.severity import at_severity

GAUSSIAN_SIGMA = (0.4, 0.6, 0.7, 0.8, 1.0)
DEFOCUS_RADIUS_AND_ALIAS = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))
MOTION_SIGMA = (1.0, 1.5, 2.0, 2.0, 2.5)
MOTION_MAX_ANGLE = math.pi / 4


def weighted_taps(
    image: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor, weights: tf.Tensor
) -> tf.Tensor:
    """Returns a weighted sum of shifted copies of an image.

    Args:
        image: The image, shape `[height, width, channels]`.
        rows: The row offset of each tap, int32, shape `[taps]`.
        columns: The column offset of each tap, int32, shape `[taps]`.
        weights: The weight of each tap, float32, shape `[taps]`.

    Returns:
        A tensor like `image`. At `(y, x)` it is the sum over taps of
        `weight * image[y + row, x + column]`, with coordinates clamped to the image.
    """
    shape = tf.shape(image)
    height, width, channels = shape[0], shape[1], shape[2]
    y = tf.clip_by_value(rows[:, None] + tf.range(height), 0, height - 1)
    x = tf.clip_by_value(columns[:, None] + tf.range(width), 0, width - 1)
    flat = tf.reshape(image, [height * width, channels])
    shifted = tf.gather(flat, y[:, :, None] * width + x[:, None, :])
    summed = tf.matmul(weights[None], tf.reshape(shifted, [tf.size(weights), -1]))
    return tf.reshape(summed, shape)


def _gaussian_kernels() -> np.ndarray:
    """Returns a normalized 1-D kernel per severity, cut at `int(4 sigma + 0.5)` as in scikit-image."""
    offsets = np.arange(-4, 5)
    kernels = []
    for sigma in GAUSSIAN_SIGMA:
        kernel = np.exp(-0.5 * (offsets / sigma) ** 2) * (np.abs(offsets) <= int(4 * sigma + 0.5))
        kernels.append(kernel / kernel.sum())
    return np.asarray(kernels, np.float32)


def _defocus_kernels() -> np.ndarray:
    """Returns a normalized 5x5 disk per severity, softened by a 3x3 Gaussian as in CIFAR-10-C."""
    y, x = np.mgrid[-2:3, -2:3]
    kernels = []
    for radius, alias_sigma in DEFOCUS_RADIUS_AND_ALIAS:
        disk = np.pad(((x**2 + y**2) <= radius**2).astype(np.float64), 1)
        side = math.exp(-0.5 / alias_sigma**2)
        soft = np.array([side, 1.0, side]) / (1.0 + 2.0 * side)
        for axis in (0, 1):
            shifted = [w * np.roll(disk, i - 1, axis=axis) for i, w in enumerate(soft)]
            disk = np.sum(shifted, axis=0)
        kernels.append(disk[1:-1, 1:-1].ravel() / disk.sum())
    return np.asarray(kernels, np.float32)


_GAUSSIAN_KERNELS = _gaussian_kernels()
_DEFOCUS_KERNELS = _defocus_kernels()


def gaussian_blur(image: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Convolves with a Gaussian of `GAUSSIAN_SIGMA` pixels (CIFAR-10-C)."""
    del seed
    offsets = tf.range(-4, 5)
    zeros = tf.zeros_like(offsets)
    weights = at_severity(_GAUSSIAN_KERNELS, severity)
    return weighted_taps(weighted_taps(image, offsets, zeros, weights), zeros, offsets, weights)


def defocus_blur(image: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Convolves with a disk, as a lens out of focus does (CIFAR-10-C).

    `DEFOCUS_RADIUS_AND_ALIAS` holds the radius of the disk and the width of the Gaussian that softens
    its edge, both in pixels.
    """
    del seed
    rows, columns = np.mgrid[-2:3, -2:3].reshape(2, -1)
    weights = at_severity(_DEFOCUS_KERNELS, severity)
    return weighted_taps(
        image, tf.constant(rows, tf.int32), tf.constant(columns, tf.int32), weights
    )


def motion_blur(image: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Smears along a line at a random angle between -45 and 45 degrees (CIFAR-10-C).

    The weights are half a Gaussian of `MOTION_SIGMA` pixels. The trail lies on one side, as in
    ImageMagick's `MotionBlurImage`, which CIFAR-10-C calls. This shifts the image by up to two pixels.
    CIFAR-10-C also lists radii (6, 6, 6, 8, 9), but they only cut off weights of zero. Therefore
    severities 3 and 4 are equal, there and here.
    """
    sigma = at_severity(MOTION_SIGMA, severity)
    # Weights beyond four sigma of the widest kernel are negligible.
    distance = tf.range(1.0 + math.ceil(4 * max(MOTION_SIGMA)))
    weights = tf.exp(-0.5 * tf.square(distance / sigma))
    angle = tf.random.stateless_uniform([], seed, -MOTION_MAX_ANGLE, MOTION_MAX_ANGLE)
    rows = tf.cast(tf.round(distance * tf.sin(angle)), tf.int32)
    columns = tf.cast(tf.round(distance * tf.cos(angle)), tf.int32)
    return weighted_taps(image, rows, columns, weights / tf.reduce_sum(weights))
