import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import dqmq_tf
from dqmq_tf.layers import ActivationQuantizer
from dqmq_tf.policy.decision_tensor import EXECUTED, FIELDS, HIGH, LOW, MEAN, SLOPE

BITS = (2, 4, 8)


def calibrated(data, **kwargs):
    layer = ActivationQuantizer(**{"bit_widths": BITS, "column": 0, **kwargs})
    layer.observe()
    for part in data if isinstance(data, list) else [data]:
        np.testing.assert_array_equal(layer(part), part)
    layer.calibrate()
    return layer


def executing(bits):
    """Returns a decision `[batch, 1, 1]` that executes these bit-widths."""
    return tf.reshape(tf.constant(bits, tf.float32), (-1, 1, 1))


@pytest.fixture
def data():
    return np.random.default_rng(0).normal(0.5, 1.0, (6, 5, 4)).astype("float32")


def test_tensors_pass_unchanged_until_calibration(data):
    layer = ActivationQuantizer(BITS, column=0)
    np.testing.assert_array_equal(layer(data, decision=executing([2] * 6)), data)
    assert float(layer.calibrated) == 0


def test_each_sample_takes_its_own_bits(data):
    layer = calibrated(data)
    y = ops.convert_to_numpy(layer(data, decision=executing([2, 4, 8, 8, 4, 2])))
    for row, bits in zip(range(6), (2, 4, 8, 8, 4, 2)):
        step, zero_point = layer.values(bits)
        integers = y[row] / step
        np.testing.assert_allclose(integers, np.round(integers), atol=1e-3)
        assert np.round(integers).min() >= -zero_point
        assert np.round(integers).max() <= 2**bits - 1 - zero_point
        alone = layer(data[row : row + 1], decision=executing([bits]))
        np.testing.assert_array_equal(alone[0], y[row])
    errors = np.square(y - data).mean((1, 2))
    assert max(errors[[2, 3]]) < min(errors[[1, 4]]) and max(errors[[1, 4]]) < min(errors[[0, 5]])


def test_one_decision_serves_the_whole_batch(data):
    layer = calibrated(data)
    same = layer(data, decision=executing([4] * 6))
    np.testing.assert_array_equal(layer(data, decision=executing([4])), same)


def test_a_point_without_a_column_takes_its_only_candidate(data):
    layer = calibrated(data, bit_widths=(8,), column=None)
    step, _ = layer.values(8)
    assert np.abs(layer(data) - data).max() <= step / 2 * 1.001


def test_calibration_sees_all_batches_and_all_channels():
    # So many values that a stride over them would hit a single channel.
    data = np.zeros((64, 32, 32, 16), "float32")
    data[..., 3] = -4.0
    data[..., 7] = 2.0
    step, zero_point = calibrated(data).values(8)
    assert -zero_point * step == pytest.approx(-4.0, rel=0.05)
    assert (255 - zero_point) * step == pytest.approx(2.0, rel=0.05)
    parts = [np.full((2, 3), v, "float32") for v in (0.0, 5.0, -5.0)]
    step, zero_point = calibrated(parts).values(8)
    assert 255 * step == pytest.approx(10.0, rel=0.05)


def test_many_calls_keep_no_more_values_than_two_and_all_extremes():
    layer = ActivationQuantizer(BITS, column=0)
    layer.observe()
    random = np.random.default_rng(0)
    for call in range(40):
        layer(random.uniform(0, 1 + call / 10, (1, 70_000)).astype("float32"))
        assert sum(map(len, layer._observed)) <= 2 * (65_536 + 2)
    sizes = {len(values) for values in layer._observed}
    assert len(sizes) == 1 and sizes.pop() > 1_000
    step, _ = (layer.calibrate(), layer.values(8))[1]
    assert 255 * step == pytest.approx(4.9, rel=0.05)


