"""Biases of a frozen model lie on the int32 grid of its file."""

import keras
import numpy as np
import pytest
from helpers.predictions import predicted

import dqmq_tf
from dqmq_tf.graph import trace


@pytest.mark.parametrize("center, scale", [(True, True), (False, True), (True, False)])
def test_folded_bias_is_a_whole_number_of_units(center, scale):
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(5, 3, name="conv")(x)
    x = keras.layers.BatchNormalization(center=center, scale=scale, name="norm")(x)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(keras.layers.ReLU()(x))
    x = keras.layers.Dense(2, name="dense")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, x)
    for layer in model.layers:
        layer.set_weights(
            [np.random.default_rng(2).uniform(0.2, 1.5, w.shape) for w in layer.get_weights()]
        )
    qmodel = dqmq_tf.quantize_model(model)
    images = np.random.default_rng(0).random((16, 8, 8, 3)).astype("float32")
    qmodel.calibrate(images)
    before = predicted(qmodel, images)
    qmodel.freeze()
    precision, body = qmodel.precision(), qmodel.float_model()
    nodes = {node.path: node for node in trace(body).nodes}

    def unit(path):
        (weight,) = precision.weights[path].values()
        source = precision.activations[nodes[path].inputs[0]]
        return np.float64(source.step) * weight.step.astype("float64").ravel()

    norm, conv = nodes["norm"].layer, nodes["conv"].layer
    factor = 1 / np.sqrt(norm.moving_variance.numpy().astype("float64") + norm.epsilon)
    if scale:
        factor = factor * norm.gamma.numpy()
    bias = (conv.bias.numpy() - norm.moving_mean.numpy().astype("float64")) * factor
    if center:
        bias = bias + norm.beta.numpy()
    whole = {"conv": bias / (unit("conv") * np.abs(factor))}
    for path in ("depthwise", "dense"):
        whole[path] = nodes[path].layer.bias.numpy().astype("float64") / unit(path)
    for path, units in whole.items():
        assert np.abs(units - np.round(units)).max() < 0.02, path
    assert np.abs(predicted(qmodel, images) - before).max() < 0.1 * np.abs(before).max()


def trained_to_grid(make, *shape):
    """A frozen model, and `unit(path)`: what an integer of a path's bias stands for."""
    x = keras.Input(shape)
    model = keras.Model(x, make(x))
    for layer in model.layers:
        layer.set_weights(
            [np.random.default_rng(2).uniform(-0.9, 1.5, w.shape) for w in layer.get_weights()]
        )
    rules = [dqmq_tf.LayerRule(pattern=".*", weight_bits=(4, 6, 8), activation_bits=8)]
    config = dqmq_tf.DQMQConfig(rules=rules)
    budget = dqmq_tf.Budget(mean_bit_width=7)
    qmodel = dqmq_tf.quantize_model(model, target="simulation", budget=budget, config=config)
    data = np.random.default_rng(0).random((16, *shape)).astype("float32")
    qmodel.calibrate(data)
    before = predicted(qmodel, data)
    qmodel.freeze()
    assert np.abs(predicted(qmodel, data) - before).max() < 0.1 * np.abs(before).max()
    precision = qmodel.precision()
    nodes = {node.path: node for node in trace(qmodel.float_model()).nodes}

    def units(path, scale=1.0, offset=0.0):
        (weight,) = precision.weights[path].values()
        source = precision.activations[nodes[path].inputs[0]]
        steps = weight.step.astype("float64").squeeze()
        bias = nodes[path].layer.bias.numpy().astype("float64") * scale + offset
        return bias / (np.float64(source.step) * steps * abs(scale))

    return units


def assert_whole(units):
    # Large enough to test rounding in float32, and no zeros, which are whole in any case.
    assert np.abs(units).min() > 0.5
    assert np.abs(units - np.round(units)).max() < 0.02


def test_biases_of_transposed_convolutions():
    def make(x):
        y = keras.layers.Conv2DTranspose(5, 3, strides=2, name="up")(x)
        return keras.layers.Dense(2)(keras.layers.Flatten()(y))

    assert_whole(trained_to_grid(make, 6, 6, 3)("up"))


def test_biases_of_einsum_layers():
    def make(x):
        two_axes = keras.layers.EinsumDense("abc,cde->abde", (5, 2, 3), bias_axes="de", name="two")
        one_axis = keras.layers.EinsumDense("abcd,cde->abe", (5, 4), bias_axes="e", name="one")
        return one_axis(two_axes(x))

    units = trained_to_grid(make, 5, 6)
    assert units("two").shape == (2, 3)
    assert_whole(units("two"))
    assert_whole(units("one"))


def test_a_bias_that_several_channels_share_is_left_alone():
    def make(x):
        shared = keras.layers.EinsumDense("abc,cde->abde", (5, 2, 3), bias_axes="e", name="shared")
        batched = keras.layers.EinsumDense("abcd,bde->abce", (5, 2, 4), bias_axes="be", name="own")
        return batched(shared(x))

    units = trained_to_grid(make, 5, 6)
    assert np.abs(units("shared") - np.round(units("shared"))).max() > 0.05


@pytest.mark.parametrize("scale,offset", [(0.25, 0.0), (-3.0, 0.5)])
def test_a_bias_lies_on_the_grid_behind_its_rescaling(scale, offset):
    def make(x):
        y = keras.layers.Dense(4, name="dense")(x)
        return keras.layers.Dense(2)(keras.layers.Rescaling(scale, offset, name="scale")(y))

    assert_whole(trained_to_grid(make, 6)("dense", scale, offset))


def test_a_rescaling_behind_a_layer_without_bias_is_left_alone():
    def make(x):
        y = keras.layers.Dense(4, use_bias=False, name="dense")(x)
        return keras.layers.Dense(2, name="head")(keras.layers.Rescaling(0.5, 0.1)(y))

    assert_whole(trained_to_grid(make, 6)("head"))
