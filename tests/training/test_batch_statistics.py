"""Batch normalizations end with the statistics of the last steps, whatever their momentum."""

import keras
import numpy as np
import pytest
from helpers.small_networks import network

import dqmq_tf
from dqmq_tf import graph as graphs
from dqmq_tf.training.batch_statistics import BatchStatistics, normalizations

_STEPS, _BATCH, _CHANNELS = 20, 8, 3


def _images(seed=0, count=_STEPS * _BATCH):
    drawn = np.random.default_rng(seed).normal(2.0, 3.0, (count, 4, 4, _CHANNELS))
    return drawn.astype("float32")


def _fitted(images, epochs=1, steps_known=True, trainable=True, momentum=0.99, **compiled):
    norm = keras.layers.BatchNormalization(momentum=momentum, trainable=trainable)
    model = keras.Sequential([keras.Input((4, 4, _CHANNELS)), norm])
    model.compile("sgd", "mse", **compiled)
    own = BatchStatistics([norm])
    if steps_known:
        data = {"x": images, "y": images, "batch_size": _BATCH}
    else:
        data = {"x": ((x, x) for x in images.reshape(-1, _BATCH, *images.shape[1:]))}
    model.fit(**data, epochs=epochs, shuffle=False, verbose=0, callbacks=[own])
    return [v.numpy() for v in (norm.moving_mean, norm.moving_variance)]


@pytest.mark.parametrize("epochs", [1, 2])
def test_statistics_are_the_mean_over_the_last_tenth_of_the_steps(epochs):
    images = _images()
    batches = images.reshape(_STEPS, -1, _CHANNELS)[-2 * epochs :]
    mean, variance = _fitted(images, epochs)
    np.testing.assert_allclose(mean, batches.mean(axis=1).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(variance, batches.var(axis=1).mean(axis=0), rtol=1e-4)


def test_no_more_than_a_hundred_steps_are_averaged():
    images = _images(count=1_100)[:, :1, :1]
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((1, 1, _CHANNELS)), norm])
    model.compile("sgd", "mse")
    own = BatchStatistics([norm])
    model.fit(images, images, batch_size=1, shuffle=False, verbose=0, callbacks=[own])
    assert own.count == 100
    np.testing.assert_allclose(norm.moving_mean, images[-100:].mean(axis=(0, 1, 2)), rtol=1e-3)


@pytest.mark.parametrize(
    "case",
    [{"steps_known": False}, {"steps_per_execution": 2}, {"momentum": 0.0}],
    ids=["length unknown", "steps in one call", "no momentum"],
)
def test_moving_means_stay_where_steps_cannot_be_told_apart(case):
    images = _images()
    momentum = case.get("momentum", 0.99)
    expected = np.zeros(_CHANNELS)
    for batch in images.reshape(_STEPS, -1, _CHANNELS):
        expected = momentum * expected + (1 - momentum) * batch.mean(axis=0)
    np.testing.assert_allclose(_fitted(images, **case)[0], expected, rtol=1e-4)


def test_frozen_normalization_keeps_its_statistics():
    mean, variance = _fitted(_images(), trainable=False)
    np.testing.assert_array_equal(mean, 0.0)
    np.testing.assert_array_equal(variance, 1.0)


@pytest.mark.parametrize("target", ["android", "simulation"])
def test_a_short_fit_ends_with_the_statistics_of_its_data(target):
    # At a rate of nought and one bit-width each step has the same statistics behind the first
    # convolution. The moving mean, which begins at nought, is 18 % of the way after 20 steps.
    model = network()
    norm = model.get_layer("norm_0")
    norm.momentum = 0.99
    rules = (dqmq_tf.LayerRule(pattern=".*", weight_bits=(8,)),)
    config = dqmq_tf.DQMQConfig(rules=rules, quality_aware=False)
    qmodel = dqmq_tf.quantize_model(model, target=target, config=config)
    qmodel.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    images = np.random.default_rng(0).random((16, 16, 16, 3)).astype("float32")
    qmodel.fit(np.tile(images, (20, 1, 1, 1)), np.zeros(320), batch_size=16, verbose=0)
    expected = model.get_layer("conv_0")(images).numpy()
    found = next(layer for layer in qmodel._parts.norms if layer.name == "norm_0")
    np.testing.assert_allclose(
        found.moving_mean, expected.mean(axis=(0, 1, 2)), rtol=0.02, atol=0.01
    )
    np.testing.assert_allclose(found.moving_variance, expected.var(axis=(0, 1, 2)), rtol=0.05)


def test_the_last_validation_and_checkpoint_are_those_of_the_final_model(tmp_path):
    qmodel = dqmq_tf.quantize_model(network())
    qmodel.compile("adam", "sparse_categorical_crossentropy")
    images = np.random.default_rng(0).random((160, 16, 16, 3)).astype("float32")
    labels = np.arange(160) % 4
    history = qmodel.fit(
        images, labels, batch_size=8, epochs=2, verbose=0, validation_data=(images, labels),
        callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / "last.keras")],
    )  # fmt: skip
    loss = qmodel.evaluate(images, labels, batch_size=8, verbose=0)
    assert history.history["val_loss"][-1] == pytest.approx(loss, rel=1e-5)
    saved = keras.models.load_model(tmp_path / "last.keras")
    assert saved.evaluate(images, labels, batch_size=8, verbose=0) == pytest.approx(loss, rel=1e-5)


def test_normalizations_of_nested_models_are_found_and_shared_ones_are_not():
    nested = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(name="inner")])
    shared = keras.layers.BatchNormalization(name="shared")
    inputs = keras.Input((4,))
    x = nested(keras.layers.BatchNormalization(name="outer")(inputs))
    model = keras.Model(inputs, shared(shared(x)))
    graph = graphs.inline(graphs.trace_nested(model))
    assert [layer.name for layer in normalizations(graph)] == ["outer", "inner"]
