"""Layers and operations with constants: each map computes what its layer does."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from dqmq_tf.errors import FloatOnly
from dqmq_tf.graph import trace
from dqmq_tf.graph.constant_maps import constant_map, is_constant_map

CHANNELS = np.array([1.0, -2.0, 4.0], "float32")
MAPS = {
    "rescaling": layers.Rescaling(0.5, offset=-3.0),
    "rescaling of channels": layers.Rescaling([1.0, 2.0, 3.0], offset=[0.0, 1.0, 2.0]),
    "normalization": layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 0.25, 1.0]),
    "normalization of all": layers.Normalization(axis=None, mean=1.0, variance=4.0),
    "add": lambda x: x + 3.0,
    "add in front": lambda x: ops.add(CHANNELS, x),
    "subtract": lambda x: x - CHANNELS,
    "subtract in front": lambda x: 3.0 - x,
    "multiply": lambda x: ops.multiply(x, CHANNELS),
    "keyword": lambda x: ops.multiply(x1=2.0, x2=x),
    "divide": lambda x: ops.divide(x, CHANNELS),
    "true divide": lambda x: x / 7.0,
    "negative": lambda x: -x,
}


def last_of(call, shape=(4, 5, 3)):
    inputs = keras.Input(shape)
    graph = trace(keras.Model(inputs, call(inputs)))
    return graph, graph.nodes[-1]


@pytest.mark.parametrize("name", MAPS)
def test_a_map_computes_what_its_layer_does(name):
    graph, node = last_of(MAPS[name])
    assert is_constant_map(node)
    affine = constant_map(graph, node)
    assert affine.multiplier.shape == affine.offset.shape == (3,)
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype("float32")
    args, kwargs = node.arguments({node.inputs[0]: x})
    expected = ops.convert_to_numpy(node.layer(*args, **kwargs))
    np.testing.assert_allclose(affine.multiplier * x + affine.offset, expected, atol=1e-5)


@pytest.mark.parametrize(
    "call, reason",
    [
        (lambda x: x + np.ones((4, 5, 3), "float32"), "differs between positions"),
        (lambda x: x + np.ones((5, 1), "float32"), "differs between positions"),
        (layers.Rescaling([1.0, 2.0]), "not one number for each channel"),
        (lambda x: 1.0 / x, "divides by a tensor"),
        (lambda x: x / np.array([1.0, 0.0, 1.0], "float32"), "or by 0"),
        (layers.Normalization(axis=1, mean=[1.0] * 4, variance=[1.0] * 4), "other axes"),
        (layers.Normalization(mean=1.0, variance=4.0, invert=True), "inverts"),
    ],
)
def test_what_is_no_map_of_channels_says_why(call, reason):
    graph, node = last_of(call)
    assert is_constant_map(node)
    with pytest.raises(FloatOnly, match=reason):
        constant_map(graph, node)


@pytest.mark.parametrize("call", [lambda x: x * x, lambda x: ops.abs(x), layers.ReLU()])
def test_others_are_no_maps(call):
    assert not is_constant_map(last_of(call)[1])
