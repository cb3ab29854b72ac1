"""The page's degradations and resizing are those of `dqmq_tf.quality` and TensorFlow."""

import math

import numpy as np
import pytest
import tensorflow as tf
from helpers import web_page

from dqmq_tf import quality
from dqmq_tf.quality import blur, noise

SEED = 7


def picture(channels):
    """A picture with an edge, a slope and noise; sides that are no multiple of 8, 16 or each other."""
    random = np.random.default_rng(channels)
    image = np.linspace(0, 255, 19)[None, :, None] * np.ones((22, 1, channels))
    image[5:12, 4:13] = random.uniform(0, 255, channels)
    image += random.normal(0, 12, image.shape)
    image[:2] = 0
    return np.clip(image, 0, 255).round().astype("uint8")


def draws(kind, image, severity):
    """The random numbers that `quality.degrade` draws for an image with `SEED`, in their order."""
    seed = tf.constant([SEED, 0], tf.int64)
    if kind in ("gaussian_noise", "speckle_noise", "low_light"):
        return [tf.random.stateless_normal(image.shape, seed).numpy()]
    if kind == "impulse_noise":
        return [tf.random.stateless_uniform(image.shape, seed).numpy()]
    if kind == "shot_noise":
        rates = tf.constant(image / np.float32(255)) * noise.SHOT_PHOTONS[severity - 1]
        return [tf.random.stateless_poisson(image.shape, seed, rates, tf.float32).numpy()]
    if kind == "motion_blur":
        limit = blur.MOTION_MAX_ANGLE
        return [tf.random.stateless_uniform([1], seed, -limit, limit).numpy()]
    if kind == "fog":
        levels = math.ceil(math.log2(max(image.shape[:2])))
        return [
            tf.random.stateless_uniform([3, side, side], seed + side, -1.0, 1.0).numpy()
            for side in (2**level for level in range(levels))
        ]
    return []


@pytest.mark.parametrize("kind", quality.KINDS)
def test_degrades_as_the_package_does(tab, kind):
    for image in (picture(3), picture(1)):
        for severity in quality.SEVERITIES:
            expected = quality.degrade(image, kind, severity, seed=SEED).numpy().astype(int)
            numbers = draws(kind, image, severity)
            found = web_page.degrade(tab, image, kind, severity, numbers)
            # JavaScript computes in float64, TensorFlow in float32, so that a value next to a half
            # may be rounded to the other side. JPEG is computed in integers.
            difference = np.abs(found - expected)
            assert difference.max() <= (0 if kind == "jpeg" else 1), severity
            assert (difference > 0).mean() <= 0.01, severity
            assert np.abs(expected - image.astype(int)).max() > 3


def test_has_the_kinds_and_the_severities_of_the_package(tab):
    kinds = tab.evaluate("import('./quality/degradations.js').then(({KINDS}) => KINDS)")
    assert tuple(kinds) == quality.KINDS
    shown = tab.locator("#kind option").evaluate_all("all => all.map(({value}) => value)")
    assert tuple(shown) == quality.KINDS
    severity = tab.locator("#severity")
    assert (severity.get_attribute("min"), severity.get_attribute("max")) == ("0", "5")


def test_draws_the_distributions_that_it_names(tab):
    script = """async () => {
      const {Random} = await import("./quality/random.js");
      const random = new Random(3);
      const poisson = (rate) => [...random.poisson(new Float32Array(20000).fill(rate))];
      return {normal: [...random.normal(20001)], uniform: [...random.uniform(20000, -2, 4)],
              few: poisson(2.5), many: poisson(10), most: poisson(400), none: poisson(0)};
    }"""
    numbers = {name: np.array(values) for name, values in tab.evaluate(script).items()}
    expected = {"normal": (0, 1), "uniform": (1, 3), "none": (0, 0)}
    expected |= {"few": (2.5, 2.5), "many": (10, 10), "most": (400, 400)}
    for name, (mean, variance) in expected.items():
        tolerance = 5 * math.sqrt(variance / 20_000)
        assert abs(numbers[name].mean() - mean) <= tolerance, name
        assert abs(numbers[name].var() - variance) <= 0.06 * variance, name
    for name, rate in (("few", 2.5), ("many", 10)):
        counts = np.arange(25)
        shares = np.array([np.mean(numbers[name] == count) for count in counts])
        chances = [math.exp(-rate) * rate**c / math.factorial(c) for c in counts]
        assert np.abs(shares - chances).max() < 0.012, name
    assert np.abs(numbers["uniform"] - 1).max() <= 3


@pytest.mark.parametrize("rule", ["bilinear", "nearest", "area"])
def test_resizes_as_tensorflow_does(tab, rule):
    image = picture(3)
    for size in ((7, 11), (22, 19), (40, 33), (1, 1)):
        expected = tf.image.resize(image, size, rule).numpy()
        np.testing.assert_allclose(web_page.resize(tab, image, size, rule), expected, atol=1e-3)
