"""What folds into the linear layer before it."""

import keras
import numpy as np
import pytest
from keras import layers

from dqmq_tf import graph as graphs
from dqmq_tf.graph import fold_rules


def einsum(equation, output_shape, **kwargs):
    return layers.EinsumDense(equation, output_shape=output_shape, name="linear", **kwargs)


@pytest.mark.parametrize(
    "layer,axes",
    [
        (einsum("abc,cd->abd", (None, 4)), (1,)),
        (einsum("...c,cd->...d", (None, 4), bias_axes="d"), (1,)),
        (einsum("abc,cde->abde", (None, 2, 4), bias_axes="de"), (1, 2)),
        (einsum("abc,cde->abde", (None, 2, 4), bias_axes="e"), (1, 2)),
        (einsum("abcd,cde->abe", (None, 4)), (2,)),
        # A kernel for each position, channels before positions, channels in another order, a bias
        # for each position, no channel at all.
        (einsum("abc,bcd->abd", (None, 4)), ()),
        (einsum("abc,cd->adb", (4, None)), ()),
        (einsum("abc,cde->abed", (None, 4, 2)), ()),
        (einsum("abc,cd->abd", (3, 4), bias_axes="bd"), ()),
        (einsum("abc,c->ab", (3,)), ()),
    ],
)
def test_output_axes_of_an_einsum(layer, axes):
    assert fold_rules.einsum_output_axes(layer) == axes
    assert fold_rules.is_foldable(layer) == bool(axes)


def test_an_einsum_with_an_activation_is_not_foldable():
    assert not fold_rules.is_foldable(einsum("ab,bc->ac", 3, activation="relu"))


def folds_of(make, shape=(6, 6, 2)):
    x = keras.Input(shape)
    return graphs.trace(keras.Model(x, make(x))).folds


TWO_AXES = {"equation": "abc,cde->abde", "output_shape": (None, 2, 3)}


@pytest.mark.parametrize(
    "layer,after,expected",
    [
        (lambda: layers.Dense(3), layers.BatchNormalization, True),
        (lambda: layers.Dense(3), lambda: layers.BatchNormalization(axis=1), False),
        (lambda: einsum("abc,cd->abd", (None, 4)), layers.BatchNormalization, True),
        (
            lambda: einsum("abc,cd->abd", (5, 4)),
            lambda: layers.BatchNormalization(axis=1),
            False,
        ),
        (lambda: einsum(**TWO_AXES), layers.BatchNormalization, False),
        (lambda: einsum(**TWO_AXES), lambda: layers.Rescaling(0.5), True),
        (lambda: einsum(**TWO_AXES), lambda: layers.Rescaling(0.5, 1.0), False),
        (lambda: layers.Dense(3), lambda: layers.Rescaling(np.float32(-0.5), 1), True),
        (lambda: layers.Dense(3), lambda: layers.Rescaling(0.0), False),
        (lambda: layers.Dense(3), lambda: layers.Rescaling([0.5, 1.0, 2.0]), False),
        (lambda: layers.Dense(3), lambda: layers.Rescaling(1.0, [0.5, 1.0, 2.0]), False),
        (lambda: layers.Dense(3, activation="relu"), lambda: layers.Rescaling(0.5), False),
    ],
)
def test_what_folds(layer, after, expected):
    assert bool(folds_of(lambda x: after()(layer()(x)), (5, 4))) == expected


def test_a_rescaling_of_an_output_that_is_read_elsewhere_does_not_fold():
    def make(x):
        y = layers.Dense(3)(x)
        return layers.Add()([layers.Rescaling(0.5)(y), y])

    assert folds_of(make, (4,)) == {}


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(3, 3, name="linear"),
        layers.Conv2D(3, 3, use_bias=False, name="linear"),
        layers.DepthwiseConv2D(3, name="linear"),
        layers.SeparableConv2D(3, 3, name="linear"),
        layers.Conv2DTranspose(3, 3, name="linear"),
        layers.Dense(3, name="linear"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_batch_norm_folds_into_a_linear_layer_before_it(layer):
    def make(x):
        return layers.ReLU()(layers.BatchNormalization(name="bn")(layer(x)))

    assert folds_of(make) == {"bn": "linear"}


def test_rescaling_folds_as_a_batch_norm_does():
    def make(x):
        return layers.Rescaling(0.25, name="scale")(layers.Conv2D(2, 1, name="conv")(x))

    assert folds_of(make) == {"scale": "conv"}
    assert folds_of(lambda x: layers.Conv2D(2, 1)(layers.Rescaling(0.25)(x))) == {}


def two_readers(x):
    y = layers.Conv2D(2, 1)(x)
    return layers.Add()([layers.BatchNormalization()(y), y])


def is_output(x):
    y = layers.Conv2D(2, 1)(x)
    return [layers.BatchNormalization()(y), y]


def shared_convolution(x):
    conv = layers.Conv2D(2, 1)
    return layers.BatchNormalization()(conv(layers.ReLU()(conv(x))))


def shared_batch_norm(x):
    bn = layers.BatchNormalization()
    return bn(layers.Conv2D(2, 1)(bn(layers.Conv2D(2, 1)(x))))


def over_rows(x):
    return layers.BatchNormalization(axis=1)(layers.Conv2D(2, 1)(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: layers.BatchNormalization()(layers.Conv2D(2, 1, activation="relu")(x)),
        lambda x: layers.BatchNormalization()(layers.MaxPooling2D()(layers.Conv2D(2, 1)(x))),
        lambda x: layers.LayerNormalization()(layers.Conv2D(2, 1)(x)),
        lambda x: layers.Conv2D(2, 1)(layers.BatchNormalization()(x)),
        two_readers,
        is_output,
        shared_convolution,
        shared_batch_norm,
        over_rows,
    ],
    ids=[
        "relu",
        "pool",
        "layer_norm",
        "before",
        "two_readers",
        "output",
        "shared_conv",
        "shared_bn",
        "rows",
    ],  # fmt: skip
)
def test_what_a_batch_norm_does_not_fold_into(make):
    assert folds_of(make) == {}