def test_calibration_without_an_observation_changes_nothing(data):
    layer = calibrated(data)
    before = layer.get_weights()
    layer.calibrate()
    layer.observe()
    layer.calibrate()
    for a, b in zip(before, layer.get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_calibration_on_nan_or_infinity_names_the_tensor(bad, data):
    layer = ActivationQuantizer(BITS, column=0, name="conv2d_quantizer")
    layer.observe()
    data[1, 2, 3] = bad
    layer(data)
    with pytest.raises(ValueError, match="'conv2d_quantizer'.*NaN"):
        layer.calibrate()


@pytest.mark.parametrize("range,low,high", [("unit", 0.0, 1.0), ("tanh", -1.0, 1.0)])
def test_ranges_of_int8_kernels_are_fixed(range, low, high):
    data = np.linspace(low, high, 200, dtype="float32")[None]
    layer = calibrated(data * 0.3, range=range)
    assert not layer.trainable_variables
    for bits in BITS:
        step, zero_point = layer.values(bits)
        assert step == pytest.approx((high - low) / 2**bits)
        assert -zero_point * step == low
        y = ops.convert_to_numpy(layer(data, decision=executing([bits])))
        assert y.min() == low
        assert y.max() == pytest.approx(high - step)


def test_learned_steps_get_the_gradient_of_the_executed_candidate_only(data):
    layer = calibrated(data)
    with tf.GradientTape() as tape:
        loss = ops.sum(ops.square(layer(data, decision=executing([2, 2, 2, 4, 4, 4])) - 1.0))
    gradient = tape.gradient(loss, layer.log_step.value)
    assert gradient[0] != 0 and gradient[1] != 0 and gradient[2] == 0


def test_search_fields_give_a_gradient_to_each_samples_mean(data):
    layer = calibrated(data)
    fields = [None] * FIELDS
    fields[EXECUTED] = tf.constant([4.0, 8.0, 4.0, 2.0, 4.0, 8.0])
    fields[LOW] = tf.constant([2.0, 4.0, 4.0, 2.0, 2.0, 4.0])
    fields[HIGH] = tf.constant([4.0, 8.0, 8.0, 4.0, 4.0, 8.0])
    fields[SLOPE] = tf.constant([1.0, 1.0, 0.5, 0.5, 0.0, 1.0])
    fields[MEAN] = tf.constant([3.5, 5.0, 6.0, 3.0, 3.0, 6.0])
    decision = tf.stack(fields, axis=-1)[:, None]
    with tf.GradientTape() as tape:
        tape.watch(decision)
        y = layer(data, decision=decision)
        loss = ops.sum(y)
    gradient = tape.gradient(loss, decision).numpy()[:, 0]
    np.testing.assert_array_equal(y, layer(data, decision=decision[:, :, :1]))

    def at(bits):
        return ops.convert_to_numpy(layer(data, decision=executing(bits)))

    change = (at(fields[HIGH].numpy()) - at(fields[LOW].numpy())).sum((1, 2))
    expected = fields[SLOPE].numpy() * change
    np.testing.assert_allclose(gradient[:, MEAN], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(gradient[:, :MEAN], 0)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 2, 2, 2, 2)])
def test_tensors_of_any_rank_are_quantized(shape):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    layer = calibrated(x)
    assert layer(x, decision=executing([8, 4, 2])).shape == shape


def test_half_precision_stays_half_precision(data):
    layer = calibrated(data)
    y = layer(tf.cast(data, tf.float16), decision=executing([4] * 6))
    assert y.dtype == tf.float16
    np.testing.assert_allclose(y, layer(data, decision=executing([4] * 6)), rtol=1e-2, atol=0.4)


def test_masks_pass_through_the_quantizer():
    x = keras.layers.Embedding(5, 3, mask_zero=True)(np.array([[1, 2, 0], [3, 0, 0]]))
    layer = calibrated(ops.convert_to_numpy(x))
    y = layer(x, decision=executing([8, 4]))
    pooled = keras.layers.GlobalAveragePooling1D()
    means = [np.mean(y[0, :2], axis=0), np.mean(y[1, :1], axis=0)]
    np.testing.assert_allclose(pooled(y), means, rtol=1e-5)


