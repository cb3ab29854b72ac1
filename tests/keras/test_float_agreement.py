"""Calibration warns if the quantized model predicts something else than the float model."""

import warnings

import keras
import numpy as np
import pytest
from helpers.networks import chain
from helpers.small_networks import images, network
from keras import layers, ops

import dqmq_tf
from dqmq_tf.graph import rebuild

DATA = np.random.default_rng(0).normal(5, 3, (32, 3)).astype("float32")


class Shift(layers.Layer):
    """Has a state that is neither a variable nor in its config."""

    shift = 0.0

    def call(self, x):
        return x - self.shift


class Noise(layers.Layer):
    """Draws random numbers at inference."""

    def call(self, x):
        return x + keras.random.normal(ops.shape(x))


class Counter(layers.Layer):
    """Gives other outputs at each call."""

    calls = 0

    def call(self, x):
        self.calls += 1
        return x * float(self.calls)


class AlwaysDropout(layers.Dropout):
    def call(self, inputs, training=False):
        return super().call(inputs, training=True)


def model_with(layer):
    return chain((3,), layer, layers.Dense(8, "relu", name="hidden"), layers.Dense(4, "softmax"))


def shifted():
    layer = Shift(name="culprit")
    layer.shift = 4.0
    return layer


def normalization():
    layer = layers.Normalization(name="culprit")
    layer.adapt(DATA)
    return layer


def departures(qmodel, data):
    """Returns the warnings of a calibration."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        qmodel.calibrate(data)
    return [str(w.message) for w in caught if "the float model by" in str(w.message)]


@pytest.mark.parametrize(
    "layer",
    [
        shifted,
        lambda: Noise(name="culprit"),
        lambda: Counter(name="culprit"),
        lambda: AlwaysDropout(0.5, name="culprit"),
        lambda: keras.Sequential([keras.Input((3,)), shifted()], name="inner"),
    ],
    ids=["python state", "noise", "counter", "dropout at inference", "nested"],
)
def test_a_layer_that_the_copy_changes_is_named(layer):
    qmodel = dqmq_tf.quantize_model(model_with(layer()), target="simulation")
    (message,) = departures(qmodel, DATA)
    assert "culprit' (" in message and "Before anything is rounded" in message
    assert departures(qmodel, DATA) == []  # Once is enough.


def test_a_state_that_copying_loses_is_named(monkeypatch):
    monkeypatch.setattr(rebuild, "copy_state", lambda a, b: b.set_weights(a.get_weights()))
    qmodel = dqmq_tf.quantize_model(model_with(normalization()), target="simulation")
    (message,) = departures(qmodel, DATA)
    assert "'culprit' (Normalization)" in message


def test_a_kernel_that_is_rounded_wrongly_is_named():
    keras.utils.set_random_seed(0)  # Not all weights let the predictions depend much on the kernel.
    qmodel = dqmq_tf.quantize_model(model_with(layers.Dense(6)), target="simulation")
    steps = qmodel._parts.wrappers["hidden"].log_steps[0]
    steps.assign(steps + 5.0)
    (message,) = departures(qmodel, DATA)
    assert "At 8 bits" in message and "'hidden' (Dense)" in message


def test_classes_that_all_but_tie_are_no_departure():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    hidden = layers.Dense(8, "relu")(inputs)
    tiny = keras.initializers.RandomNormal(stddev=1e-5)
    logits = layers.Dense(10, kernel_initializer=tiny, bias_initializer="ones")(hidden)
    model = keras.Model(inputs, [ops.argmax(logits, axis=-1), logits])
    qmodel = dqmq_tf.quantize_model(model, target="android")
    assert departures(qmodel, DATA) == []
    classes = [model.predict(DATA, verbose=0)[0] for model in (qmodel, qmodel.float_model())]
    assert np.mean(classes[0] != classes[1]) > 0.5


def test_a_departure_shows_where_only_classes_are_predicted():
    keras.utils.set_random_seed(0)
    model = model_with(layers.Dense(6))
    model = keras.Model(model.inputs, ops.argmax(model.outputs[0], axis=-1))
    qmodel = dqmq_tf.quantize_model(model, target="android")
    steps = qmodel._parts.wrappers["hidden"].log_steps[0]
    steps.assign(steps + 5.0)
    (message,) = departures(qmodel, DATA)
    assert "At 8 bits" in message and "'hidden' (Dense)" in message


def test_values_that_no_grid_of_8_bits_holds_are_named():
    data = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
    data[::8] *= 1e5
    qmodel = dqmq_tf.quantize_model(model_with(layers.Dense(6)), target="simulation")
    (message,) = departures(qmodel, data)
    assert "At 8 bits" in message


class Sampling(layers.Layer):
    """Draws other numbers at each call, from a state that its copy has too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + 3.0 * keras.random.normal(ops.shape(x), seed=self.generator)


