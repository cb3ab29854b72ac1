"""Compares the fused batch normalization with that of Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import dqmq_tf
from dqmq_tf.layers import FusedBatchNormalization, QualityAffine, is_fusible

SHAPE = (6, 5, 4, 3)


def batch(seed):
    random = np.random.default_rng(seed)
    return (random.normal(size=SHAPE) * [0.5, 2.0, 30.0] + [0.0, 9.0, -40.0]).astype("float32")


def built_layer(**kwargs):
    """Returns a built layer with weights other than the initial ones."""
    layer = keras.layers.BatchNormalization(name="norm", **kwargs)
    layer.build((None, *SHAPE[1:]))
    random = np.random.default_rng(7)
    layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return layer


def train(run, layer, seed):
    """Calls the layer in training and returns the output and the gradients."""
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
def test_training_computes_what_keras_computes(kwargs, compiled):
    plain, layer = built_layer(**kwargs), built_layer(**kwargs)
    fused = FusedBatchNormalization(layer)
    run = tf.function(fused, jit_compile=True) if compiled else fused
    for seed in range(2):
        expected, found = train(plain, plain, seed), train(run, layer, seed)
        for value, reference in zip(found, expected, strict=True):
            scale = np.abs(reference).max()
            np.testing.assert_allclose(value / scale, reference / scale, atol=2e-4)
    for value, reference in zip(layer.get_weights(), plain.get_weights()):
        np.testing.assert_allclose(value, reference, rtol=1e-4)
    assert not np.allclose(layer.moving_variance, built_layer(**kwargs).moving_variance)


def test_inference_and_a_frozen_layer_use_the_moving_statistics():
    layer = built_layer()
    fused, before = FusedBatchNormalization(layer), layer.get_weights()
    np.testing.assert_array_equal(fused(batch(0)), layer(batch(0)))
    layer.trainable = False
    np.testing.assert_array_equal(fused(batch(0), training=True), layer(batch(0)))
    for value, reference in zip(layer.get_weights(), before):
        np.testing.assert_array_equal(value, reference)


def test_masked_positions_do_not_count():
    layer, plain = built_layer(), built_layer()
    mask = np.ones(SHAPE[:3], bool)
    mask[:, 2:] = False
    found = FusedBatchNormalization(layer)(batch(0), training=True, mask=mask)
    np.testing.assert_array_equal(found, plain(batch(0), training=True, mask=mask))


def norm_and_affine(shape, seed):
    """Returns a batch normalization and the affine behind it, with random weights."""
    random = np.random.default_rng(seed)
    layer, affine = keras.layers.BatchNormalization(name="norm"), QualityAffine()
    layer.build(shape)
    affine.build(shape, (None, 5))
    for part, low, high in ((layer, 0.5, 1.5), (affine, -0.3, 0.3)):
        part.set_weights([random.uniform(low, high, w.shape) for w in part.get_weights()])
    return layer, affine


# Shapes that run as plain operations, in XLA with blocks, and in XLA without blocks.
@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (4, 16, 16, 32), (4, 16, 16, 24)], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_with_an_affine_it_computes_what_the_two_layers_compute(shape, compiled):
    random = np.random.default_rng(4)
    center, spread = random.normal(0, 20, shape[-1]), random.uniform(0.5, 5, shape[-1])
    x, upstream = (
        tf.constant(v, tf.float32)
        for v in (random.normal(center, spread, shape), random.normal(0.5, 1, shape))
    )
    z = tf.constant(random.uniform(-1, 1, (shape[0], 5)), tf.float32)
    results = []
    for together in (True, False):
        layer, affine = norm_and_affine(shape, 1)
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


def test_with_an_affine_inference_uses_the_moving_statistics():
    layer, affine = norm_and_affine(SHAPE, 2)
    fused, z = FusedBatchNormalization(layer, affine), np.full((SHAPE[0], 5), 0.5, "float32")
    expected = affine(layer(batch(0)), z)
    np.testing.assert_array_equal(fused(batch(0), z=z), expected)
    assert np.abs(expected - layer(batch(0))).max() > 0.1
    config = keras.saving.serialize_keras_object(fused)
    assert isinstance(keras.saving.deserialize_keras_object(config).affine, QualityAffine)


def test_behind_a_frozen_normalization_the_affine_still_learns():
    layer, affine = norm_and_affine(SHAPE, 3)
    layer.trainable = False
    fused, before = FusedBatchNormalization(layer, affine), layer.get_weights()
    with tf.GradientTape() as tape:
        y = fused(batch(0), training=True, z=np.full((SHAPE[0], 5), 0.5, "float32"))
    assert {id(v) for v in fused.trainable_weights} == {id(v) for v in affine.trainable_weights}
    gradients = tape.gradient(y, [v.value for v in fused.trainable_weights])
    assert all(np.abs(g).max() > 0 for g in gradients)
    for value, reference in zip(layer.get_weights(), before):
        np.testing.assert_array_equal(value, reference)


def test_it_has_the_name_of_its_layer_and_is_saved_with_it():
    fused = FusedBatchNormalization(built_layer(epsilon=0.1))
    config = keras.saving.serialize_keras_object(fused)
    loaded = keras.saving.deserialize_keras_object(config)
    assert loaded.name == fused.name == "norm" and loaded.layer.epsilon == 0.1


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
def test_layers_that_the_operation_does_not_support_stay_with_keras(kwargs, shape, dtype):
    assert not is_fusible(keras.layers.BatchNormalization(**kwargs), shape, dtype)
    assert is_fusible(keras.layers.BatchNormalization(), SHAPE, "float32")
    assert not is_fusible(keras.layers.LayerNormalization(), SHAPE, "float32")


@pytest.mark.parametrize("by_quality", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_compiled_layers_and_those_with_an_affine_take_the_loops(compiled, by_quality):
    shape = (2, 16, 16, 16)
    layer, affine = norm_and_affine(shape, 0)
    fused = FusedBatchNormalization(layer, affine if by_quality else None, compiled)
    z = {"z": tf.zeros((2, 5))} if by_quality else {}

    @tf.function(input_signature=[tf.TensorSpec(shape)])
    def run(x):
        return fused(x, training=True, **z)

    types = {op.type for op in run.get_concrete_function().graph.get_operations()}
    assert ("FusedBatchNormV3" in types) == (not compiled and not by_quality)


def test_a_model_compiles_the_loops_of_such_shapes():
    layers = keras.layers
    inputs = keras.Input((64, 64, 3))
    x = layers.BatchNormalization(name="large")(layers.Conv2D(16, 3, padding="same")(inputs))
    x = layers.BatchNormalization(name="small")(layers.Conv2D(8, 3, strides=4)(x))
    outputs = layers.Dense(2)(layers.GlobalAveragePooling2D()(x))
    qmodel = dqmq_tf.quantize_model(keras.Model(inputs, outputs))
    assert qmodel.get_layer("large").compiled and not qmodel.get_layer("small").compiled
