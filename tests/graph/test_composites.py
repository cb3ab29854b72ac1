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


@pytest.mark.parametrize("kind", [layers.Add, layers.Multiply])
@pytest.mark.parametrize("target", ["android", "microcontroller"])
def test_sums_and_products_of_several_tensors_are_converted(kind, target, tmp_path):
    inputs = keras.Input((4, 6))
    few, many = kind(name="few"), kind(name="many")
    x = [layers.Dense(3)(inputs), layers.Dense(3)(inputs), layers.Dense(3)(inputs)]
    x = many([many([*x, x[0]]), few(x[:2]), x[1]])
    x = kind(name="ranks")([layers.Dense(3)(layers.Flatten()(inputs)), x, x])
    model = keras.Model(inputs, layers.Dense(2)(x))
    body, parts = split_layers(model)
    names = {path: [part.path for part in made] for path, made in parts.items()}
    assert names == {"many": ["many_1", "many_2"], "ranks": ["ranks_1"]}
    np.testing.assert_allclose(
        predicted(body, images(model)), predicted(model, images(model)), atol=1e-5
    )
    assert split_layers(body)[1] == split_layers(model, splits_all=False)[1] == {}
    qmodel = freeze(model, target=target)
    report = export.convert(qmodel, tmp_path / "model.tflite", data=images(qmodel))
    assert not report.float_layers and report.verification.largest_quanta <= 2.01
    qmodel.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        predicted(loaded, images(model)), predicted(qmodel, images(model))
    )