def test_random_numbers_are_no_error_at_8_bits():
    model = chain((3,), layers.Dense(8), Sampling(), layers.Dense(2))
    assert not departures(dqmq_tf.quantize_model(model, target="simulation"), DATA)


def test_an_input_whose_features_differ_by_orders_of_magnitude_is_named():
    data = DATA * np.array([1.0, 0.01, 1e4], "float32")
    scaled = layers.Normalization(name="scaled")
    scaled.adapt(data)
    features = keras.Input((3,), name="features")
    hidden = layers.Dense(8, "relu")(scaled(features))
    model = keras.Model(features, layers.Dense(4, "softmax")(hidden))
    (message,) = departures(dqmq_tf.quantize_model(model, target="simulation"), data)
    assert "input 'features' is rounded too coarsely" in message and "'scaled'" in message
    config = dqmq_tf.DQMQConfig(rules=[dqmq_tf.LayerRule(pattern="features", quantize=False)])
    assert not departures(dqmq_tf.quantize_model(model, target="simulation", config=config), data)


def canceling():
    """Gives 0.085 where all inputs are 1, because its terms cancel."""
    model = chain((3,), layers.Dense(1))
    model.layers[-1].set_weights([np.array([[0.8037], [0.0917], [-0.8103]]), np.zeros(1)])
    return model


def deep():
    stack = [(layers.Dense(24, use_bias=False), layers.BatchNormalization()) for _ in range(15)]
    return [layer for pair in stack for layer in (*pair, layers.ReLU())]


HEALTHY = {
    "new batch norms": (network, images(32)),
    "deep and new": (lambda: chain((3,), *deep(), layers.Dense(4, "softmax")), 30 * DATA),
    "normalization": (lambda: model_with(normalization()), DATA),
    "recurrent": (
        lambda: chain((5, 3), layers.GRU(4, return_sequences=True), layers.LSTM(4)),
        DATA[:30].reshape(6, 5, 3),
    ),
    "constant output": (lambda: chain((3,), layers.Dense(1)), np.ones((8, 3), "float32")),
    "terms that cancel": (canceling, np.ones((8, 3), "float32")),
    "constant input": (lambda: model_with(layers.Dense(6)), np.zeros((8, 3), "float32")),
    "one sample": (network, images(1)),
    "lookup": (
        lambda: keras.Sequential(
            [
                keras.Input((1,), dtype="int64"),
                layers.IntegerLookup(vocabulary=[1, 5, 7], output_mode="multi_hot"),
                layers.Dense(2),
            ]
        ),
        np.array([[1], [5], [7], [9]]),
    ),
    "masked": (
        lambda: chain((6,), layers.Embedding(9, 4, mask_zero=True), layers.GRU(4)),
        np.random.default_rng(0).integers(0, 9, (16, 6)),
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_network_gets_no_warning_and_keeps_its_variables(name):
    model, data = HEALTHY[name][0](), HEALTHY[name][1]
    qmodel = dqmq_tf.quantize_model(model, target="simulation")
    before = qmodel.float_model().get_weights() + model.get_weights()
    assert departures(qmodel, data) == []
    after = qmodel.float_model().get_weights() + model.get_weights()
    for kept, now in zip(before, after, strict=True):
        np.testing.assert_array_equal(kept, now)


def test_a_model_that_gets_other_weights_is_not_compared_with_the_one_before():
    model = model_with(layers.Dense(6))
    qmodel = dqmq_tf.quantize_model(model, target="simulation")
    for variable in qmodel.trainable_variables:
        variable.assign(0.5 * variable)
    assert not [m for m in departures(qmodel, DATA) if "Before" in m]
    qmodel = dqmq_tf.quantize_model(model, target="simulation")
    model.set_weights([0.5 * w for w in model.get_weights()])
    assert departures(qmodel, DATA) == []
