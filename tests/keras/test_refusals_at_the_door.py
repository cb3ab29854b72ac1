"""What `convert` would refuse is a warning of `quantize_model`, in the words of `convert`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import dqmq_tf
from dqmq_tf.export import ConversionError


class Spectrum(layers.Layer):
    """Becomes an operator of TFLite that LiteRT refuses to run on so few values."""

    def call(self, x):
        return tf.math.real(tf.signal.fft(tf.cast(x, "complex64")))


class Sampling(layers.Layer):
    """Draws random numbers at inference too, as the tutorial of variational autoencoders does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(1)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.generator)


class Counter(layers.Layer):
    def build(self, shape):
        self.count = self.add_weight(name="count", shape=(), trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return 2.0 * x


def inverse(x):
    return keras.ops.erfinv(0.5 * keras.ops.tanh(x))


# `{name: (target, input shape, layers, part of the message)}`
REFUSED = {
    "any image size": ("android", (None, None, 3), [layers.Conv2D(4, 3)], "change_input_shape"),
    "any length": ("microcontroller", (None, 3), [layers.Conv1D(4, 3)], "change_input_shape"),
    "mask of an embedding": (
        "android", (6,), [layers.Embedding(9, 4, mask_zero=True, name="words"), layers.GRU(3)],
        "'words'.*makes a mask",
    ),
    "mask": ("android", (6, 3), [layers.Masking(name="gap"), layers.LSTM(3)], "'gap'.*makes a mask"),
    "groups": (
        "microcontroller", (8, 8, 4), [layers.Conv2D(4, 3, groups=2, name="grouped")],
        "'grouped' computes in floating point.*2 groups",
    ),
    "groups with a batch norm": (
        "ethos_u", (8, 4),
        [layers.Conv1D(4, 3, groups=2, name="grouped"), layers.BatchNormalization()],
        "'grouped' computes in floating point.*2 groups",
    ),
    "operator": (
        "microcontroller", (8, 8, 3), [layers.Conv2D(4, 3), layers.Activation("gelu", name="act")],
        "'act' becomes the operator GELU",
    ),
    "number of axes": (
        "microcontroller", (3, 4, 4, 2), [layers.TimeDistributed(layers.Conv2D(3, 2), name="frames")],
        "'frames' becomes the operator STRIDED_SLICE on a tensor of 5 axes",
    ),
    "axes of a transposition": (
        "microcontroller", (2, 3, 2, 3, 2),
        [layers.Dense(2), layers.Permute((5, 4, 3, 2, 1))],
        # The converter moves it before the layer, which the message names.
        "becomes the operator TRANSPOSE on a tensor of 6 axes",
    ),
    "operator that the quantizer does not run": (
        "android", (8,), [layers.Dense(4), Spectrum(name="spectrum")],
        "litert-quantizer cannot quantize the file",
    ),
    "operators before an embedding": (
        "android", (1,), [layers.Hashing(5, name="hash"), layers.Embedding(5, 3), layers.Flatten()],
        "Layer 'hash' becomes operators of TensorFlow.*: .*StringToHashBucketFast",
    ),
    "table": (
        "android", (1,), [layers.IntegerLookup(vocabulary=[3, 5], name="find"), layers.Embedding(4, 3)],
        "Layer 'find' becomes operators of TensorFlow.*: .*LookupTableFindV2",
    ),
    "operator of TensorFlow": (
        "android", (8,), [layers.CategoryEncoding(9, "multi_hot", name="encode"), layers.Dense(2)],
        "Layer 'encode' becomes operators of TensorFlow.*: DenseBincount",
    ),
    "operator that the converter does not know": (
        "android", (8,), [layers.Dense(4), layers.Lambda(inverse, name="inverse")],
        "cannot convert layer 'inverse'.*'tf.Erfinv' op is neither a custom op nor a flex op",
    ),
    "random numbers": (
        "android", (8,), [layers.Dense(4), Sampling(name="draws")],
        "'draws' \\(Sampling: it draws random numbers at inference",
    ),
    "state": (
        "android", (8,), [layers.Dense(4), Counter(name="counts")],
        "'counts' \\(Counter: it changes its variable 'count' at inference",
    ),
    "strings": (
        "android", (1,), [layers.StringLookup(vocabulary=["3", "5"]), layers.Embedding(4, 3)],
        "dtype string",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_of_convert_is_a_warning_before_training(name, tmp_path):
    target, shape, stack, message = REFUSED[name]
    dtype = "string" if name == "strings" else None
    model = keras.Sequential([keras.Input(shape, dtype=dtype), *stack])
    with pytest.warns(UserWarning, match=f"cannot be converted.*{message}"):
        qmodel = dqmq_tf.quantize_model(model, target=target)
    data = np.random.default_rng(0).integers(0, 9, (2, *[n or 8 for n in shape]))
    qmodel.calibrate(data.astype("str" if dtype else "float32"))
    with pytest.raises(ConversionError, match=message):
        dqmq_tf.convert(qmodel, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())
