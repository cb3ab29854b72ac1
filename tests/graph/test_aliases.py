"""Tensors that are one tensor at inference: they are found, and they share a quantizer."""

import keras
import pytest
from helpers.found_points import find
from keras import layers, ops

from dqmq_tf import graph as graphs
from dqmq_tf.graph.aliases import sources_of, with_aliases


class Noise(layers.Layer):
    def call(self, x, training=False):
        return x + keras.random.normal(ops.shape(x)) if training else x


class FadingNoise(layers.Layer):
    """Holds a variable that changes nothing at inference."""

    def build(self, shape):
        self.strength = self.add_weight(name="strength", trainable=False, initializer="ones")

    def call(self, x, training=False):
        return x + self.strength * keras.random.normal(ops.shape(x)) if training else x


class Gain(layers.Layer):
    """The identity until it is trained."""

    def build(self, shape):
        self.gain = self.add_weight(name="gain", initializer="ones")

    def call(self, x):
        return self.gain * x


class Clip(layers.Layer):
    """The identity for small values alone."""

    def call(self, x):
        return ops.clip(x, -6, 6)


class Swap(layers.Layer):
    def call(self, x, y):
        return ops.add(x, y), x


IDENTITIES = {
    "Dropout": lambda: layers.Dropout(0.5),
    "Dropout with training=True": lambda: lambda x: layers.Dropout(0.5)(x, training=True),
    "SpatialDropout2D": lambda: layers.SpatialDropout2D(0.5),
    "GaussianDropout": lambda: layers.GaussianDropout(0.5),
    "GaussianNoise": lambda: layers.GaussianNoise(0.5),
    "AlphaDropout": lambda: layers.AlphaDropout(0.5),
    "ActivityRegularization": lambda: layers.ActivityRegularization(0.5),
    "linear Activation": lambda: layers.Activation("linear"),
    "Identity": layers.Identity,
    "RandomFlip": layers.RandomFlip,
    "RandomRotation": lambda: layers.RandomRotation(0.2),
    "RandomZoom": lambda: layers.RandomZoom(0.2),
    "RandomTranslation": lambda: layers.RandomTranslation(0.2, 0.2),
    "RandomContrast": lambda: layers.RandomContrast(0.2),
    "RandomBrightness": lambda: layers.RandomBrightness(0.2),
    "RandomCrop of the whole image": lambda: layers.RandomCrop(8, 8),
    "RandAugment": layers.RandAugment,
    "augmentation in a model": lambda: keras.Sequential(
        [layers.RandomFlip(), layers.RandomRotation(0.2)]
    ),
    "a layer of the user": Noise,
    "a layer with a variable": FadingNoise,
    "Lambda": lambda: layers.Lambda(lambda x: x),
    "stop_gradient": lambda: ops.stop_gradient,
    "times one": lambda: lambda x: x * 1.0,
}
CHANGES = {
    "a gain that is one": Gain,
    "a clip": Clip,
    "Normalization before it is adapted": layers.Normalization,
    "BatchNormalization": layers.BatchNormalization,
    "Lambda": lambda: layers.Lambda(lambda x: 2 * x),
    "ReLU": layers.ReLU,
    "a function of the user": lambda: layers.Activation(lambda x: ops.minimum(x, 3.0)),
}


@pytest.mark.parametrize("kind", IDENTITIES)
def test_a_layer_that_acts_in_training_alone_has_no_quantizer(kind):
    make = IDENTITIES[kind]()
    graph, activations, _ = find(
        lambda x: layers.Dense(2, name="dense")(make(x)), target="android", shape=(8, 8, 3)
    )
    assert [point.name for point in activations] == ["image", "dense"]
    assert all(sources_of(graph, node) == [0] for node in graph.nodes[:1])


@pytest.mark.parametrize("kind", CHANGES)
def test_a_layer_that_acts_at_inference_has_a_quantizer(kind):
    make = CHANGES[kind]()
    graph, activations, _ = find(
        lambda x: layers.Dense(2, name="dense")(make(x)), target="android", shape=(8, 8, 3)
    )
    assert len(activations) == 3 and graph.aliases == {}


@pytest.mark.parametrize("kind", [layers.GRU, layers.LSTM, layers.SimpleRNN])
def test_a_recurrent_layer_and_its_state_share_a_quantizer(kind):
    def make(x):
        output, *state = kind(3, return_state=True, name="rnn")(x)
        return layers.Dense(2, name="dense")(layers.Concatenate()([output, *state]))

    graph, _, _ = find(make, shape=(5, 4), target="android")
    assert graph.aliases == {2: 1}


@pytest.mark.parametrize("kind", [layers.GRU, layers.LSTM, layers.SimpleRNN])
def test_a_sequence_is_not_its_last_state(kind):
    def make(x):
        output, *state = kind(3, return_state=True, return_sequences=True)(x)
        return [layers.Dense(2)(output), layers.Dense(2)(state[0])]

    assert find(make, shape=(1, 4))[0].aliases == {}


def test_outputs_that_are_an_input_or_another_output():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    total, same = Swap()(a, b)
    graph = graphs.trace(keras.Model([a, b], [total, same]))
    assert graph.aliases == {3: 0}


TWICE = {
    "relu": lambda x: layers.ReLU()(x),
    "relu as layer and function": None,
    "sum": lambda x: layers.Add()([x, x]),
    "scale": lambda x: x * 0.5,
    "pool": lambda x: layers.GlobalAveragePooling2D()(x),
    "rescaling": lambda x: layers.Rescaling(0.1)(x),
}


@pytest.mark.parametrize("kind", TWICE)
def test_what_is_computed_twice_shares_a_quantizer(kind):
    first = TWICE[kind] or layers.ReLU()
    second = TWICE[kind] or ops.relu

    def make(x):
        x = layers.Dense(4, name="first")(x)
        return [layers.Dense(2)(first(x)), layers.Dense(3)(second(x))]

    graph, activations, _ = find(make, target="android")
    twice = [point for point in activations if len(point.slots) == 2]
    assert len(twice) == 1 and len(activations) == 5


def test_a_layer_that_is_called_twice_on_one_tensor_computes_once():
    dense = layers.Dense(4, name="shared")
    graph, activations, _ = find(
        lambda x: layers.Dense(2, name="head")(layers.Concatenate()([dense(x), dense(x)]))
    )
    assert [point.name for point in activations] == ["image", "shared", "head"]


def test_layers_with_weights_of_their_own_compute_different_things():
    graph, activations, _ = find(
        lambda x: [layers.Dense(4)(x), layers.Dense(4)(x), layers.Dropout(0.5)(x) + x]
    )
    assert len(activations) == 4


def test_constants_tell_calls_apart():
    graph, activations, _ = find(lambda x: layers.Dense(2)(x * 0.5 + x * 0.25))
    assert len(activations) == 5


def test_a_saved_model_says_which_tensors_are_one():
    graph, _, _ = find(lambda x: layers.Dense(2)(Noise()(layers.Dropout(0.5)(x))))
    assert graph.aliases == {1: 0, 2: 0}
    # A model that was saved without them had them for layers that are known by name.
    assert with_aliases(graph, ()).aliases == {1: 0}
    assert with_aliases(graph, [[2, 0]]).aliases == graph.aliases
