"""Calibration of a large network, part by part, and ranges that follow the values of a training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import dqmq_tf
from dqmq_tf.budget import sensitivity
from dqmq_tf.graph import samples_at_once as limits
from dqmq_tf.training import range_calibration

_COUNT = 40


class Watched(keras.layers.Layer):
    """Passes on its input and remembers how many samples it was called with."""

    calls = []

    def call(self, x):
        if x.shape[0] is not None:
            Watched.calls.append(x.shape[0])
        return x


def _images():
    return np.random.default_rng(0).uniform(0, 255, (_COUNT, 8, 8, 3)).astype("float32")


def _calibrated(is_new):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    norm = keras.layers.BatchNormalization()
    x = keras.layers.ReLU()(norm(Watched()(x)))
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    if not is_new:
        norm.moving_mean.assign([0.1, 0.2, 0.3, 0.4])
    qmodel = dqmq_tf.quantize_model(model, target="android")
    Watched.calls.clear()
    qmodel.calibrate(_images())
    steps = {v.path: v.numpy() for v in qmodel.variables if v.path.endswith("/log_step")}
    return qmodel, steps, list(Watched.calls)


def test_steps_are_those_of_all_data_at_once(monkeypatch):
    _, expected, calls = _calibrated(is_new=False)
    assert max(calls) == _COUNT
    monkeypatch.setattr(limits, "_VALUES", 1)
    qmodel, steps, calls = _calibrated(is_new=False)
    assert max(calls) == 8 and calls.count(8) >= _COUNT / 8
    for found, values in zip(steps.values(), expected.values(), strict=True):
        np.testing.assert_allclose(found, values, rtol=1e-5)
    assert len(expected) > 2


def test_statistics_of_new_layers_are_means_over_the_parts(monkeypatch):
    monkeypatch.setattr(limits, "_VALUES", 1)
    qmodel, _, _ = _calibrated(is_new=True)
    parts, (norm, _) = qmodel._parts, range_calibration._trained_norms(qmodel._parts.graph)[0]
    state = range_calibration.set_ranges(parts, _images(), for_training=False)
    conv = keras.Model(parts.body.inputs, parts.body.get_layer("conv").output)
    values = conv.predict(_images(), verbose=0).reshape(5, -1, 4)
    np.testing.assert_allclose(state[id(norm.moving_mean)], values.mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(
        state[id(norm.moving_variance)], values.var(1).mean(0), rtol=1e-3, atol=1e-6
    )


def test_ranges_follow_whenever_the_steps_double():
    taken = [step for step in range(1, 600) if range_calibration.is_followed(step - 1, step)]
    assert taken == [8, 16, 32, 64, 128, 256, 512]
    # Several steps in one call of the training function.
    assert [n for n in range(10, 70, 10) if range_calibration.is_followed(n - 10, n)] == [
        10,
        20,
        40,
    ]


_STEPS = 128


def _growing():
    """A network whose outputs have to become sixty times as large, and its data."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(512, 4)).astype("float32")
    y = 30 * np.tanh(x @ np.array([[1.0], [-1.0], [0.5], [0.0]], "float32"))
    model = keras.Sequential([keras.Input((4,))])
    for _ in range(3):
        model.add(keras.layers.Dense(32, activation="relu"))
    model.add(keras.layers.Dense(1))
    rules = [dqmq_tf.LayerRule(pattern=".*", weight_bits=(8,))]
    return dqmq_tf.quantize_model(model, config=dqmq_tf.DQMQConfig(rules=rules)), x, y


def _batches(x, y):
    for step in range(_STEPS):
        part = slice(step % 16 * 32, step % 16 * 32 + 32)
        yield x[part], y[part]


