"""Layers that convolve with whole kernels compute what those of Keras do."""

import keras
import numpy as np
import pytest
from helpers.networks import chain

from dqmq_tf.lowering.whole_kernels import use_whole_kernels

layers = keras.layers


@pytest.mark.parametrize(
    "shape, layer",
    [
        ((3, 6, 2), layers.ConvLSTM1D(4, 3, strides=2, use_bias=False, return_sequences=True)),
        ((3, 4, 5, 2), layers.ConvLSTM2D(3, (2, 3), padding="same", activation="relu")),
        ((2, 4, 4, 4, 1), layers.ConvLSTM3D(2, 2, recurrent_activation="hard_sigmoid")),
        ((3, 7, 2), layers.Bidirectional(layers.ConvLSTM1D(2, 3, dilation_rate=2))),
    ],
    ids=["1D", "2D", "3D", "Bidirectional"],
)
def test_they_compute_what_the_layers_of_keras_do(shape, layer):
    model = chain(shape, layer)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    expected = model(x, training=False)
    use_whole_kernels(layer)
    found = model(x, training=False)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-6)


class Louder(layers.ConvLSTM1D):
    """Holds a cell of its own kind, which computes something else."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.cell.__class__ = LouderCell


class LouderCell(type(layers.ConvLSTM1D(1, 1).cell)):
    def call(self, inputs, states, training=False):
        return super().call(2.0 * inputs, states, training=training)


def test_a_cell_of_another_class_computes_what_it_says():
    layer = Louder(2, 3)
    model = chain((3, 6, 2), layer)
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 2)).astype("float32")
    expected = model(x, training=False)
    use_whole_kernels(layer)
    np.testing.assert_array_equal(model(x, training=False), expected)
