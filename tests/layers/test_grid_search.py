import numpy as np
import pytest
import tensorflow as tf

from dqmq_tf.layers.grid_search import activation_grid, bits_of, weight_grid


def integers(bits, shape, low=None):
    high = 2 ** (bits - 1) - 1
    values = np.random.default_rng(bits).integers(-high if low is None else low, high + 1, shape)
    # The largest integer is in use in each channel, so that no larger step fits.
    values[0] = high
    values[1] = high - 1
    return values


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axes, steps", [((), (1, 1)), ((1,), (1, 5)), ((-1,), (1, 5))])
def test_weights_on_a_grid_are_found_with_their_integers(bits, axes, steps):
    expected = integers(bits, (40, 5))
    step = np.random.default_rng(0).uniform(0.001, 3.0, steps).astype("float32")
    found = weight_grid((expected * step).astype("float32"), axes)
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_allclose(found[1], np.broadcast_to(step, found[1].shape), rtol=1e-6)
    assert found[1].shape == ((1, 5) if axes else (1, 1))
    assert bits_of(expected) == bits


def test_the_axes_of_channels_may_stand_anywhere():
    expected = np.moveaxis(integers(4, (30, 2, 3)), 0, 1)
    step = np.random.default_rng(1).uniform(0.1, 1.0, (2, 1, 3)).astype("float32")
    found = weight_grid((expected * step).astype("float32"), (0, 2))
    np.testing.assert_array_equal(found[0], expected)
    np.testing.assert_allclose(found[1], step, rtol=1e-6)
    assert weight_grid((expected * step).astype("float32"), ()) is None


def test_the_lowest_integer_is_part_of_the_grid():
    values = np.array([[-8, 7], [3, 1], [0, -5]])
    assert bits_of(values) == 4 and bits_of(-values) == 5
    np.testing.assert_array_equal(weight_grid(values * np.float32(0.3), (1,))[0], values)
    wide = np.array([[-128, 127], [1, 3]])
    np.testing.assert_array_equal(weight_grid(wide * np.float32(0.1), ())[0], wide)
    # 128 does not fit into int8.
    assert weight_grid(-wide * np.float32(0.1), ()) is None


def test_other_weights_are_on_no_grid():
    weights = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    assert weight_grid(weights, (1,)) is None
    weights[0, 0] = np.nan
    assert weight_grid(weights, ()) is None
    almost = integers(4, (40, 5)) * np.float32(0.1)
    almost[7, 2] += 0.002
    assert weight_grid(almost, (1,)) is None


def test_zeros_have_a_step():
    found = weight_grid(np.array([[0.0, 0.5], [0.0, 1.0]], "float32"), (1,))
    np.testing.assert_array_equal(found[0], [[0, 1], [0, 2]])
    assert (found[1] > 0).all()


def fake_quantized(low, high, bits, narrow_range=False):
    def quantize(values):
        y = tf.quantization.fake_quant_with_min_max_vars(values, low, high, bits, narrow_range)
        return np.repeat(y.numpy()[:, None], 3, axis=1)

    return quantize


@pytest.mark.parametrize("low, high", [(-6.0, 6.0), (0.0, 1.7), (-0.013, 2.5), (-900.0, 3.0)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_grid_of_a_fake_quantization_is_found(low, high, bits):
    step, zero_point, levels = activation_grid(fake_quantized(low, high, bits))
    assert levels == 2**bits
    assert step == pytest.approx((high - low) / (levels - 1), rel=1e-5)
    assert zero_point == np.clip(np.round(-low / step), 0, levels - 1)


def test_a_narrow_range_has_a_level_less():
    assert activation_grid(fake_quantized(-6.0, 6.0, 8, True))[2] == 255


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda x: x, "does not clip"),
        (lambda x: np.round(x), "does not clip"),
        (lambda x: np.clip(x, -1, 1), "more than 256 levels"),
        (lambda x: 0 * x, "one number of all values"),
        (lambda x: np.sign(x), "0 is not among"),
        (lambda x: np.floor(np.clip(x, -3, 3)), "does not round to the nearest"),
        (lambda x: np.clip(np.round(x), -3, 3) + 0.5, "0 is not among"),
        (lambda x: np.clip(np.round(x), 1, 4), "0 is not among"),
        (lambda x: np.exp2(np.clip(np.round(x), -3, 3)) - 0.125, "does not round to the nearest"),
        (lambda x: np.full_like(x, np.nan), "does not clip"),
        (lambda x: np.clip(np.round(x), -np.abs(x).max(), 1), "does not clip"),
    ],
)
def test_other_functions_are_no_grid_and_the_reason_is_given(function, reason):
    assert reason in activation_grid(lambda x: function(x)[:, None])


def test_a_grid_that_differs_between_channels_is_none():
    def quantize(x):
        return np.clip(np.round(x)[:, None], [-3, -2], [3, 2])

    assert activation_grid(quantize) == "it differs between channels"
