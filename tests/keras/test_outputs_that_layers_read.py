"""Outputs of a model that its layers read as well, such as features beside the classes."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from helpers.eight_bits import converted, largest_error, quantized
from keras import layers, ops

import dqmq_tf

DATA = np.random.default_rng(0).normal(size=(16, 7)).astype("float32")


def features_and(*heads):
    """A model that returns features, and what each head computes from them."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7,))
    features = layers.Dense(6, activation="relu", name="features")(inputs)
    return keras.Model(inputs, [features, *(head(features) for head in heads)])


@pytest.mark.parametrize("target", ["android", "microcontroller"])
def test_an_output_that_layers_read_converts(target, tmp_path):
    model = features_and(
        layers.Dense(3, activation="softmax"),
        layers.Dense(2),
        lambda x: x * ops.sigmoid(x),
        lambda x: layers.Concatenate()([x, x]),
        ops.sin,  # In floating point.
        lambda x: ops.cast(x > 0.5, "float32"),
    )
    qmodel = quantized(model, DATA, target)
    assert largest_error(model, qmodel, DATA) < 0.05
    converted(qmodel, DATA, tmp_path)


def test_an_output_that_one_layer_reads_is_an_int8_output(tmp_path):
    qmodel = quantized(features_and(layers.Dense(3)), DATA)
    dqmq_tf.convert(qmodel, tmp_path / "model.tflite", data=DATA, io_dtype="int8")


@pytest.mark.parametrize("target", ["android", "android_small", "microcontroller"])
@pytest.mark.parametrize("io_dtype", ["float32", "int8"])
def test_such_an_output_has_the_type_of_all_outputs(target, io_dtype, tmp_path):
    inputs = keras.Input((7,))
    classes = layers.Dense(4, activation="softmax", name="classes")(inputs)
    logits = layers.Dense(3, name="logits")(inputs)
    # Computed by operators without an integer kernel.
    read = [ops.argmax(classes, axis=-1), layers.UnitNormalization()(logits)]
    model = keras.Model(inputs, [classes, logits, *read, ops.exp(logits), logits])
    qmodel = quantized(model, DATA, target)
    dqmq_tf.convert(qmodel, tmp_path / "model.tflite", data=DATA, io_dtype=io_dtype)
    interpreter = Interpreter(str(tmp_path / "model.tflite"))
    types = [np.dtype(output["dtype"]).name for output in interpreter.get_output_details()]
    assert types == [io_dtype, io_dtype, "int32", io_dtype, io_dtype, io_dtype]
    runner = interpreter.get_signature_runner()
    assert {output["dtype"] for output in runner.get_output_details().values()} == {
        np.dtype(io_dtype).type, np.int32
    }  # fmt: skip
