import numpy as np
import pytest
import tensorflow as tf

from dqmq_tf.quality.value_range import from_unit, resolve_value_range, to_unit


@pytest.mark.parametrize(
    "dtype, value_range, expected",
    [
        (tf.uint8, None, (0, 255)),
        (tf.float32, None, (0, 1)),
        (tf.float32, (-1, 1), (-1, 1)),
        (tf.int8, (-128, 127), (-128, 127)),
    ],
)
def test_resolve_value_range_has_defaults_and_checks_the_type(dtype, value_range, expected):
    assert resolve_value_range(dtype, value_range) == expected


@pytest.mark.parametrize(
    "dtype, value_range, error, message",
    [
        (tf.string, None, TypeError, r"Found string. Cast"),
        (tf.int8, None, ValueError, "does not fit images of dtype int8"),
        (tf.float32, (1, 0), ValueError, "low < high"),
        (tf.float32, 255, ValueError, "Found 255"),
        (tf.float32, (0, np.inf), ValueError, "finite"),
    ],
)
def test_resolve_value_range_rejects_invalid_ranges(dtype, value_range, error, message):
    with pytest.raises(error, match=message):
        resolve_value_range(dtype, value_range)


def test_conversion_to_unit_and_back_is_exact_for_every_byte():
    images = tf.range(256, dtype=tf.int32)
    images = tf.cast(images, tf.uint8)
    back = from_unit(to_unit(images, (0, 255)), tf.uint8, (0, 255))
    np.testing.assert_array_equal(back, images)


def test_a_small_overshoot_is_clipped_and_a_large_one_refused():
    np.testing.assert_allclose(to_unit(tf.constant([-0.1, 1.2]), (0, 1)), [0, 1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="value_range"):
        to_unit(tf.constant([0.0, 255.0]), (0, 1))


@pytest.mark.parametrize(
    "dtype, values, value_range",
    [
        ("uint16", [0, 60_000], (0, 255)),
        ("int32", [-200, 255], (0, 255)),
        ("uint8", [0, 9], (0, 1)),
    ],
)
def test_integers_far_outside_the_range_are_refused(dtype, values, value_range):
    with pytest.raises(tf.errors.InvalidArgumentError, match="value_range"):
        to_unit(tf.constant(values, dtype), value_range)


def test_integers_of_a_whole_type_need_no_check():
    graph = tf.function(lambda images: to_unit(images, (0, 255))).get_concrete_function(
        tf.TensorSpec([4], tf.uint8)
    )
    assert "Assert" not in {operation.type for operation in graph.graph.get_operations()}
