"""What takes the place of a layer that is several kernels."""

import keras
import numpy as np
import pytest
from helpers.frozen_models import freeze, images
from helpers.predictions import predicted
from keras import layers

from dqmq_tf import export, graph
from dqmq_tf.graph.kernels import kernel_variables
from dqmq_tf.graph.splitting import split_layers


def prelu():
    return layers.PReLU(alpha_initializer=keras.initializers.Constant(0.3), shared_axes=[1])


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(4, 3, activation=prelu(), name="conv"),
        layers.SeparableConv2D(4, 3, activation=prelu(), name="conv"),
    ],
)
def test_weights_of_an_activation_are_no_kernels_of_its_layer(layer, tmp_path):
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layer(inputs))))
    # Before it gets data, Keras has not built the activation.
    assert split_layers(model)[0].count_params() > model.count_params()
    expected = predicted(model, images(model))
    body, _ = split_layers(model)
    assert body.count_params() == model.count_params()
    np.testing.assert_allclose(predicted(body, images(model)), expected, atol=1e-5)
    nodes = {node.path: node.layer for node in graph.trace(body).nodes}
    assert nodes["conv_activation"].weights
    assert all(list(kernel_variables(part)) in ([], ["kernel"]) for part in nodes.values())
    qmodel = freeze(model)
    report = export.convert(qmodel, tmp_path / "model.tflite", data=images(qmodel))
    assert list(report.float_layers) == ["conv_activation"]
    assert report.verification.largest_quanta <= 2.01
