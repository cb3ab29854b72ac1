"""Every layer type: trained for two steps, converted, run on LiteRT, compared."""

import keras
import numpy as np
import pytest
from helpers.frozen_models import batch_norm
from helpers.networks import IMAGE, SIGNAL, WORDS, samples

import dqmq_tf
from dqmq_tf import export

layers = keras.layers


def functional(call, shape=SIGNAL, dtype="float32"):
    inputs = keras.Input(shape, dtype=dtype, name="entry")
    return keras.Model(inputs, call(inputs))


def classified(x):
    return layers.Dense(3, name="head")(layers.Flatten()(x))


def attention(x, **options):
    y = layers.MultiHeadAttention(2, 4, name="attention")(x, x, **options)
    return classified(layers.Add()([x, y]))


def ops(x):
    q, k = layers.Dense(4)(x), layers.Dense(4)(x)
    scores = keras.ops.matmul(q, keras.ops.transpose(k, (0, 2, 1)))
    return classified(keras.ops.relu(keras.ops.reshape(scores, (-1, 144))))


def chain(*parts):
    def call(x):
        for part in parts:
            x = part(x)
        return classified(x)

    return call


def activation(name):
    return chain(layers.Dense(8, activation=name, name="part"))


# Name: (network, shape and type of its input, layers that compute in floating point).
NETWORKS = {
    "Conv1D": (
        chain(layers.Conv1D(8, 3, padding="causal"), layers.Conv1D(6, 3, strides=2)),
        {},
        (),
    ),
    "Conv2D": (
        chain(layers.Conv2D(6, 3, use_bias=False), batch_norm(1), layers.ReLU()),
        {"shape": IMAGE},
        (),
    ),
    "DepthwiseConv2D": (
        chain(layers.DepthwiseConv2D(3, depth_multiplier=2), layers.ReLU(6.0)),
        {"shape": IMAGE},
        (),
    ),
    "SeparableConv1D": (chain(layers.SeparableConv1D(8, 3, activation="relu")), {}, ()),
    "SeparableConv2D": (
        chain(layers.SeparableConv2D(6, 3, use_bias=False), batch_norm(2), layers.ReLU()),
        {"shape": IMAGE},
        (),
    ),
    "Conv1DTranspose": (chain(layers.Conv1DTranspose(5, 3, strides=2, activation="relu")), {}, ()),
    "Conv2DTranspose": (
        chain(
            layers.Conv2DTranspose(5, 3, strides=2, padding="same", use_bias=False),
            batch_norm(3),
            layers.ReLU(),
        ),
        {"shape": IMAGE},
        (),
    ),
    "Dense": (chain(layers.Dense(8, use_bias=False), batch_norm(4), layers.ReLU()), {}, ()),
    "EinsumDense": (
        chain(
            layers.EinsumDense("abc,cde->abde", (12, 2, 4), bias_axes="de", activation="relu"),
            layers.EinsumDense("abde,def->abf", (12, 7), bias_axes="f"),
        ),
        {},
        (),
    ),
    "Embedding": (chain(layers.Embedding(WORDS, 8)), {"shape": (12,), "dtype": "int32"}, ()),
    "Embedding of floats": (chain(layers.Embedding(WORDS, 8)), {"shape": (12,)}, ()),
    "MultiHeadAttention": (attention, {}, ()),
    "MultiHeadAttention, causal": (
        lambda x: attention(x, use_causal_mask=True),
        {},
        ("attention",),
    ),
    "LayerNormalization": (
        chain(layers.Dense(8), layers.LayerNormalization(name="norm"), layers.Dense(8)),
        {},
        ("norm",),
    ),
    "LSTM": (chain(layers.LSTM(5, return_sequences=True, name="lstm")), {}, ("lstm",)),
    "GRU": (chain(layers.GRU(5, name="gru")), {}, ("gru",)),
    "Bidirectional": (chain(layers.Bidirectional(layers.LSTM(4), name="both")), {}, ("both",)),
    "relu": (activation("relu"), {}, ()),
    "relu6": (activation("relu6"), {}, ()),
    "leaky relu": (activation("leaky_relu"), {}, ()),
    "hard swish": (activation("hard_silu"), {}, ()),
    "silu": (activation("silu"), {}, ()),
    "gelu": (activation("gelu"), {}, ()),
    "sigmoid": (activation("sigmoid"), {}, ()),
    "tanh": (activation("tanh"), {}, ()),
    "softmax": (activation("softmax"), {}, ()),
    "elu": (activation("elu"), {}, ("part_activation",)),
    "pools": (
        chain(
            layers.Conv2D(6, 3, activation="sigmoid"),
            layers.AveragePooling2D(2),
            layers.ZeroPadding2D(1),
            layers.MaxPooling2D(2),
            layers.GlobalAveragePooling2D(),
        ),
        {"shape": IMAGE},
        (),
    ),
    "pools of signals": (
        chain(
            layers.Conv1D(6, 3, activation="relu"),
            layers.AveragePooling1D(2),
            layers.UpSampling1D(2),
            layers.MaxPooling1D(2),
            layers.GlobalAveragePooling1D(),
        ),
        {},
        (),
    ),
    "resize": (
        chain(
            layers.Conv2D(6, 3, activation="relu"),
            layers.UpSampling2D(2, interpolation="bilinear"),
            layers.Conv2D(4, 3),
            layers.Resizing(7, 9),
            layers.UpSampling2D(2),
        ),
        {"shape": IMAGE},
        (),
    ),
    "add, multiply, concatenate": (
        lambda x: classified(
            layers.Concatenate()(
                [
                    layers.Multiply()([layers.Dense(6)(x), x]),
                    layers.Add()([layers.Dense(6, activation="sigmoid")(x), x]),
                    layers.Dense(6, activation="tanh")(x),
                ]
            )
        ),
        {},
        (),
    ),
    "operations": (ops, {}, ()),
    "numbers": (
        lambda x: classified(2.0 - layers.Dense(8)(layers.Normalization()(x * 0.5 + 1.0))),
        {},
        (),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_two_steps_of_training_and_the_file_agrees(name, tmp_path):
    keras.utils.set_random_seed(1)
    call, how, floating = NETWORKS[name]
    qmodel = dqmq_tf.quantize_model(
        functional(call, **how), budget=dqmq_tf.Budget(size_bytes=10**7)
    )
    x = samples(qmodel)
    y = np.random.default_rng(1).normal(size=(64, 3)).astype("float32")
    before = [keras.ops.convert_to_numpy(w) for w in qmodel.trainable_weights]
    qmodel.compile(optimizer="adam", loss="mse")
    qmodel.fit(x, y, batch_size=32, verbose=0)
    assert any(np.any(b != w) for b, w in zip(before, map(np.array, qmodel.trainable_weights)))
    path = tmp_path / "model.tflite"
    converted = export.convert(qmodel, path, data=x, verify=False)
    assert tuple(converted.float_layers) == floating
    assert all(converted.float_layers.values())
    report = export.verify(qmodel, path, x, runtimes=["litert-xnnpack", "litert-builtin"])
    assert report.different_numbers == 0
    for row in report.rows:
        assert row.mean_quanta < 1 and row.largest_quanta < 4.5
