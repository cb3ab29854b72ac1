"""A network that is quantized without a budget, and calibrated only, never fails for its size."""

import keras
import numpy as np
import pytest
from keras import layers

import dqmq_tf


def attention(x):
    return layers.MultiHeadAttention(2, 3)(x, x)


# What costs bytes beside kernels: float constants, unrolled steps, maps of each channel.
PARTS = {
    "recurrent": [layers.GRU(6, return_sequences=True), layers.LSTM(6, return_sequences=True)],
    "norms": [layers.Conv1D(4, 3, padding="causal"), layers.LayerNormalization(), attention],
    "activations": [
        layers.SeparableConv1D(4, 3, activation="elu"),
        layers.PReLU(),
        layers.GroupNormalization(2),
        layers.Conv1DTranspose(4, 3, activation="relu"),
        layers.BatchNormalization(),
    ],
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("target", ["android", "microcontroller"])
def test_a_tiny_network_meets_its_default_budget(name, target, tmp_path):
    inputs = x = keras.Input((8, 6))
    for layer in PARTS[name]:
        x = (
            layer.from_config(layer.get_config())(x)
            if isinstance(layer, layers.Layer)
            else layer(x)
        )
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    qmodel = dqmq_tf.quantize_model(model, target=target)
    qmodel.calibrate(np.random.default_rng(0).normal(size=(8, 8, 6)))
    report = dqmq_tf.convert(qmodel, tmp_path / "model.tflite", verify=False)
    assert report.size_bytes == (tmp_path / "model.tflite").stat().st_size
