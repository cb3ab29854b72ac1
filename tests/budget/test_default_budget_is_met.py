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


def test_the_default_budget_allows_the_bits_that_a_rule_fixes():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dense(2)])
    rule = dqmq_tf.LayerRule(pattern=".*", weight_bits=8, activation_bits=8)
    config = dqmq_tf.DQMQConfig(rules=rule, quality_aware=False)
    qmodel = dqmq_tf.quantize_model(model, target="simulation", config=config)
    qmodel.calibrate(np.zeros((8, 6)))
    precision = qmodel.freeze().precision()
    assert {w.bit_width for of_layer in precision.weights.values() for w in of_layer.values()} == {
        8
    }
    assert qmodel.budget.value == pytest.approx(8.0)
