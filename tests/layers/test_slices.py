import numpy as np
import pytest
import tensorflow as tf

from dqmq_tf.layers.slices import in_slices, in_slices_of_positions, restored, sum_over


@pytest.mark.parametrize(
    ("shape", "slices", "of_positions"),
    [
        ((3, 16, 16, 6), 8, 8),
        ((3, 14, 14, 5), 7, 7),
        ((3, 13, 11, 2), 2, 1),
        ((3, 7, 7), 7, 7),
    ],
    ids=str,
)
def test_slices_have_equal_sizes_and_can_be_put_together(shape, slices, of_positions):
    x = tf.reshape(tf.range(np.prod(shape), dtype=tf.float32), shape)
    size = np.prod(shape[1:])
    found = in_slices(x)
    assert found.shape == (shape[0], slices, size // slices)
    np.testing.assert_array_equal(restored(found, x), x)
    found = in_slices_of_positions(x)
    channels = shape[-1]
    assert found.shape == (shape[0], of_positions, size // of_positions // channels, channels)
    np.testing.assert_array_equal(restored(found, x), x)


def test_a_sample_of_unknown_size_is_one_slice():
    @tf.function(input_signature=[tf.TensorSpec([None, None, 4, 3])])
    def cut_and_restore(x):
        slices, positions = in_slices(x), in_slices_of_positions(x)
        assert slices.shape[1] == positions.shape[1] == 1 and positions.shape[-1] == 3
        assert restored(slices, x).shape == x.shape
        return restored(slices, x), restored(positions, x)

    x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype("float32")
    for found in cut_and_restore(x):
        np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("axes", [(1,), (1, 2), (0, 1, 2), (0,), (2,)], ids=str)
@pytest.mark.parametrize("slices", [1, 8, 9])
@pytest.mark.parametrize("compiled", [False, True])
def test_sums_are_those_of_reduce_sum_and_keep_the_axes(axes, slices, compiled):
    x = np.random.default_rng(1).normal(size=(3, slices, 50)).astype("float32")
    found = tf.function(lambda x: sum_over(x, axes), jit_compile=compiled)(x)
    np.testing.assert_allclose(found, x.sum(axes, keepdims=True), rtol=1e-4, atol=1e-4)
