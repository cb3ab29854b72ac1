"""Biases of a frozen model lie on the int32 grid of its file."""

import keras
import numpy as np
import pytest

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
    before = qmodel.predict(images, verbose=0)
    qmodel.freeze()
    precision, body = qmodel.precision(), qmodel.float_model()
    nodes = {node.site: node for node in trace(body).nodes}

    def unit(site):
        (weight,) = precision.weights[site].values()
        source = precision.activations[nodes[site].inputs[0]]
        return np.float64(source.step) * weight.step.astype("float64").ravel()

    norm, conv = nodes["norm"].layer, nodes["conv"].layer
    factor = 1 / np.sqrt(norm.moving_variance.numpy().astype("float64") + norm.epsilon)
    if scale:
        factor = factor * norm.gamma.numpy()
    bias = (conv.bias.numpy() - norm.moving_mean.numpy().astype("float64")) * factor
    if center:
        bias = bias + norm.beta.numpy()
    whole = {"conv": bias / (unit("conv") * np.abs(factor))}
    for site in ("depthwise", "dense"):
        whole[site] = nodes[site].layer.bias.numpy().astype("float64") / unit(site)
    for site, units in whole.items():
        assert np.abs(units - np.round(units)).max() < 0.02, site
    assert np.abs(qmodel.predict(images, verbose=0) - before).max() < 0.1 * np.abs(before).max()
