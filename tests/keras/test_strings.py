"""Models whose inputs are strings train; no file can hold them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.eight_bits import quantized
from keras import layers

import dqmq_tf

TEXTS = np.array([["a b"], ["b c"], ["c"], ["a"]] * 2, dtype=object)
NUMBERS = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def of_words(x):
    words = layers.TextVectorization(vocabulary=["a", "b", "c"], output_sequence_length=3)
    return layers.Flatten()(layers.Embedding(6, 4)(words(x)))


def text_model():
    inputs = keras.Input((1,), dtype="string")
    return keras.Model(inputs, layers.Dense(2)(of_words(inputs))), TEXTS


def text_beside_numbers():
    inputs = [keras.Input((3,), name="numbers"), keras.Input((1,), dtype="string", name="text")]
    x = layers.Concatenate()([inputs[0], of_words(inputs[1])])
    return keras.Model(inputs, layers.Dense(2)(x)), [NUMBERS, TEXTS]


@pytest.mark.parametrize("build", [text_model, text_beside_numbers])
def test_a_model_of_strings_predicts_as_in_float(build):
    model, inputs = build()
    qmodel = quantized(model, inputs, "simulation")
    tensors = keras.tree.map_structure(tf.constant, inputs)
    np.testing.assert_allclose(qmodel(tensors), model(tensors), atol=0.05)


def test_a_model_of_strings_trains():
    model, inputs = text_model()
    qmodel = dqmq_tf.quantize_model(model, target="simulation")
    qmodel.compile("sgd", "mse", run_eagerly=True)
    data = tf.data.Dataset.from_tensor_slices((inputs, np.zeros((8, 2), "float32"))).batch(8)
    assert np.isfinite(qmodel.fit(data, verbose=0).history["loss"]).all()
