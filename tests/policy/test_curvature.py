import numpy as np
import pytest
import tensorflow as tf

from dqmq_tf.policy.curvature import follow_curvature

BATCH, POINTS = 64, 3


def gradient_of(contrast, slope, scale=1.0):
    """Returns the gradient to a zero offset for the upstream gradient `slope * contrast`."""
    offset = tf.zeros(contrast.shape)
    with tf.GradientTape() as tape:
        tape.watch(offset)
        total = tf.reduce_sum(
            slope * contrast * follow_curvature(offset, tf.constant(slope), scale)
        )
    return np.asarray(tape.gradient(total, offset))


@pytest.fixture
def contrast():
    return np.random.default_rng(0).normal(size=(BATCH, POINTS)).astype("float32")


@pytest.fixture
def slope():
    return np.random.default_rng(1).uniform(0.5, 2.0, (BATCH, POINTS)).astype("float32")


def test_the_value_is_unchanged(contrast, slope):
    np.testing.assert_array_equal(follow_curvature(tf.constant(contrast), slope), contrast)


def test_the_gradient_has_mean_zero_over_a_batch(contrast, slope):
    gradient = gradient_of(contrast, slope)
    np.testing.assert_allclose(gradient.sum(axis=0), 0.0, atol=1e-5)
    assert np.abs(gradient).max() > 0.01


def test_images_with_more_curvature_than_the_mean_are_pulled_up(contrast, slope):
    gradient = gradient_of(contrast, slope)
    above = np.square(contrast) > np.square(contrast).mean(axis=0)
    assert (gradient[above] < 0).all() and (gradient[~above] > 0).all()


def test_neither_sign_nor_slope_nor_size_of_the_contrasts_matters(contrast, slope):
    gradient = gradient_of(contrast, slope)
    np.testing.assert_allclose(gradient_of(-contrast, 2 * slope), gradient, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(gradient_of(1e-4 * contrast, slope), gradient, rtol=1e-3, atol=1e-6)


def test_the_gradient_is_scaled_like_the_loss(contrast, slope):
    gradient = gradient_of(contrast, slope)
    scaled = gradient_of(1024 * contrast, slope, scale=1024.0)
    np.testing.assert_allclose(scaled, 1024 * gradient, rtol=1e-3, atol=1e-3)


def test_draws_that_are_not_neighbors_of_the_mean_have_no_effect(contrast, slope):
    slope[:10] = 0.0
    gradient = gradient_of(contrast, slope)
    assert (gradient[:10] == 0).all() and (gradient[10:] != 0).any()
    rest = gradient_of(contrast[10:], slope[10:]) * (BATCH - 10) / BATCH
    np.testing.assert_allclose(gradient[10:], rest, rtol=1e-3, atol=1e-6)
    assert np.isfinite(gradient_of(contrast, np.zeros_like(slope))).all()
    assert np.isfinite(gradient_of(np.zeros_like(contrast), slope)).all()


def test_one_image_cannot_dominate_a_batch(contrast, slope):
    contrast[0] = 1e4
    gradient = gradient_of(contrast, slope)
    assert (np.abs(gradient[0]) <= 25 / BATCH).all()


def test_images_are_pulled_back_to_the_static_bits(contrast, slope):
    offset = tf.constant(np.random.default_rng(2).normal(size=contrast.shape).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(offset)
        total = tf.reduce_sum(slope * contrast * follow_curvature(offset, tf.constant(slope)))
    pull = np.asarray(tape.gradient(total, offset)) - gradient_of(contrast, slope)
    np.testing.assert_allclose(pull, np.log(4.0) * offset / BATCH, rtol=1e-3, atol=1e-6)


# At equilibrium, tanh(ln 4 * (log2(root) - apart) / 2) = ln 4 * apart / 2.
@pytest.mark.parametrize("root, apart", [(1.0, 0.0), (1.5, 0.29), (2.0, 0.49), (4.0, 0.92)])
def test_bits_settle_half_way_to_where_the_curvature_is_equal(root, apart):
    """Images with `root` times the contrast have equal squares if they get log2(root) more bits."""
    random, z = np.random.default_rng(0), np.repeat([-1.0, 1.0], BATCH).astype("float32")
    sensitivity = np.where(z > 0, root, 1.0)
    direction = tf.Variable(0.0)
    for step in range(600):
        with tf.GradientTape() as tape:
            offset = (direction * z)[:, None]
            followed = follow_curvature(offset, tf.ones_like(offset))
            # Each bit halves the step size, and with it the contrast between two bit-widths.
            contrast = sensitivity * random.normal(size=len(z)) * 2.0 ** -offset.numpy()[:, 0]
            total = tf.reduce_sum(contrast.astype("float32")[:, None] * followed)
        direction.assign_sub(0.2 / (1 + step / 50) * tape.gradient(total, direction))
    assert abs(2 * float(direction.numpy()) - apart) < 0.06
