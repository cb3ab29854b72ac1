"""Lambdas and layers of the user's own: quantizing needs no registration and loads nothing."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.eight_bits import converted, largest_error, quantized, trained
from keras import layers, ops

DATA = np.random.default_rng(0).normal(0, 1, (64, 5, 3)).astype("float32")


class Gain(layers.Layer):
    """Has no config of its own, and no arguments for its name."""

    def __init__(self):
        super().__init__()

    def build(self, shape):
        self.gain = self.add_weight(name="gain", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gain


class Apply(layers.Layer):
    """Takes a function, so that Keras cannot make a config."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


class Mixing(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(shape[-1], self.units))

    def call(self, x):
        return ops.matmul(x, self.kernel)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Residual(layers.Layer):
    """Holds another layer, which it builds itself."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def build(self, shape):
        self.layer.build(shape)

    def call(self, x):
        return x + self.layer(x)

    def get_config(self):
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "layer": keras.saving.deserialize_keras_object(config["layer"])})


class Cell(layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(shape[-1], self.units))

    def call(self, x, states):
        state = ops.tanh(ops.matmul(x, self.kernel) + 0.5 * states[0])
        return state, [state]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Tutorial(layers.Layer):
    """Creates layers in `__init__` and has no `build`, like those in Keras's tutorials."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.positions = layers.Embedding(5, units)
        self.inner = keras.Sequential([layers.Dense(4, activation="relu"), layers.Dense(units)])

    def call(self, x):
        return x + self.positions(ops.arange(5)) + self.inner(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class HalfBuilt(Tutorial):
    """Builds its own variable alone."""

    def build(self, shape):
        self.gain = self.add_weight(name="gain", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return super().call(x) * self.gain


class Decay(keras.regularizers.Regularizer):
    def __call__(self, x):
        return 0.01 * ops.sum(ops.square(x))

    def get_config(self):
        return {}


def swish_like(x):
    return x * ops.sigmoid(1.5 * x)


def with_a_captured_array():
    scale = tf.constant([1.0, 2.0, 3.0])
    return layers.Lambda(lambda x: x * scale, name="it")


KINDS = {
    "lambda": lambda: layers.Lambda(lambda x: tf.square(x), name="it"),
    "lambda with an array": with_a_captured_array,
    "partial function": lambda: layers.Lambda(
        functools.partial(tf.clip_by_value, clip_value_min=-1.0, clip_value_max=1.0), name="it"
    ),
    "activation": lambda: layers.Dense(4, activation=swish_like, name="it"),
    "lambda as activation": lambda: layers.Dense(4, activation=lambda x: x * x, name="it"),
    "regularizer": lambda: layers.Dense(4, kernel_regularizer=Decay(), name="it"),
    "weights without config": Gain,
    "function without config": lambda: Apply(tf.square, name="it"),
    "layer": lambda: Mixing(4, name="it"),
    "layer in a wrapper": lambda: layers.TimeDistributed(Mixing(4), name="it"),
    "layer in a layer": lambda: Residual(Mixing(3, name="mix"), name="it"),
    "layers without build": lambda: Tutorial(3, name="it"),
    "layers that build leaves out": lambda: HalfBuilt(3, name="it"),
    "cell": lambda: layers.RNN(Cell(4), return_sequences=True, name="it"),
}

KINDS_IN_FILES = [
    "lambda with an array", "layer in a layer", "layers without build", "partial function",
]  # fmt: skip


def model_with(layer):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 3), name="x")
    x = layers.Dense(3, activation="relu", name="first")(inputs)
    x = layers.Flatten()(layer(x))
    return keras.Model(inputs, layers.Dense(2, name="last")(x))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_quantized_as_it_lives(kind):
    model = model_with(KINDS[kind]())
    qmodel = quantized(model, DATA)
    assert largest_error(model, qmodel, DATA) < 0.05
    assert largest_error(model, qmodel.float_model(), DATA) < 1e-6
    assert model.layers[2].name in [layer.name for layer in qmodel.layers]


def test_training_changes_the_copy_alone():
    model = model_with(Residual(Mixing(3), name="it"))
    weights = model.get_weights()
    qmodel = trained(quantized(model, DATA), DATA)
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights()))
    assert not np.array_equal(weights[2], qmodel.float_model().get_weights()[2])


@pytest.mark.parametrize("kind", KINDS_IN_FILES)
def test_a_file_computes_it(kind, tmp_path):
    qmodel = trained(quantized(model_with(KINDS[kind]()), DATA), DATA)
    report = converted(qmodel, DATA, tmp_path)
    # A layer that calls layers is unfolded.
    assert list(report.float_layers) == ["it/mix" if kind == "layer in a layer" else "it"]


def test_a_shared_custom_layer_stays_one_layer():
    keras.utils.set_random_seed(0)
    a, b, mix = keras.Input((5, 3), name="a"), keras.Input((5, 3), name="b"), Mixing(4, name="mix")
    model = keras.Model([a, b], layers.Dense(2)(layers.Subtract()([mix(a), mix(b)])))
    qmodel = quantized(model, [DATA, DATA[::-1]])
    assert qmodel.float_model().count_params() == model.count_params()
    assert largest_error(model, qmodel, [DATA, DATA[::-1]]) < 0.05


class Unclonable(layers.Layer):
    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def build(self, shape):
        self.gain = self.add_weight(name="gain", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return self.function(x) * self.gain


def test_weights_that_cannot_be_copied_are_refused_by_name():
    model = model_with(Unclonable(tf.square, name="it"))
    with pytest.raises(ValueError, match=r"'it' \(Unclonable\) cannot be copied.*get_config"):
        quantized(model, DATA)
