"""Sensor and transmission noise, as tensor functions of one image.

All degradations in this package have the same signature: `image` is a float32 tensor
`[height, width, channels]` in [0, 1], `severity` is an int32 scalar from 1 to 5, and `seed` is an
int64 pair for TensorFlow's stateless random numbers. The result has the shape of `image` and may
exceed [0, 1]; `degradations.degrade` clips it.

Names and severities are those of CIFAR-10-C (Hendrycks and Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations", ICLR 2019; script
`ImageNet-C/create_c/make_cifar_c.py` of https://github.com/hendrycks/robustness).
"""

import tensorflow as tf

from dqmq_tf.quality.severity import at_severity

GAUSSIAN_STDDEV = (0.04, 0.06, 0.08, 0.09, 0.10)
SHOT_PHOTONS = (500.0, 250.0, 100.0, 75.0, 50.0)
IMPULSE_SHARE = (0.01, 0.02, 0.03, 0.05, 0.07)
SPECKLE_STDDEV = (0.06, 0.10, 0.12, 0.16, 0.20)


def gaussian_noise(image: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Adds `N(0, s²)` to every value, where `s` is `GAUSSIAN_STDDEV` (CIFAR-10-C)."""
    normal = tf.random.stateless_normal(tf.shape(image), seed)
    return image + at_severity(GAUSSIAN_STDDEV, severity) * normal


def shot_noise(image: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns `Poisson(image * n) / n`, where `n` is `SHOT_PHOTONS` (CIFAR-10-C)."""
    photons = at_severity(SHOT_PHOTONS, severity)
    counts = tf.random.stateless_poisson(tf.shape(image), seed, image * photons, tf.float32)
    return counts / photons


def impulse_noise(image: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Sets a share of the values to 0 or 1 with equal probability (CIFAR-10-C).

    The share is `IMPULSE_SHARE`. Each channel is affected independently, as in
    `skimage.util.random_noise`.
    """
    half = at_severity(IMPULSE_SHARE, severity) / 2.0
    uniform = tf.random.stateless_uniform(tf.shape(image), seed)
    image = tf.where(uniform < half, 0.0, image)
    return tf.where(uniform >= 1.0 - half, 1.0, image)


def speckle_noise(image: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Multiplies by `1 + N(0, s²)`, where `s` is `SPECKLE_STDDEV` (CIFAR-10-C)."""
    normal = tf.random.stateless_normal(tf.shape(image), seed)
    return image * (1.0 + at_severity(SPECKLE_STDDEV, severity) * normal)
