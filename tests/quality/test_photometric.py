import numpy as np
import pytest
import tensorflow as tf

from dqmq_tf import quality
from dqmq_tf.quality import photometric


@pytest.fixture(scope="module")
def colors():
    return np.random.default_rng(0).uniform(0, 1, [24, 24, 3]).astype(np.float32)


def test_brightness_adds_to_the_hsv_value(colors):
    for shift, severity in zip(photometric.BRIGHTNESS, quality.SEVERITIES):
        hsv = tf.image.rgb_to_hsv(colors).numpy()
        hsv[..., 2] = np.minimum(hsv[..., 2] + shift, 1.0)
        expected = tf.image.hsv_to_rgb(hsv)
        np.testing.assert_allclose(
            quality.degrade(colors, "brightness", severity), expected, atol=1e-5
        )


def test_brightness_turns_black_to_gray():
    black = np.zeros([4, 4, 3], np.float32)
    np.testing.assert_allclose(quality.degrade(black, "brightness", 2), 0.1, atol=1e-6)


def test_contrast_keeps_the_mean_and_scales_the_deviation(colors):
    for scale, severity in zip(photometric.CONTRAST, quality.SEVERITIES):
        flat = quality.degrade(colors, "contrast", severity).numpy()
        np.testing.assert_allclose(flat.mean((0, 1)), colors.mean((0, 1)), atol=1e-5)
        np.testing.assert_allclose(flat.std((0, 1)), scale * colors.std((0, 1)), rtol=1e-4)


def test_low_light_dims_by_the_exposure_and_adds_noise(gray):
    for exposure, severity in zip(photometric.LOW_LIGHT_EXPOSURE, quality.SEVERITIES):
        dark = quality.degrade(gray, "low_light", severity).numpy()
        light = exposure * 0.5**2.2
        linear = dark**2.2
        np.testing.assert_allclose(linear.mean(), light, rtol=0.05)
        np.testing.assert_allclose(linear.std(), np.sqrt(light / 1000 + 0.002**2), rtol=0.1)


def test_fog_follows_its_formula(colors):
    cloud_in = quality.degrade(np.full_like(colors, 0.5), "fog", 3, seed=4).numpy()
    thickness, _ = photometric.FOG_THICKNESS_AND_DECAY[2]
    cloud = (cloud_in * (0.5 + thickness) / 0.5 - 0.5) / thickness
    assert cloud.min() >= -1e-5 and cloud.max() <= 1 + 1e-5
    brightest = colors.max()
    expected = (colors + thickness * cloud) * brightest / (brightest + thickness)
    np.testing.assert_allclose(quality.degrade(colors, "fog", 3, seed=4), expected, atol=1e-5)


@pytest.mark.parametrize("size, side", [(1, 1), (2, 2), (20, 32), (32, 32), (33, 64)])
def test_plasma_fractal_spans_its_range(size, side):
    cloud = photometric.plasma_fractal(size, 2.0, tf.constant([1, 2], tf.int64)).numpy()
    assert cloud.shape == (side, side)
    assert cloud.min() == 0.0 and cloud.max() == (1.0 if side > 1 else 0.0)


def test_plasma_fractal_is_smoother_with_a_higher_decay():
    def roughness(decay):
        cloud = photometric.plasma_fractal(64, decay, tf.constant([1, 2], tf.int64)).numpy()
        return np.abs(np.diff(cloud, axis=0)).mean()

    assert roughness(3.0) < roughness(2.0) < roughness(1.5)
