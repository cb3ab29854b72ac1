"""Padding that the convolution behind it does, in the lowered model and in the file."""

import keras
import pytest
from helpers.frozen_models import freeze, images
from helpers.networks import assert_simulates, branches, chain, names, written
from keras import layers

import dqmq_tf


def strided(kernel, stride=2, **options):
    return layers.Conv2D(4, kernel, strides=stride, **options)


# A shape, a layer of padding, and the convolution that pads alike with padding="same".
ABSORBED = {
    "of an even size": ((8, 10, 3), layers.ZeroPadding2D(((0, 1), (0, 1))), strided(3)),
    "of an odd size": ((7, 9, 3), layers.ZeroPadding2D(1), strided(3)),
    "of unequal sizes": ((8, 7, 3), layers.ZeroPadding2D(((0, 1), (1, 1))), strided(3)),
    "of a large kernel": ((8, 8, 3), layers.ZeroPadding2D(((1, 2), (1, 2))), strided(5)),
    "without strides": ((8, 8, 3), layers.ZeroPadding2D(1), strided(3, stride=1)),
    "of a kernel that is not square": (
        (8, 8, 3),
        layers.ZeroPadding2D(((0, 1), (1, 2))),
        strided((3, 5), activation="relu"),
    ),
    "of channels": (
        (8, 8, 3),
        layers.ZeroPadding2D(((0, 1), (0, 1))),
        layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2),
    ),
    "of a signal": ((12, 3), layers.ZeroPadding1D((0, 1)), layers.Conv1D(4, 3, strides=2)),
    "of channels of a signal": ((11, 3), layers.ZeroPadding1D(1), layers.DepthwiseConv1D(3)),
}


def copied(*made):
    return [type(layer).from_config(layer.get_config()) for layer in made]


@pytest.mark.parametrize("name", ABSORBED)
def test_the_kernel_pads(name, tmp_path):
    shape, pad, convolution = ABSORBED[name]
    # Behind a dense layer, so that zero is not the lowest value of the padded tensor.
    qmodel = freeze(chain(shape, layers.Dense(3), *copied(pad, convolution)))
    assert not assert_simulates(qmodel).float_layers
    model, report = written(qmodel, tmp_path)
    assert "PAD" not in names(model)
    assert report.verification.different_numbers == 0
    assert report.verification.largest_quanta <= 1.01


def test_the_kernel_pads_16_bits(tmp_path):
    stack = [layers.Dense(3), layers.ZeroPadding2D(((0, 1), (0, 1))), strided(3)]
    rules = [dqmq_tf.LayerRule(pattern=".*", activation_bits=16, weight_bits=8)]
    qmodel = dqmq_tf.quantize_model(
        chain((8, 8, 3), *stack), target="ethos_u", config=dqmq_tf.DQMQConfig(rules=rules)
    )
    qmodel.calibrate(images(qmodel))
    qmodel.freeze()
    model, report = written(qmodel, tmp_path)
    assert "PAD" not in names(model)
    assert report.verification.different_numbers == 0


KEPT = {
    "another amount": (layers.ZeroPadding2D(2), strided(3)),
    "the other side": (layers.ZeroPadding2D(((1, 0), (1, 0))), strided(3)),
    "dilated": (layers.ZeroPadding2D(2), layers.Conv2D(4, 3, dilation_rate=2)),
    "padded twice": (layers.ZeroPadding2D(((0, 1), (0, 1))), strided(3, padding="same")),
    "no convolution": (layers.ZeroPadding2D(1), layers.MaxPooling2D(3, strides=1)),
}


@pytest.mark.parametrize("name", KEPT)
def test_other_padding_is_an_operator(name, tmp_path):
    qmodel = freeze(chain((8, 8, 3), layers.Dense(3), *copied(*KEPT[name])))
    assert_simulates(qmodel)
    model, report = written(qmodel, tmp_path)
    assert "PAD" in names(model)
    assert report.verification.different_numbers == 0


def test_a_padded_tensor_with_other_readers_is_a_tensor(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.ZeroPadding2D(1)(layers.Dense(3)(inputs))
    outputs = [layers.Conv2D(4, 3)(x), layers.Conv2D(2, 1)(x)]
    qmodel = freeze(keras.Model(inputs, outputs))
    assert_simulates(qmodel)
    assert "PAD" in names(written(qmodel, tmp_path)[0])


def test_two_equal_paddings_are_one_tensor(tmp_path):
    inputs = keras.Input((8, 8, 3))
    outputs = [layers.Conv2D(n, 3)(layers.ZeroPadding2D(1)(inputs)) for n in (2, 4)]
    qmodel = freeze(keras.Model(inputs, outputs))
    assert_simulates(qmodel)
    model, report = written(qmodel, tmp_path)
    assert names(model).count("PAD") == 1
    assert report.verification.different_numbers == 0


def test_a_convolution_that_is_called_twice_pads_nothing(tmp_path):
    inputs, conv = keras.Input((8, 8, 3)), layers.Conv2D(3, 3, name="conv")
    x = conv(layers.ZeroPadding2D(1)(inputs))
    qmodel = freeze(keras.Model(inputs, conv(x)))
    assert_simulates(qmodel)
    model, report = written(qmodel, tmp_path)
    assert "PAD" in names(model)
    assert report.verification.different_numbers == 0


@pytest.mark.parametrize("keep", ["conv", "first"])
def test_padding_around_floating_point_is_an_operator(keep, tmp_path):
    stack = [
        layers.Dense(3, name="first"),
        layers.ZeroPadding2D(1, name="pad"),
        layers.Conv2D(4, 3, name="conv"),
    ]
    qmodel = freeze(chain((8, 8, 3), *stack), keep=[keep])
    assert keep in assert_simulates(qmodel).float_layers
    assert written(qmodel, tmp_path)[1].verification.different_numbers == 0


def test_grouped_and_activated_convolutions_are_in_floating_point(tmp_path):
    # No integer kernel computes them, so nothing may pad for them.
    grouped = layers.Conv2D(6, 3, groups=3, name="grouped")
    qmodel = freeze(branches((8, 8, 3), [layers.Dense(6), layers.ZeroPadding2D(1), grouped]))
    lowered = assert_simulates(qmodel)
    assert "grouped" in lowered.float_layers
    assert written(qmodel, tmp_path)[1].verification.different_numbers == 0