def test_a_saved_quantizer_loads_with_its_config_and_weights(data, tmp_path):
    x = keras.Input((5, 4))
    decision = keras.Input((1, 1))
    layer = calibrated(data, range="affine", name="quantizer")
    model = keras.Model([x, decision], layer(x, decision=decision))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    inputs = [tf.constant(data), executing([2, 4, 8, 2, 4, 8])]
    np.testing.assert_array_equal(loaded(inputs), model(inputs))
    copy = ActivationQuantizer.from_config(layer.get_config())
    assert (copy.bit_widths, copy.column, copy.range) == (BITS, 0, "affine")


def followed(quantizer, values):
    """Step and zero point of the candidates after the quantizer followed values."""
    quantizer.observe()
    quantizer(keras.ops.convert_to_tensor(values, "float32"))
    quantizer.follow(quantizer.take_observed())
    return np.exp(quantizer.log_step.numpy()), quantizer.zero_point.numpy()


def grids(quantizer):
    return np.exp(quantizer.log_step.numpy()), quantizer.zero_point.numpy()


@pytest.mark.parametrize("factor, offset", [(10.0, 0.0), (1.0, 8.0), (1.0, -8.0), (0.05, 0.0)])
def test_ranges_follow_values_that_left_them(data, factor, offset):
    quantizer = calibrated(data, bit_widths=(4, 8))
    values = factor * data + offset
    expected = grids(calibrated(values, bit_widths=(4, 8)))
    for found, fitted in zip(followed(quantizer, values), expected):
        np.testing.assert_allclose(found, fitted, rtol=1e-5)
    np.testing.assert_allclose(quantizer(values, executing(8)), values, atol=expected[0][1])


@pytest.mark.parametrize("factor", [0.7, 0.9, 1.0, 1.05])
def test_ranges_that_fit_stay_as_training_left_them(data, factor):
    quantizer = calibrated(data, bit_widths=(4, 8))
    quantizer.log_step.assign_add([0.05, 0.02])
    before = quantizer.get_weights()
    followed(quantizer, factor * data)
    for found, expected in zip(quantizer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_only_the_candidates_that_need_it_are_fitted_again(data):
    quantizer = calibrated(data, bit_widths=(4, 8))
    before = grids(quantizer)
    quantizer.log_step.assign_add([0.0, -3.0])
    steps, _ = followed(quantizer, data)
    assert steps[0] == np.exp(np.log(before[0][0]))
    np.testing.assert_allclose(steps[1], before[0][1], rtol=1e-5)


@pytest.mark.parametrize("range", ["unit", "tanh", "pixels", "0..6.0"])
def test_fixed_ranges_follow_nothing(data, range):
    quantizer = calibrated(data, bit_widths=(8,), range=range)
    before = grids(quantizer)
    for found, expected in zip(followed(quantizer, 1000 * data), before):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_ranges_do_not_follow_a_training_that_broke_down(data, bad):
    quantizer = calibrated(data, bit_widths=(8,))
    before = grids(quantizer)
    values = 100 * data
    values[0] = bad
    for found, expected in zip(followed(quantizer, values), before):
        np.testing.assert_array_equal(found, expected)


def test_a_model_compiles_the_quantizers_of_shapes_that_hold_a_large_share_of_it():
    layers = keras.layers
    inputs = keras.Input((64, 64, 3))
    x = layers.Conv2D(32, 3, padding="same", name="large")(inputs)
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="small")(x)
    outputs = layers.Dense(2)(layers.GlobalAveragePooling2D()(x))
    qmodel = dqmq_tf.quantize_model(keras.Model(inputs, outputs))
    quantizers = {q.name.removesuffix("_quantizer"): q for q in qmodel._parts.quantizers}
    assert quantizers["large"].compiled and not quantizers["small"].compiled
    # 4,096 values of a sample are enough for a compilation, but few beside the others.
    assert not ActivationQuantizer.from_config(quantizers["small"].get_config()).compiled
    assert ActivationQuantizer.from_config(quantizers["large"].get_config()).compiled
