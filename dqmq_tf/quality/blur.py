"""Optical and motion blur of one image; see `noise` for the signature and the source.

A blur is a list of taps: each output pixel is a weighted sum of the pixels at some offsets from it,
and outside the image the nearest border pixel stands in, so no border darkens and images smaller
than the kernel work. Radii and widths are in pixels and chosen for 32x32 images: they do not grow
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


def weighted_taps(image, rows, columns, weights):
    """Sums shifted copies of an image.

    Args:
        image: ``[height, width, channels]``.
        rows: int32 ``[taps]``, the row offset of each tap.
        columns: int32 ``[taps]``, the column offset of each tap.
        weights: float32 ``[taps]``.

    Returns:
        ``[height, width, channels]``: at ``(y, x)`` the sum over taps of
        ``weight * image[y + row, x + column]``, coordinates clamped to the image.
    """
    shape = tf.shape(image)
    height, width, channels = shape[0], shape[1], shape[2]
    y = tf.clip_by_value(rows[:, None] + tf.range(height), 0, height - 1)
    x = tf.clip_by_value(columns[:, None] + tf.range(width), 0, width - 1)
    flat = tf.reshape(image, [height * width, channels])
    shifted = tf.gather(flat, y[:, :, None] * width + x[:, None, :])
    summed = tf.matmul(weights[None], tf.reshape(shifted, [tf.size(weights), -1]))
    return tf.reshape(summed, shape)


def _gaussian_rows():
    """One normalised 1-D kernel per severity, cut at ``int(4 sigma + 0.5)`` as scikit-image does."""
    offsets = np.arange(-4, 5)
    rows = []
    for sigma in GAUSSIAN_SIGMA:
        row = np.exp(-0.5 * (offsets / sigma) ** 2) * (np.abs(offsets) <= int(4 * sigma + 0.5))
        rows.append(row / row.sum())
    return np.asarray(rows, np.float32)


def _defocus_disks():
    """One normalised 5x5 disk per severity, softened by a 3x3 Gaussian as in CIFAR-10-C."""
    y, x = np.mgrid[-2:3, -2:3]
    disks = []
    for radius, alias_sigma in DEFOCUS_RADIUS_AND_ALIAS:
        disk = np.pad(((x**2 + y**2) <= radius**2).astype(np.float64), 1)
        side = math.exp(-0.5 / alias_sigma**2)
        soft = np.array([side, 1.0, side]) / (1.0 + 2.0 * side)
        disk = sum(w * np.roll(disk, i - 1, axis=0) for i, w in enumerate(soft))
        disk = sum(w * np.roll(disk, i - 1, axis=1) for i, w in enumerate(soft))
        disks.append(disk[1:-1, 1:-1].ravel() / disk.sum())
    return np.asarray(disks, np.float32)


_GAUSSIAN_ROWS = _gaussian_rows()
_DEFOCUS_DISKS = _defocus_disks()


def gaussian_blur(image, severity, seed):
    """Convolves with a Gaussian of `GAUSSIAN_SIGMA` pixels (CIFAR-10-C)."""
    del seed
    offsets = tf.range(-4, 5)
    still = tf.zeros_like(offsets)
    weights = at_severity(_GAUSSIAN_ROWS, severity)
    return weighted_taps(weighted_taps(image, offsets, still, weights), still, offsets, weights)


def defocus_blur(image, severity, seed):
    """Convolves with a disk, the blur of a lens out of focus (CIFAR-10-C).

    `DEFOCUS_RADIUS_AND_ALIAS` holds the disk's radius and the width of the Gaussian that softens its
    rim, both in pixels.
    """
    del seed
    rows, columns = np.mgrid[-2:3, -2:3].reshape(2, -1)
    weights = at_severity(_DEFOCUS_DISKS, severity)
    return weighted_taps(
        image, tf.constant(rows, tf.int32), tf.constant(columns, tf.int32), weights
    )


def motion_blur(image, severity, seed):
    """Smears along a line at an angle drawn from ±45° (CIFAR-10-C).

    The weights are half a Gaussian of `MOTION_SIGMA` pixels. The trail lies on one side, as
    ImageMagick's ``MotionBlurImage``, which CIFAR-10-C calls, has it: the image's content moves by up
    to two pixels with it. CIFAR-10-C also states radii, but each of them (6, 6, 6, 8, 9) only cuts
    weights that are nil, so its severities 3 and 4 are the same and so are ours.
    """
    sigma = at_severity(MOTION_SIGMA, severity)
    # Beyond four sigma of the widest kernel no weight is worth a tap.
    distance = tf.range(1.0 + math.ceil(4 * max(MOTION_SIGMA)))
    weights = tf.exp(-0.5 * tf.square(distance / sigma))
    angle = tf.random.stateless_uniform([], seed, -MOTION_MAX_ANGLE, MOTION_MAX_ANGLE)
    rows = tf.cast(tf.round(distance * tf.sin(angle)), tf.int32)
    columns = tf.cast(tf.round(distance * tf.cos(angle)), tf.int32)
    return weighted_taps(image, rows, columns, weights / tf.reduce_sum(weights))
