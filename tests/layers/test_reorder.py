import numpy as np
import tensorflow as tf

from dqmq_tf.layers import Reorder


def test_a_batch_is_permuted_and_restored():
    x = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    order = tf.constant([3, 0, 5, 1, 4, 2])
    moved = Reorder()(x, order)
    np.testing.assert_array_equal(moved, x[order.numpy()])
    np.testing.assert_array_equal(Reorder(inverse=True)(moved, order), x)
    none = tf.zeros((0,), tf.int32)
    np.testing.assert_array_equal(Reorder()(x, none), x)
    assert Reorder.from_config(Reorder(inverse=True).get_config()).inverse


def test_samples_that_were_repeated_are_restored_once():
    x = np.arange(3.0, dtype="float32")[:, None]
    order = tf.constant([2, 0, 1, 2])
    moved = Reorder()(x, order)
    np.testing.assert_array_equal(moved[:, 0], [2, 0, 1, 2])
    np.testing.assert_array_equal(Reorder(inverse=True)(moved, order, x), x)
