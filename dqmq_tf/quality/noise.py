"""Sensor and transmission noise, as tensor functions of one image.

Every degradation of this package has the same signature: ``image`` is a float32 tensor
``[height, width, channels]`` in [0, 1], ``severity`` an int32 scalar from 1 to 5, ``seed`` an
int64 pair for TensorFlow's stateless random numbers. What comes back has the shape of ``image`` and
may leave [0, 1]; `degradations.degrade` clips it.

Names and severities are those of CIFAR-10-C (Hendrycks and Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations", ICLR 2019; script
``ImageNet-C/create_c/make_cifar_c.py`` of https://github.com/hendrycks/robustness).
"""

import tensorflow as tf

from dqmq_tf.quality.severity import at_severity

GAUSSIAN_STDDEV = (0.04, 0.06, 0.08, 0.09, 0.10)
SHOT_PHOTONS = (500.0, 250.0, 100.0, 75.0, 50.0)
IMPULSE_SHARE = (0.01, 0.02, 0.03, 0.05, 0.07)
SPECKLE_STDDEV = (0.06, 0.10, 0.12, 0.16, 0.20)


def gaussian_noise(image, severity, seed):
    """Adds ``N(0, s²)`` to every value; ``s`` is `GAUSSIAN_STDDEV` (CIFAR-10-C)."""
    normal = tf.random.stateless_normal(tf.shape(image), seed)
    return image + at_severity(GAUSSIAN_STDDEV, severity) * normal


def shot_noise(image, severity, seed):
    """Counts photons: ``Poisson(image * n) / n``; ``n`` is `SHOT_PHOTONS` (CIFAR-10-C)."""
    photons = at_severity(SHOT_PHOTONS, severity)
    counts = tf.random.stateless_poisson(tf.shape(image), seed, image * photons, tf.float32)
    return counts / photons


def impulse_noise(image, severity, seed):
    """Sets a share of the values to 0 or 1, evenly; `IMPULSE_SHARE` (CIFAR-10-C).

    Salt and pepper fall on each channel by itself, as ``skimage.util.random_noise`` has it.
    """
    half = at_severity(IMPULSE_SHARE, severity) / 2.0
    uniform = tf.random.stateless_uniform(tf.shape(image), seed)
    image = tf.where(uniform < half, 0.0, image)
    return tf.where(uniform >= 1.0 - half, 1.0, image)


def speckle_noise(image, severity, seed):
    """Multiplies by ``1 + N(0, s²)``; ``s`` is `SPECKLE_STDDEV` (CIFAR-10-C)."""
    normal = tf.random.stateless_normal(tf.shape(image), seed)
    return image * (1.0 + at_severity(SPECKLE_STDDEV, severity) * normal)
