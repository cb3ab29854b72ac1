"""Subclasses that only set other defaults compute what the Keras layer does."""

import keras
import numpy as np
import pytest
from helpers.eight_bits import converted, largest_error, quantized
from helpers.predictions import predicted

from dqmq_tf.graph import trace
from dqmq_tf.graph.activations import fixed_range, is_relu
from dqmq_tf.graph.fusion import is_global_average, shares_scale
from dqmq_tf.graph.plain_classes import keras_name, plain_class
from dqmq_tf.graph.splitting import split_layers

layers = keras.layers


class Capped(layers.ReLU):
    def __init__(self, **kwargs):
        super().__init__(**{"max_value": 4.0, **kwargs})


class Slower(layers.BatchNormalization):
    def __init__(self, **kwargs):
        super().__init__(**{"momentum": 0.999, **kwargs})

    def get_config(self):
        return super().get_config()


class Doubled(layers.ReLU):
    def call(self, x):
        return 2 * super().call(x)


class Standardized(layers.BatchNormalization):
    def _moments(self, inputs, mask):
        return super()._moments(inputs, mask)


def test_only_what_defines_nothing_else_is_plain():
    assert plain_class(Capped()) is plain_class(layers.ReLU()) is layers.ReLU
    assert plain_class(Slower()) is layers.BatchNormalization
    assert plain_class(Doubled()) is Doubled and plain_class(Standardized()) is Standardized
    assert plain_class(layers.Dense(2)) is layers.Dense and plain_class(None) is type(None)


@pytest.mark.parametrize("kind", [Capped, Slower])
def test_plain_subclasses_run_on_integer_kernels(kind, tmp_path):
    keras.utils.set_random_seed(0)
    data = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    inputs = keras.Input((6,))
    hidden = kind()(layers.Dense(5)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    with keras.saving.custom_object_scope({kind.__name__: kind}):
        qmodel = quantized(model, data)
        assert largest_error(model, qmodel, data) < 0.1
        assert not converted(qmodel, data, tmp_path).float_layers


class DoubledTanh(layers.Dense):
    def call(self, x):
        return 2.0 * super().call(x)


class Flipped(layers.SeparableConv2D):
    def call(self, x):
        return super().call(x[:, ::-1])


class Small(layers.SeparableConv2D):
    def __init__(self, filters, **kwargs):
        super().__init__(filters, **{"kernel_size": 2, **kwargs})


@pytest.mark.parametrize(
    "layer, shape, count",
    [
        (DoubledTanh(3, activation="tanh"), (4,), 0),
        (Flipped(3, 2), (5, 5, 2), 0),
        (Small(3), (5, 5, 2), 2),
    ],
)
def test_only_a_subclass_that_computes_the_same_is_split(layer, shape, count):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    body, parts = split_layers(model)
    assert [len(made) for made in parts.values()] == [count] * bool(count)
    data = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    np.testing.assert_allclose(predicted(body, data), predicted(model, data), atol=1e-5)


def own_layer(name):
    """A layer of the user's own whose class has this name."""
    return type(name, (layers.Layer,), {"call": lambda self, x: 3.0 * x + 1.0})(name="own")


@pytest.mark.parametrize(
    "name", ["Dropout", "GlobalAveragePooling", "Mean", "Pad", "Relu", "Reshape", "Sigmoid"]
)
def test_a_class_of_the_users_own_with_a_name_of_keras_computes_what_it_computes(name):
    inputs = keras.Input((4,))
    graph = trace(keras.Model(inputs, own_layer(name)(layers.Dense(4)(inputs))))
    node = graph.nodes[-1]
    assert keras_name(node.layer) == "" and keras_name(layers.Dropout(0.1)) == "Dropout"
    assert not graph.aliases and not is_relu(node.layer) and fixed_range(node.layer) == "affine"
    assert not shares_scale(graph, node) and not is_global_average(graph, node)


@pytest.mark.parametrize("name", ["Pad", "Resize"])
def test_a_class_of_the_users_own_with_a_name_of_keras_is_converted(name, tmp_path):
    keras.utils.set_random_seed(0)
    data = np.random.default_rng(0).normal(size=(32, 5)).astype("float32")
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layers.Dense(3)(own_layer(name)(layers.Dense(6)(inputs))))
    qmodel = quantized(model, data)
    assert largest_error(model, qmodel, data) < 0.1
    assert list(converted(qmodel, data, tmp_path).float_layers) == ["own"]