def _by_fit(qmodel, x, y):
    qmodel.compile(keras.optimizers.Adam(0.006), "mse")
    qmodel.fit(x, y, epochs=_STEPS // 16, verbose=0)


def _by_loaded_fit(qmodel, x, y):
    qmodel.compile(keras.optimizers.Adam(0.006), "mse")
    qmodel.calibrate(x)
    qmodel._training._followed = []  # What a model that was saved and loaded begins with.
    qmodel.fit(x, y, epochs=_STEPS // 16, verbose=0)


def _by_batches(qmodel, x, y):
    qmodel.compile(keras.optimizers.Adam(0.006), "mse")
    for inputs, targets in _batches(x, y):
        qmodel.train_on_batch(inputs, targets)


def _by_own_loop(qmodel, x, y):
    optimizer = keras.optimizers.Adam(0.006)
    with qmodel.custom_training(steps=_STEPS, data=x[:256]) as training:
        for inputs, targets in _batches(x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(qmodel(inputs, training=True) - targets))
            training.apply_gradients(tape, loss, inputs, optimizer)


@pytest.mark.parametrize("train", [_by_fit, _by_loaded_fit, _by_batches, _by_own_loop])
def test_outputs_grow_as_far_as_training_wants(train):
    qmodel, x, y = _growing()
    train(qmodel, x, y)
    # Where ranges do not follow, 90 % of the variance are left. In floating point, 1 % is.
    error = np.mean(np.square(np.array(qmodel(x)) - y))
    assert error < 0.1 * np.var(y)


def test_an_interruption_leaves_no_layer_observing(monkeypatch):
    qmodel, x, _ = _growing()
    qmodel.calibrate(x)
    expected = np.array(qmodel(x[:8]))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    for place in (
        (range_calibration, "_call"),
        (dqmq_tf.layers.ActivationQuantizer, "follow"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(*place, interrupted)
            with pytest.raises(KeyboardInterrupt):
                qmodel._training.follow_values(7, 8)
        np.testing.assert_array_equal(qmodel.predict(x[:8], verbose=0), expected)


def test_few_samples_are_not_followed():
    # A batch normalization makes 0 of a single sample.
    keras.utils.set_random_seed(0)
    stack = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    qmodel = dqmq_tf.quantize_model(
        keras.Sequential([keras.Input((4,)), *stack, keras.layers.Dense(2)])
    )
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    qmodel.calibrate(x)
    qmodel.compile(keras.optimizers.SGD(0.0), "mse")
    steps = {v.path: v.numpy() for v in qmodel.variables if v.path.endswith("log_step")}
    qmodel._training._followed = []
    for step in range(20):
        qmodel.train_on_batch(x[step : step + 1], np.zeros((1, 2)))
    assert len(qmodel._training._followed[0]) == 16
    for variable in qmodel.variables:
        if variable.path in steps:
            assert np.abs(variable.numpy() - steps[variable.path]).max() < 1


@pytest.mark.parametrize("accumulated", [None, 4])
def test_steps_of_the_optimizer_count(accumulated, monkeypatch):
    qmodel, x, y = _growing()
    followed = []
    monkeypatch.setattr(range_calibration, "follow_values", lambda *_: followed.append(1))
    optimizer = keras.optimizers.SGD(0.0, gradient_accumulation_steps=accumulated)
    qmodel.compile(optimizer, "mse", steps_per_execution=2)
    qmodel.fit(x, y, batch_size=16, epochs=3, verbose=0)
    steps = int(optimizer.iterations.numpy())
    assert len(followed) == steps.bit_length() - 3


def test_a_trained_network_keeps_its_ranges():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(512, 4)).astype("float32")
    y = np.sum(x, axis=1, keepdims=True)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="out")])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(x, y, epochs=20, verbose=0)
    qmodel = dqmq_tf.quantize_model(model)
    qmodel.calibrate(x[:256])
    before = qmodel.get_weights()
    qmodel._training.follow_values(7, 8)
    for found, expected in zip(qmodel.get_weights(), before):
        np.testing.assert_array_equal(found, expected)


def test_a_calibration_that_was_interrupted_is_done_again(monkeypatch):
    qmodel, _, _ = _calibrated(is_new=False)
    measured = sensitivity.added_losses

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sensitivity, "added_losses", interrupt)
    with pytest.raises(KeyboardInterrupt):
        qmodel.calibrate(_images())
    calls = []
    monkeypatch.setattr(sensitivity, "added_losses", lambda *of: calls.append(1) or measured(*of))
    qmodel.compile("sgd", "mse", run_eagerly=True)
    for _ in range(2):
        qmodel.train_on_batch(_images(), np.zeros((_COUNT, 3)))
    assert len(calls) == 1
