"""Every layer type, on every target, at every bit-width: trained, converted, run, compared."""

import keras
import numpy as np
import pytest

import dqmq_tf
from dqmq_tf import export
from dqmq_tf.export import flatbuffer

from .conftest import batch_norm, freeze

layers = keras.layers
SIGNAL, IMAGE, WORDS = (12, 6), (8, 8, 3), 20
TARGETS = ("android", "android_small", "microcontroller", "ethos_u")
BITS = tuple(range(2, 9))


def functional(call, shape=SIGNAL, dtype="float32"):
    inputs = keras.Input(shape, dtype=dtype, name="entry")
    return keras.Model(inputs, call(inputs))


def samples(model, count=64):
    generator, (tensor,) = np.random.default_rng(0), model.inputs
    shape = (count, *tensor.shape[1:])
    if len(shape) == 2:
        return generator.integers(0, WORDS, shape).astype(tensor.dtype)
    return generator.normal(size=shape).astype("float32")


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
    assert tuple(converted.float_sites) == floating
    assert all(converted.float_sites.values())
    report = export.verify(qmodel, path, x, runtimes=["litert-xnnpack", "litert-builtin"])
    assert report.different_numbers == 0
    for row in report.rows:
        assert row.mean_quanta < 1 and row.largest_quanta < 4.5


def at_every_bit_width(part, **how):
    """A network with a layer of each bit-width, and these bits by name."""
    inputs = x = keras.Input(name="entry", **how)
    for width in BITS:
        x = part(x, f"b{width}")
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))
    return model, {f"b{width}.*": width for width in BITS} | {"head": 8}


KERNELS = {
    "Conv1D": (lambda x, n: layers.Conv1D(6, 3, padding="same", name=n)(x), {"shape": SIGNAL}),
    "DepthwiseConv1D": (
        lambda x, n: layers.DepthwiseConv1D(3, padding="same", name=n)(x),
        {"shape": SIGNAL},
    ),
    "SeparableConv2D": (
        lambda x, n: layers.SeparableConv2D(4, 3, padding="same", name=n)(x),
        {"shape": IMAGE},
    ),
    "Conv2DTranspose": (
        lambda x, n: layers.Conv2DTranspose(4, 3, padding="same", activation="relu", name=n)(x),
        {"shape": IMAGE},
    ),
    "Dense": (lambda x, n: layers.Dense(6, activation="relu", name=n)(x), {"shape": SIGNAL}),
    "EinsumDense": (
        lambda x, n: layers.EinsumDense("abc,dc->abd", (12, 6), bias_axes="d", name=n)(x),
        {"shape": SIGNAL},
    ),
    "LSTM": (
        lambda x, n: layers.LSTM(5, return_sequences=True, name=n)(x),
        {"shape": (2, 6)},
    ),
    "GRU": (lambda x, n: layers.GRU(5, return_sequences=True, name=n)(x), {"shape": (2, 6)}),
}


def embeddings():
    """Tables of each bit-width, looked up by the same words, and these bits."""
    inputs = keras.Input((12,), dtype="int32", name="entry")
    tables = [layers.Embedding(WORDS, 8, name=f"b{width}")(inputs) for width in BITS]
    x = layers.Flatten()(layers.Concatenate()(tables))
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    return model, {f"b{width}": width for width in BITS} | {"head": 8}


def attentions():
    """Two attentions with a projection of each bit-width, and these bits."""
    inputs = x = keras.Input((4, 6), name="entry")
    for name in ("one", "two"):
        x = layers.MultiHeadAttention(2, 3, name=name)(x, x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))
    parts = [f"{name}_{part}" for name in ("one", "two") for part in ("query", "key", "value")]
    return model, dict(zip(parts, BITS)) | {".*_output": 8, "head": 8}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", [*KERNELS, "Embedding", "MultiHeadAttention"])
def test_integers_and_scales_of_every_bit_width(kind, target, tmp_path):
    keras.utils.set_random_seed(2)
    if kind in KERNELS:
        part, how = KERNELS[kind]
        model, bits = at_every_bit_width(part, **how)
    else:
        model, bits = {"Embedding": embeddings, "MultiHeadAttention": attentions}[kind]()
    data = samples(model)
    qmodel = freeze(model, bits, target=target, data=data)
    path = tmp_path / "model.tflite"
    report = export.convert(qmodel, path, data=data)
    assert report.verification.different_numbers == 0
    assert {w.bit_width for w in report.weights} == set(BITS)
    precision = qmodel.precision()
    found = flatbuffer.read(export.decompress(path.read_bytes()))
    tensors = {flatbuffer.text(t.name): t for t in found.subgraphs[0].tensors}
    # What divides an attention's scores is folded into its queries.
    held = [
        (v.integers, np.float32(v.step / np.sqrt(3) if site.endswith("_query") else v.step))
        for site, variables in precision.weights.items()
        for v in variables.values()
    ]
    assert len(held) == len(report.weights)
    stored = [tensors[f"w{number}"] for number in range(len(held))]
    # Whatever the layout: the same magnitudes, and the same scales.
    assert sorted(map(_magnitudes_of(found), stored)) == sorted(
        tuple(np.sort(np.abs(integers), axis=None).tolist()) for integers, _ in held
    )
    assert sorted(tuple(np.unique(t.quantization.scale).tolist()) for t in stored) == sorted(
        tuple(np.unique(step).tolist()) for _, step in held
    )
    small = [w for w in report.weights if w.bit_width <= 4 and w.operator != "TRANSPOSE_CONV"]
    if target == "android_small":
        assert all(w.container in ("INT4", "INT2") for w in small)
    if target in ("android", "ethos_u"):
        assert all(w.container == "INT8" and not w.table for w in report.weights)


def _magnitudes_of(model):
    def magnitudes(tensor):
        values = np.abs(flatbuffer.constant(model, tensor).astype(int))
        return tuple(np.sort(values, axis=None).tolist())

    return magnitudes
