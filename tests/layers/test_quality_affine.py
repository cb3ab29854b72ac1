import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from dqmq_tf.layers import QualityAffine
from dqmq_tf.policy.int8_arithmetic import fake_int8

SIZE, CHANNELS = 4, 3


def random_affine(spread, **kwargs):
    layer = QualityAffine(**kwargs)
    x, z = tensors()
    layer(x, z)
    random = np.random.default_rng(1)
    for u in (layer.scale_direction, layer.shift_direction):
        u.assign(random.normal(0, spread, u.shape))
    return layer


def tensors(count=6):
    random = np.random.default_rng(0)
    x = random.normal(size=(count, 5, 5, CHANNELS)).astype("float32")
    return x, random.uniform(-1, 1, (count, SIZE)).astype("float32")


def test_an_untrained_affine_is_the_identity():
    x, z = tensors()
    np.testing.assert_array_equal(QualityAffine()(x, z), x)


def test_each_sample_and_channel_gets_its_own_scale_and_shift():
    layer = random_affine(0.5)
    x, z = tensors()
    y = ops.convert_to_numpy(layer(x, z))
    zeros = ops.convert_to_numpy(layer(np.zeros_like(x), z))
    scale = (y - zeros)[:, 0, 0] / x[:, 0, 0]
    np.testing.assert_allclose(y, x * scale[:, None, None] + zeros, atol=1e-5)
    assert np.ptp(scale, axis=0).min() > 0.05 and np.ptp(zeros[:, 0, 0], axis=0).min() > 0.05
    assert (scale > 0).all()


def test_a_sample_does_not_depend_on_the_others():
    layer = random_affine(0.5)
    x, z = tensors()
    np.testing.assert_allclose(layer(x, z)[2:3], layer(x[2:3], z[2:3]), atol=1e-6)


def test_scales_stay_within_bounds_whatever_the_directions():
    layer = random_affine(250.0)
    x, z = tensors()
    scale = ops.convert_to_numpy(layer(x, z) - layer(np.zeros_like(x), z)) / x
    assert np.abs(np.log(scale)).max() < 1.51


def test_directions_have_eight_bits():
    layer = random_affine(0.5)
    x, z = tensors()
    before = ops.convert_to_numpy(layer(x, z))
    for u in (layer.scale_direction, layer.shift_direction):
        u.assign(fake_int8(u))
    np.testing.assert_allclose(layer(x, z), before, atol=1e-6)


@pytest.mark.parametrize("axis", [1, -1])
def test_channels_may_be_on_any_axis(axis):
    layer = QualityAffine(axis=axis)
    x, z = tensors()
    layer(x, z)
    assert layer.scale_direction.shape == (SIZE, x.shape[axis])
    assert QualityAffine.bit_operations(SIZE, x.shape[axis]) == 64 * 2 * SIZE * x.shape[axis]


def test_gradients_reach_directions_and_embedding():
    layer = random_affine(0.5)
    x, z = map(tf.constant, tensors())
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = tf.reduce_sum(tf.square(layer(x, z)))
    gradients = tape.gradient(loss, [*layer.trainable_variables, z])
    assert all(np.abs(g.numpy()).max() > 0 for g in gradients)


def test_a_saved_affine_loads_with_its_config(tmp_path):
    x, z = tensors()
    inputs = [keras.Input(x.shape[1:]), keras.Input(z.shape[1:])]
    model = keras.Model(inputs, random_affine(0.5)(*inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model([x, z]), loaded([x, z]))


@pytest.mark.parametrize("size", [5, 40], ids=["plain", "compiled"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_gradients_are_those_of_the_formula(size, axis):
    random = np.random.default_rng(3)
    shape = (4, size, size, CHANNELS) if axis == -1 else (4, CHANNELS, size, size)
    x, upstream = (tf.constant(random.normal(size=shape), tf.float32) for _ in range(2))
    z = tf.constant(random.uniform(-1, 1, (4, SIZE)), tf.float32)
    layer = QualityAffine(axis=axis)
    layer(x, z)
    variables = [u.value for u in (layer.scale_direction, layer.shift_direction)]
    for u in variables:
        u.assign(random.normal(0, 0.2, u.shape))

    def formula(x, z):
        each = (4, 1, 1, CHANNELS) if axis == -1 else (4, CHANNELS, 1, 1)
        scale, shift = (tf.reshape(tf.matmul(z, fake_int8(u)), each) for u in variables)
        return x * tf.exp(scale) + shift

    found = []
    for function in (layer, formula):
        with tf.GradientTape() as tape:
            tape.watch([x, z])
            y = function(x, z)
        found.append([y, *tape.gradient(y, [x, z, *variables], upstream)])
    for value, reference in zip(*found, strict=True):
        scale = np.abs(reference).max()
        np.testing.assert_allclose(value / scale, reference / scale, atol=1e-5)
