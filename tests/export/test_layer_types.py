"""Every layer type: trained for two steps, converted, run on LiteRT, compared."""

import keras
import numpy as np
import pytest
from helpers.frozen_models import batch_norm
from helpers.networks import IMAGE, SIGNAL, WORDS, samples

import dqmq_tf
from dqmq_tf import export

layers = keras.layers


def classified(x):
    return layers.Dense(3)(layers.Flatten()(x))


def attention(x, name, **options):
    y = layers.MultiHeadAttention(2, 4, name=name)(x, x, **options)
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
    return chain(layers.Dense(8, activation=name, name=name))


# The shape and the type of an input, and for each type of layer a network that begins there and the
# layers of it that compute in floating point. A model has all networks of an entry, each with an
# output of its own.
MODELS = {
    "convolutions of signals": (
        (SIGNAL, "float32"),
        {
            "Conv1D": (
                chain(layers.Conv1D(8, 3, padding="causal"), layers.Conv1D(6, 3, strides=2)),
                (),
            ),
            "SeparableConv1D": (chain(layers.SeparableConv1D(8, 3, activation="relu")), ()),
            "Conv1DTranspose": (
                chain(layers.Conv1DTranspose(5, 3, strides=2, activation="relu")),
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
                (),
            ),
        },
    ),
    "convolutions": (
        (IMAGE, "float32"),
        {
            "Conv2D": (
                chain(layers.Conv2D(6, 3, use_bias=False), batch_norm(1), layers.ReLU()),
                (),
            ),
            "DepthwiseConv2D": (
                chain(layers.DepthwiseConv2D(3, depth_multiplier=2), layers.ReLU(6.0)),
                (),
            ),
            "SeparableConv2D": (
                chain(layers.SeparableConv2D(6, 3, use_bias=False), batch_norm(2), layers.ReLU()),
                (),
            ),
            "Conv2DTranspose": (
                chain(
                    layers.Conv2DTranspose(5, 3, strides=2, padding="same", use_bias=False),
                    batch_norm(3),
                    layers.ReLU(),
                ),
                (),
            ),
        },
    ),
    "pools": (
        (IMAGE, "float32"),
        {
            "pools": (
                chain(
                    layers.Conv2D(6, 3, activation="sigmoid"),
                    layers.AveragePooling2D(2),
                    layers.ZeroPadding2D(1),
                    layers.MaxPooling2D(2),
                    layers.GlobalAveragePooling2D(),
                ),
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
                (),
            ),
        },
    ),
    "dense and numbers": (
        (SIGNAL, "float32"),
        {
            "Dense": (chain(layers.Dense(8, use_bias=False), batch_norm(4), layers.ReLU()), ()),
            "EinsumDense": (
                chain(
                    layers.EinsumDense(
                        "abc,cde->abde", (12, 2, 4), bias_axes="de", activation="relu"
                    ),
                    layers.EinsumDense("abde,def->abf", (12, 7), bias_axes="f"),
                ),
                (),
            ),
            "LayerNormalization": (
                chain(layers.Dense(8), layers.LayerNormalization(name="norm"), layers.Dense(8)),
                ("norm",),
            ),
            "numbers": (
                lambda x: classified(2.0 - layers.Dense(8)(layers.Normalization()(x * 0.5 + 1.0))),
                (),
            ),
        },
    ),
    "attention": (
        (SIGNAL, "float32"),
        {
            "MultiHeadAttention": (lambda x: attention(x, "attention"), ()),
            "MultiHeadAttention, causal": (
                lambda x: attention(x, "causal", use_causal_mask=True),
                ("causal",),
            ),
        },
    ),
    "words": (
        ((12,), "int32"),
        {"Embedding": (chain(layers.Embedding(WORDS, 8)), ())},
    ),
    "words as floats": (
        ((12,), "float32"),
        {"Embedding of floats": (chain(layers.Embedding(WORDS, 8)), ())},
    ),
    "recurrent": (
        (SIGNAL, "float32"),
        {
            "LSTM": (chain(layers.LSTM(5, return_sequences=True, name="lstm")), ("lstm",)),
            "GRU": (chain(layers.GRU(5, name="gru")), ("gru",)),
            "Bidirectional": (
                chain(layers.Bidirectional(layers.LSTM(4), name="both")),
                ("both",),
            ),
        },
    ),
    "piecewise linear activations": (
        (SIGNAL, "float32"),
        {name: (activation(name), ()) for name in ("relu", "relu6", "leaky_relu", "hard_silu")},
    ),
    "smooth activations": (
        (SIGNAL, "float32"),
        {
            **{name: (activation(name), ()) for name in ("silu", "gelu", "sigmoid", "tanh")},
            "softmax": (activation("softmax"), ()),
            "elu": (activation("elu"), ("elu_activation",)),
        },
    ),
    "add, multiply, concatenate": (
        (SIGNAL, "float32"),
        {
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
                (),
            ),
        },
    ),
    "operations": (
        (SIGNAL, "float32"),
        {
            "operations": (ops, ()),
        },
    ),
}


# Tracing takes longer than two steps. These are trained as users do: graphs with loops, and with batch
# normalizations whose statistics change.
TRACED = ("recurrent", "convolutions")


@pytest.mark.parametrize("name", MODELS)
def test_two_steps_of_training_and_the_file_agrees(name, tmp_path):
    keras.utils.set_random_seed(1)
    (shape, dtype), networks = MODELS[name]
    inputs = keras.Input(shape, dtype=dtype, name="entry")
    model = keras.Model(inputs, [call(inputs) for call, _ in networks.values()])
    qmodel = dqmq_tf.quantize_model(model, budget=dqmq_tf.Budget(size_bytes=10**7))
    x = samples(qmodel)
    y = [np.random.default_rng(1).normal(size=(64, 3)).astype("float32")] * len(networks)
    before = [keras.ops.convert_to_numpy(w) for w in qmodel.trainable_weights]
    # Two steps of Adam are as large for the smallest gradient, so that rounding decides about them.
    qmodel.compile(keras.optimizers.SGD(0.01), "mse", run_eagerly=name not in TRACED)
    qmodel.fit(x, y, batch_size=32, verbose=0)
    assert any(np.any(b != w) for b, w in zip(before, map(np.array, qmodel.trainable_weights)))
    path = tmp_path / "model.tflite"
    converted = export.convert(qmodel, path, data=x, verify=False)
    floating = [layer for _, names in networks.values() for layer in names]
    assert sorted(converted.float_layers) == sorted(floating)
    assert all(converted.float_layers.values())
    report = export.verify(qmodel, path, x, runtimes=["litert-xnnpack", "litert-builtin"])
    assert report.different_numbers == 0
    for row in report.rows:
        assert row.largest_quanta < 4.5
        assert row.mean_quanta < 1
