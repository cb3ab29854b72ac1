"""What takes the place of a layer that is several kernels."""

import keras
import numpy as np
import pytest
from helpers.frozen_models import freeze, images
from helpers.networks import shaken
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


@pytest.mark.parametrize(
    "kind, target", [(layers.Add, "android"), (layers.Multiply, "microcontroller")]
)
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


def test_a_convolution_with_a_group_for_each_channel_is_depthwise(tmp_path):
    """Networks that were written for PyTorch have them in place of depthwise layers."""
    inputs = keras.Input((8, 8, 6))
    options = {"kernel_regularizer": "l2", "kernel_initializer": "he_normal"}
    x = layers.Conv2D(12, 3, groups=6, padding="same", activation="relu", name="a", **options)(
        inputs
    )
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(12, 3, 2, groups=12, activation="swish", use_bias=False, name="b")(x)
    x = layers.Conv1D(24, 3, groups=12, name="c")(layers.Reshape((9, 12))(x))
    x = layers.Conv1D(24, 3, groups=24, padding="causal", name="causal")(x)
    x = layers.Conv1D(24, 1, groups=2, name="two")(x)
    model = shaken(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))))
    body, parts = split_layers(model)
    kinds = {layer.name: type(layer).__name__ for layer in body.layers}
    assert kinds["a"] == kinds["b"] == "DepthwiseConv2D" and kinds["c"] == "DepthwiseConv1D"
    assert kinds["causal"] == kinds["two"] == "Conv1D" and [*parts] == ["b"]
    data = images(model)
    np.testing.assert_allclose(predicted(body, data), predicted(model, data), atol=1e-5)
    np.testing.assert_allclose(sum(body.losses), sum(model.losses), rtol=1e-6)
    # Models that were saved by an earlier version have steps for the kernels as they were.
    saved, _ = split_layers(model, splits_all=False)
    assert type(saved.get_layer("a")) is layers.Conv2D
    qmodel = freeze(model)
    report = export.convert(qmodel, tmp_path / "model.tflite", data=images(qmodel))
    assert set(report.float_layers) == {"causal", "two"}
    assert report.verification.different_numbers == 0


def test_a_regularizer_of_the_users_own_gets_the_kernel_in_groups_as_it_is():
    class OfFilters(keras.regularizers.Regularizer):
        def __call__(self, x):
            return keras.ops.sum(keras.ops.max(x, axis=-1))

        def get_config(self):
            return {}

    conv = layers.Conv1D(12, 3, groups=6, kernel_regularizer=OfFilters(), name="own")
    model = keras.Sequential([keras.Input((8, 6)), conv])
    body, _ = split_layers(model)
    np.testing.assert_allclose(sum(body.losses), sum(model.losses), rtol=1e-6)


def test_layers_for_each_step_run_on_integer_kernels(tmp_path):
    inputs = keras.Input((6, 4, 2))
    wrap = layers.TimeDistributed
    x = wrap(layers.Flatten(), name="flat")(inputs)
    dense = layers.Dense(6, activation="tanh", kernel_regularizer="l2", name="inner")
    x = wrap(dense, name="dense")(x)
    x = wrap(layers.Activation("relu"), name="relu")(wrap(layers.Reshape((3, 2)), name="two")(x))
    frozen = wrap(layers.Dense(3), name="frozen")
    outputs = layers.Dense(2)(layers.Flatten()(frozen(x)))
    frozen.trainable = False
    kept = wrap(layers.LayerNormalization(), name="kept")(inputs)
    model = shaken(keras.Model(inputs, [outputs, kept]))
    body, parts = split_layers(model)
    kinds = {layer.name: type(layer).__name__ for layer in body.layers}
    names = ("flat", "dense", "two", "relu", "frozen", "kept")
    assert [kinds[name] for name in names] == [
        "Reshape", "Dense", "Reshape", "Activation", "Dense", "TimeDistributed"
    ]  # fmt: skip
    assert [part.path for part in parts["dense"]] == ["dense_activation"] and len(parts) == 1
    assert len(body.trainable_weights) == len(model.trainable_weights)
    for found, expected in zip(
        body.predict(images(model), verbose=0), model.predict(images(model), verbose=0)
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(sum(body.losses), sum(model.losses), rtol=1e-6)
    assert type(split_layers(model, splits_all=False)[0].get_layer("relu")) is wrap
    qmodel = freeze(model)
    report = export.convert(qmodel, tmp_path / "model.tflite", data=images(qmodel))
    assert set(report.float_layers) == {"kept"} and report.verification.different_numbers == 0


def test_steps_that_differ_or_have_a_mask_or_axes_of_their_own_are_not_computed_at_once():
    words = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 3, mask_zero=True)(words)
    masked = keras.Model(words, layers.TimeDistributed(layers.Dense(2), name="it")(x))
    flat = layers.TimeDistributed(layers.Flatten(), name="it")
    one, two = keras.Input((4, 2, 3)), keras.Input((3, 2, 3))
    several = keras.Model([one, two], [flat(one), flat(two)])
    # The first axis behind that of the samples is the features' in a step, and that of the steps else.
    functions = (lambda x: keras.ops.softmax(x, axis=1), prelu())
    own = [
        keras.Sequential([one, layers.TimeDistributed(layers.Dense(3, activation=f), name="it")])
        for f in functions
    ]
    flat = layers.TimeDistributed(layers.Flatten(data_format="channels_first"), name="it")
    own.append(keras.Sequential([one, flat]))
    for model in (masked, several, *own):
        body, parts = split_layers(model)
        assert type(body.get_layer("it")) is layers.TimeDistributed and not parts
