"""The fused batch normalization against Keras's own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dqmq_tf.layers import FusedBatchNormalization, QualityAffine, is_fusible

SHAPE = (6, 5, 4, 3)


def batch(seed):
    random = np.random.default_rng(seed)
    return (random.normal(size=SHAPE) * [0.5, 2.0, 30.0] + [0.0, 9.0, -40.0]).astype("float32")


def made(**kwargs):
    """A built layer with weights that are not their first ones."""
    layer = keras.layers.BatchNormalization(name="norm", **kwargs)
    layer.build((None, *SHAPE[1:]))
    random = np.random.default_rng(7)
    layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return layer


def trained(run, layer, seed):
    """The output, the gradients, and what one training call leaves."""
    x, upstream = tf.constant(batch(seed)), tf.constant(batch(seed + 100))
    variables = [weight.value for weight in layer.trainable_weights]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = run(x, training=True)
    return [y, *tape.gradient(y, [x, *variables], upstream)]


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"scale": False}, {"center": False}, {"momentum": 0.5, "epsilon": 0.1, "axis": 3}],
    ids=str,
)
@pytest.mark.parametrize("compiled", [False, True])
def test_training_is_that_of_keras(kwargs, compiled):
    plain, layer = made(**kwargs), made(**kwargs)
    fused = FusedBatchNormalization(layer)
    run = tf.function(fused, jit_compile=True) if compiled else fused
    for seed in range(2):
        expected, found = trained(plain, plain, seed), trained(run, layer, seed)
        for value, reference in zip(found, expected, strict=True):
            scale = np.abs(reference).max()
            np.testing.assert_allclose(value / scale, reference / scale, atol=2e-4)
    for value, reference in zip(layer.get_weights(), plain.get_weights()):
        np.testing.assert_allclose(value, reference, rtol=1e-4)
    assert not np.allclose(layer.moving_variance, made(**kwargs).moving_variance)


def test_inference_and_a_frozen_layer_take_the_moving_statistics():
    layer = made()
    fused, before = FusedBatchNormalization(layer), layer.get_weights()
    np.testing.assert_array_equal(fused(batch(0)), layer(batch(0)))
    layer.trainable = False
    np.testing.assert_array_equal(fused(batch(0), training=True), layer(batch(0)))
    for value, reference in zip(layer.get_weights(), before):
        np.testing.assert_array_equal(value, reference)


def test_what_is_not_seen_through_a_mask_does_not_count():
    layer, plain = made(), made()
    mask = np.ones(SHAPE[:3], bool)
    mask[:, 2:] = False
    found = FusedBatchNormalization(layer)(batch(0), training=True, mask=mask)
    np.testing.assert_array_equal(found, plain(batch(0), training=True, mask=mask))


def conditioned(shape, seed):
    """A batch normalization and an affine behind it, with weights drawn by a seed."""
    random = np.random.default_rng(seed)
    layer, affine = keras.layers.BatchNormalization(name="norm"), QualityAffine()
    layer.build(shape)
    affine.build(shape, (None, 5))
    for part, low, high in ((layer, 0.5, 1.5), (affine, -0.3, 0.3)):
        part.set_weights([random.uniform(low, high, w.shape) for w in part.get_weights()])
    return layer, affine


# As plain operations, in blocks for XLA, and for XLA without them.
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (4, 16, 16, 32), (4, 16, 16, 24)], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_by_quality_it_is_a_normalization_and_an_affine_behind_it(shape, compiled):
    random = np.random.default_rng(4)
    centre, spread = random.normal(0, 20, shape[-1]), random.uniform(0.5, 5, shape[-1])
    x, upstream = (
        tf.constant(v, tf.float32)
        for v in (random.normal(centre, spread, shape), random.normal(0.5, 1, shape))
    )
    z = tf.constant(random.uniform(-1, 1, (shape[0], 5)), tf.float32)
    results = []
    for together in (True, False):
        layer, affine = conditioned(shape, 1)
        fused = FusedBatchNormalization(layer, affine)

        def run(x, z, fused=fused, layer=layer, affine=affine, together=together):
            if together:
                return fused(x, training=True, z=z)
            return affine(layer(x, training=True), z)

        run = tf.function(run, jit_compile=True) if compiled and together else run
        variables = [v.value for v in (*layer.trainable_weights, *affine.trainable_weights)]
        with tf.GradientTape() as tape:
            tape.watch([x, z])
            y = run(x, z)
        gradients = tape.gradient(y, [x, z, *variables], upstream)
        results.append([y, *gradients, *layer.get_weights()])
    assert len(results[0]) == 11
    for value, reference in zip(*results, strict=True):
        scale = np.abs(reference).max()
        np.testing.assert_allclose(value / scale, reference / scale, atol=2e-4)


def test_by_quality_inference_takes_the_moving_statistics():
    layer, affine = conditioned(SHAPE, 2)
    fused, z = FusedBatchNormalization(layer, affine), np.full((SHAPE[0], 5), 0.5, "float32")
    expected = affine(layer(batch(0)), z)
    np.testing.assert_array_equal(fused(batch(0), z=z), expected)
    assert np.abs(expected - layer(batch(0))).max() > 0.1
    config = keras.saving.serialize_keras_object(fused)
    assert isinstance(keras.saving.deserialize_keras_object(config).affine, QualityAffine)


def test_behind_a_frozen_normalization_the_affine_still_learns():
    layer, affine = conditioned(SHAPE, 3)
    layer.trainable = False
    fused, before = FusedBatchNormalization(layer, affine), layer.get_weights()
    with tf.GradientTape() as tape:
        y = fused(batch(0), training=True, z=np.full((SHAPE[0], 5), 0.5, "float32"))
    assert {id(v) for v in fused.trainable_weights} == {id(v) for v in affine.trainable_weights}
    gradients = tape.gradient(y, [v.value for v in fused.trainable_weights])
    assert all(np.abs(g).max() > 0 for g in gradients)
    for value, reference in zip(layer.get_weights(), before):
        np.testing.assert_array_equal(value, reference)


def test_it_bears_the_name_and_is_saved():
    fused = FusedBatchNormalization(made(epsilon=0.1))
    config = keras.saving.serialize_keras_object(fused)
    again = keras.saving.deserialize_keras_object(config)
    assert again.name == fused.name == "norm" and again.layer.epsilon == 0.1


@pytest.mark.parametrize(
    ("kwargs", "shape", "dtype"),
    [
        ({"axis": 1}, SHAPE, "float32"),
        ({}, (6, 3), "float32"),
        ({"synchronized": True}, SHAPE, "float32"),
        ({"dtype": "mixed_float16"}, SHAPE, "float16"),
        ({}, (*SHAPE[:3], None), "float32"),
        ({"epsilon": 1e-6}, SHAPE, "float32"),
        ({"activity_regularizer": "l2"}, SHAPE, "float32"),
    ],
    ids=str,
)
def test_what_the_operation_does_not_know_stays_with_keras(kwargs, shape, dtype):
    assert not is_fusible(keras.layers.BatchNormalization(**kwargs), shape, dtype)
    assert is_fusible(keras.layers.BatchNormalization(), SHAPE, "float32")
    assert not is_fusible(keras.layers.LayerNormalization(), SHAPE, "float32")
