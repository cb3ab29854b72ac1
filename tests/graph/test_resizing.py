"""Models for inputs of another size."""

import keras
import numpy as np
from helpers.frozen_models import freeze, images
from helpers.predictions import predicted
from keras import layers

import dqmq_tf
from dqmq_tf import export
from dqmq_tf.graph.resizing import with_input_shapes
from dqmq_tf.graph.splitting import split_layers


def attention(length):
    inputs = keras.Input((length, 4))
    x = layers.MultiHeadAttention(2, 3)(inputs, inputs)
    x = layers.EinsumDense("abc,cd->abd", (length, 5), bias_axes="d")(x)
    return keras.Model(inputs, layers.GlobalAveragePooling1D()(x))


def test_a_sequence_that_attention_reads_may_have_another_length(tmp_path):
    short, long = attention(6), attention(9)
    long.set_weights(short.get_weights())
    resized = with_input_shapes(split_layers(short)[0], [(None, 9, 4)])
    np.testing.assert_allclose(
        predicted(resized, images(long)), predicted(long, images(long)), atol=1e-5
    )
    qmodel = dqmq_tf.change_input_shape(freeze(short), (9, 4))
    report = export.convert(qmodel, tmp_path / "model.tflite", data=images(long))
    assert not report.float_layers and report.verification.largest_quanta <= 2.01
