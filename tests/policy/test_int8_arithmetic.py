import numpy as np
import pytest
import tensorflow as tf

from dqmq_tf.policy.int8_arithmetic import DECIDER_BITS, fake_int8

VALUES = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")


@pytest.mark.parametrize("largest", [None, 1.0, 4.0])
def test_values_lie_on_a_grid_of_eight_bits(largest):
    end = np.abs(VALUES).max() if largest is None else largest
    values = np.clip(VALUES, -end, end)
    multiples = np.asarray(fake_int8(values, largest)) * (2 ** (DECIDER_BITS - 1) - 1) / end
    np.testing.assert_allclose(multiples, np.round(multiples), atol=1e-3)
    assert np.abs(multiples).max() <= 127.001
    assert np.abs(multiples * end / 127 - values).max() <= 0.51 * end / 127


def test_rounding_twice_changes_nothing():
    once = fake_int8(VALUES)
    np.testing.assert_allclose(fake_int8(once), once, atol=1e-6)


def test_the_gradient_passes_straight_through():
    values = tf.constant(VALUES)
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = tf.reduce_sum(fake_int8(values) * 2.0)
    np.testing.assert_array_equal(tape.gradient(total, values), np.full_like(VALUES, 2.0))


def test_zeros_stay_zeros():
    np.testing.assert_array_equal(fake_int8(np.zeros(3, "float32")), np.zeros(3))
