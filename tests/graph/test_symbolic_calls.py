"""Which calls of the user's own are told as a model, and that the model computes the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.frozen_models import images
from helpers.predictions import predicted

from dqmq_tf.graph import trace_nested
from dqmq_tf.graph.symbolic_calls import model_of_call

layers = keras.layers


class Own(layers.Layer):
    """A layer with some layers inside, whose `call` the test gives."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function
        self.dense = layers.Dense(6, name="dense")
        self.norm = layers.BatchNormalization()
        self.seed = keras.random.SeedGenerator(1)

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], 6))
        self.scale = self.add_weight(name="scale", shape=(6,))

    def call(self, x, training=False):
        return self.function(self, x, training)


def told(function, shape=(4, 6)):
    """`(model of the call, model with the layer)`."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, Own(function, name="own")(inputs))
    graph = trace_nested(model)
    return model_of_call(graph, graph.nodes[-1]), model


def reshaped(layer, x, training):
    batch, length = keras.ops.shape(x)[:2]
    x = keras.ops.reshape(layer.dense(x), (batch * length, -1, 3))
    return keras.ops.reshape(x, (batch, length, -1)) + keras.ops.reshape(x, (batch, -1, 6))


TOLD = {
    "layers": lambda layer, x, training: layer.norm(layer.dense(x)),
    "the mode": lambda layer, x, training: layer.norm(layer.dense(x), training=training),
    "nothing": lambda layer, x, training: x,
    "functions": lambda layer, x, training: x * keras.ops.sigmoid(x),
    "new layers": lambda layer, x, training: layers.Dropout(0.5)(layers.ReLU()(layer.dense(x))),
    "the size of the batch": reshaped,
    "several outputs": lambda layer, x, training: {"a": layer.dense(x), "b": x},
}


@pytest.mark.parametrize("kind", TOLD)
def test_a_call_of_layers_and_functions_is_told(kind):
    found, model = told(TOLD[kind])
    assert found.name == "own"
    data = images(model, 7)
    expected = predicted(model, data)
    results = predicted(found, data)
    keras.tree.map_structure(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), results, expected
    )
    for training in (True, False):
        keras.utils.set_random_seed(1)
        shapes = [x.shape for x in keras.tree.flatten(found(data, training=training))]
        assert shapes == [x.shape for x in keras.tree.flatten(expected)]
    if kind in ("layers", "the mode"):
        same = [np.asarray(m(data, training=True)) for m in (model, found)]
        np.testing.assert_allclose(*same, atol=1e-5)
        assert np.abs(same[0] - expected).max() > 0.01


HIDDEN = layers.Dense(6)
TABLE = tf.Variable(np.full(6, 3.0, "float32"))


def marked(training):
    """A constant of which only a number in the middle depends on the mode."""
    constant = np.zeros((2000, 6), "float32")
    constant[1000, 3] = training
    return constant


OTHERS = {
    "a variable": lambda layer, x, training: layer.dense(x) * layer.scale,
    "the value of a variable": lambda layer, x, training: layer.dense(x) * layer.scale.value,
    "a kernel": lambda layer, x, training: layer.dense(x) @ keras.ops.transpose(layer.dense.kernel),
    "the mode": lambda layer, x, training: (
        layer.dense(x) if training else layer.norm(layer.dense(x))
    ),
    "another constant": lambda layer, x, training: layer.dense(x) * (2.0 if training else 1.0),
    "a fixed mode": lambda layer, x, training: layer.norm(layer.dense(x), training=False),
    "TensorFlow": lambda layer, x, training: tf.nn.relu(layer.dense(x)),
    "random numbers": lambda layer, x, training: keras.random.dropout(x, 0.5, seed=layer.seed),
    "whether it is symbolic": lambda layer, x, training: (
        layer.dense(x) if keras.backend.is_keras_tensor(x) else 2.0 * layer.dense(x)
    ),
    "a large constant": lambda layer, x, training: (
        keras.ops.tile(layer.dense(x), (1, 500, 1)) + marked(training)
    ),
    "the update of a variable": lambda layer, x, training: (layer.scale.assign([1] * 6), x)[1],
    "a variable of TensorFlow": lambda layer, x, training: layer.dense(x) * TABLE,
    "a new layer with weights": lambda layer, x, training: layers.BatchNormalization()(x),
    "a layer that is no attribute": lambda layer, x, training: HIDDEN(layer.dense(x)),
    "the batch as a factor": lambda layer, x, training: layer.dense(x) / float(x.shape[0] or 1),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_else_a_call_does_is_not_lost(kind):
    found, _ = told(OTHERS[kind])
    assert found is None


def test_variables_that_keras_does_not_see_are_not_lost():
    class Counting(Own):
        def __init__(self, **kwargs):
            super().__init__(None, **kwargs)
            self.calls = tf.Variable(0)

        def call(self, x):
            self.calls.assign_add(1)
            return self.dense(x)

    inputs = keras.Input((4, 6))
    graph = trace_nested(keras.Model(inputs, Counting()(inputs)))
    assert model_of_call(graph, graph.nodes[-1]) is None


def test_losses_of_a_call_are_not_lost():
    def call(layer, x, training):
        y = layer.dense(x)
        layer.add_loss(keras.ops.mean(y))
        return y

    assert told(call)[0] is None
