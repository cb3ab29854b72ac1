"""`hidden_input`: what a layer does at each call besides computing outputs from its inputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from dqmq_tf import graph as graphs
from dqmq_tf.graph.hidden_inputs import RANDOM, hidden_input


class Dropping(layers.Dropout):
    """Drops at inference too, for Monte Carlo estimates."""

    def call(self, x, training=None):
        return super().call(x, training=True)


class Counting(layers.Layer):
    def __init__(self, at_inference, **kwargs):
        super().__init__(**kwargs)
        self.at_inference = at_inference

    def build(self, shape):
        self.count = self.add_weight(name="count", shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=None):
        if training or self.at_inference:
            self.count.assign_add(1.0)
        return x


class CountingInTensorFlow(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.count = tf.Variable(0.0)

    def call(self, x):
        return x + self.count.assign_add(1.0)


class Measuring(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mean = keras.metrics.Mean(name="mean")

    def call(self, x):
        self.mean.update_state(ops.mean(x))
        self.add_loss(ops.mean(x))
        return x


class Failing(layers.Layer):
    """Does not take the inputs that it is tried on."""

    def call(self, x):
        raise ValueError("not these")

    def compute_output_shape(self, shape):
        return shape


def noise(x):
    return x + tf.random.normal(tf.shape(x))


KINDS = {
    "dropout": (lambda: Dropping(0.5), RANDOM),
    "inside": (lambda: layers.TimeDistributed(Dropping(0.5)), RANDOM),
    "operator of TensorFlow": (lambda: layers.Lambda(noise), RANDOM),
    "in a function": (lambda: layers.Lambda(tf.function(noise)), RANDOM),
    "activation": (lambda: layers.Dense(2, activation=noise), RANDOM),
    "fixed seed": (
        lambda: layers.Lambda(lambda x: x + keras.random.uniform(ops.shape(x), seed=1)), RANDOM
    ),
    "variable": (lambda: Counting(True), "it changes its variable 'count' at inference"),
    "variable of TensorFlow": (CountingInTensorFlow, "it changes a variable at inference"),
    "metric": (Measuring, "it changes its variable 'total' at inference"),
    "in training only": (lambda: Counting(False), None),
    "dropout of Keras": (lambda: layers.Dropout(0.5), None),
    "function": (lambda: layers.Lambda(ops.tanh), None),
    "fails": (Failing, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_layer_does_is_found_and_changes_nothing(kind):
    make, expected = KINDS[kind]
    inputs = keras.Input((4, 3))
    layer = make()
    model = keras.Model(inputs, layer(inputs))
    graph = graphs.trace(model)
    values = [variable.numpy() for variable in (*layer.variables, *layer.metrics_variables)]
    assert [hidden_input(graph, node) for node in graph.nodes] == [expected]
    for variable, value in zip((*layer.variables, *layer.metrics_variables), values, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert all(not hasattr(loss, "graph") for loss in layer.losses)


def test_a_layer_is_looked_at_once():
    calls = []

    def function(x):
        calls.append(x)
        return x

    inputs = keras.Input((3,))
    graph = graphs.trace(keras.Model(inputs, layers.Lambda(function)(inputs)))
    del calls[:]
    assert [hidden_input(graph, graph.nodes[0]) for _ in range(2)] == [None, None]
    assert len(calls) == 1
