"""Each network here is converted and run on LiteRT; `convert` itself checks the outcome."""

import keras
import numpy as np
import pytest
from helpers.frozen_models import batch_norm, freeze, images

from dqmq_tf import export
from dqmq_tf.errors import ConversionError, UnsupportedLayerError

layers = keras.layers


def mobile(x):
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.Conv2D(8, 3, strides=2, use_bias=False)(x)
    x = layers.ReLU(6.0)(batch_norm(1)(x))
    x = layers.DepthwiseConv2D(3, padding="same", dilation_rate=2, use_bias=False)(x)
    x = layers.Activation("relu6")(batch_norm(2)(x))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return layers.Dense(5, activation="softmax")(x)


def squeeze_and_excite(x):
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    s = layers.GlobalAveragePooling2D()(x)
    s = layers.Dense(4, activation="relu")(s)
    s = layers.Reshape((1, 1, 8))(layers.Dense(8, activation="sigmoid")(s))
    return layers.Dense(3)(layers.Flatten()(layers.Multiply()([x, s])))


def branches(x):
    a = layers.ReLU()(batch_norm(3)(layers.Conv2D(4, 3, padding="same")(x)))
    b = layers.Conv2D(4, 1)(x)
    a = layers.Concatenate()([layers.ReLU()(a + b), layers.ReLU()(layers.Subtract()([a, b]))])
    a = layers.UpSampling2D()(layers.MaxPooling2D()(a))
    a = layers.Permute((2, 1, 3))(layers.Cropping2D(1)(a))
    return layers.Dense(3)(layers.GlobalMaxPooling2D()(a))


def lone_norms(x):
    x = batch_norm(4)(layers.Rescaling(2.0, -0.5)(x))
    x = layers.Conv2D(4, 3, activation="relu")(x)
    x = layers.Conv2D(4, 3, activation="tanh")(batch_norm(5, scale=False)(x))
    x = layers.Activation("hard_silu")(x)
    return layers.Dense(3, activation="sigmoid")(layers.Flatten()(x))


@pytest.mark.parametrize("network", [mobile, squeeze_and_excite, branches, lone_norms])
def test_network_converts_and_agrees(network, tmp_path):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((8, 8, 3))
    qmodel = freeze(keras.Model(inputs, network(inputs)))
    report = export.convert(qmodel, tmp_path / "model.tflite", data=images(qmodel))
    assert report.verification.different_numbers == 0
    assert report.verification.largest_quanta <= 3
    assert report.verification.mean_quanta < 0.1
    assert not report.float_layers


def test_layer_left_in_floating_point_stays_so(tmp_path):
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 8, 3))
    x = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(inputs))
    qmodel = freeze(keras.Model(inputs, layers.Dense(3, name="head")(x)), keep=["head"])
    report = export.convert(qmodel, tmp_path / "model.tflite", data=images(qmodel))
    assert report.float_layers == {"head": "its weights are left in floating point by a rule"}
    assert len(report.weights) == 1  # Those of the head are no integers.


def test_several_inputs_and_outputs_keep_their_names(tmp_path):
    keras.utils.set_random_seed(6)
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 3), name="right")
    shared = layers.Conv2D(4, 3, name="shared")
    x = layers.Add()([shared(left), shared(right)])
    x = layers.ReLU()(x)
    head = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))
    qmodel = freeze(keras.Model([left, right], [head, layers.Conv2D(2, 1, name="map")(x)]))
    path = tmp_path / "model.tflite"
    data = images(qmodel)
    report = export.convert(qmodel, path, data=data)
    assert [weights.name for weights in report.weights] == ["shared", "head", "map"]
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner("serving_default")
    outputs = runner(left=data[0][:1], right=data[1][:1])
    expected = qmodel.predict([array[:1] for array in data], verbose=0)
    np.testing.assert_allclose(outputs["head"], expected[0], atol=0.05)
    np.testing.assert_allclose(outputs["map"], expected[1], atol=0.1)


def test_nested_model(tmp_path):
    keras.utils.set_random_seed(7)
    inner_inputs = keras.Input((8, 8, 3))
    inner = layers.ReLU()(batch_norm(7)(layers.Conv2D(4, 3, name="conv")(inner_inputs)))
    backbone = keras.Model(inner_inputs, inner, name="backbone")
    inputs = keras.Input((8, 8, 3))
    qmodel = freeze(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(backbone(inputs)))))
    report = export.convert(qmodel, tmp_path / "model.tflite", data=images(qmodel))
    assert report.weights[0].name == "backbone/conv"


def test_refusal_leaves_no_file(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.Resizing(4, 4, interpolation="bicubic", name="smooth")(layers.Conv2D(4, 3)(inputs))
    qmodel = freeze(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    with pytest.raises(UnsupportedLayerError, match="'smooth'.*bicubic"):
        export.convert(qmodel, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_operator_that_the_runtime_lacks_is_refused_by_the_layer(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.Activation("gelu", name="act")(layers.Conv2D(4, 3)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    assert export.convert(freeze(model), tmp_path / "android.tflite").float_layers == {}
    with pytest.raises(ConversionError, match="'act' becomes the operator GELU.*tflite-micro"):
        export.convert(freeze(model, target="microcontroller"), tmp_path / "micro.tflite")


def behind_joined(*inputs):
    return layers.Rescaling(0.2)(layers.Concatenate()([inputs[0], inputs[0]]))


@pytest.mark.parametrize("target", ["android", "microcontroller"])
def test_layers_that_compute_with_integers_do_so_in_floating_point(target, tmp_path):
    keras.utils.set_random_seed(8)
    inputs = keras.Input((5,), dtype="int32")
    data = np.random.default_rng(0).integers(-9, 10, (64, 5)).astype("int32")
    kinds = [
        layers.BatchNormalization(),
        layers.Dense(4, activation="relu"),
        layers.Normalization(mean=2.0, variance=3.0),
        layers.Rescaling(0.2, offset=-1.0),
        behind_joined,
    ]
    model = keras.Model(inputs, [layers.Dense(3)(layer(inputs)) for layer in kinds])
    qmodel = freeze(model, target=target, data=data)
    report = export.convert(qmodel, tmp_path / "model.tflite", data=data)
    assert set(report.float_layers.values()) <= {
        "it reads integers",
        "its input is in floating point",
    }
    assert len(report.float_layers) >= len(kinds) and report.verification.largest_quanta <= 2.01
