"""Models from the inputs of a quantized model to the output of one of its layers."""

import keras
import numpy as np
import pytest
from helpers.eight_bits import quantized
from helpers.small_networks import images
from keras import layers, ops

import dqmq_tf

IMAGES = images(16)
SHAPE = IMAGES.shape[1:]


class Gain(layers.Layer):
    """Neither has weights nor can be built from its config, as a function is no part of it."""

    def __init__(self, function, name):
        super().__init__(name=name)
        self.function = function

    def call(self, x):
        return self.function(x)

    def get_config(self):
        raise NotImplementedError


def stack():
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(name="relu"),
            layers.MaxPooling2D(name="pool"),
            layers.DepthwiseConv2D(3, activation="relu6", name="depthwise"),
            layers.GlobalAveragePooling2D(name="gap"),
            layers.Dropout(0.5, name="dropout"),
            layers.Dense(3, name="classes"),
        ]
    )


def branches():
    x = keras.Input(SHAPE)
    y = layers.Rescaling(2.0, name="rescale")(x)
    conv, pool = layers.Conv2D(4, 3, strides=2, name="conv"), layers.MaxPooling2D(name="pool")
    a, b = conv(y), conv(layers.ZeroPadding2D(1, name="pad")(y))
    y = layers.Add(name="add")([pool(a), layers.Cropping2D(((0, 0), (0, 0)))(pool(a))])
    z = layers.GlobalMaxPooling2D(name="peak")(b)
    z = layers.LayerNormalization(name="layer_norm")(z)
    y = layers.Flatten(name="flat")(ops.transpose(y, (0, 2, 1, 3)))
    y = Gain(lambda value: 3.0 * value, name="gain")(y)
    return keras.Model(x, layers.Dense(3, name="classes")(layers.Concatenate()([y, z])))


def nesting():
    inner = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(4, 3, name="conv"),
            layers.AveragePooling2D(2, name="pool"),
            layers.PReLU(name="prelu"),
        ],
        name="backbone",
    )
    x = keras.Input(SHAPE)
    y = layers.GlobalAveragePooling2D(name="gap")(inner(layers.ReLU(6.0, name="clip")(x)))
    return keras.Model(x, layers.Dense(3, name="classes")(y))


@pytest.fixture(scope="module", params=[stack, branches, nesting])
def models(request):
    keras.utils.set_random_seed(0)
    model = request.param()
    return model, quantized(model, IMAGES)


def is_model(layer):
    return isinstance(layer, keras.Model)


def features(model, outputs):
    """Returns what a model computes on the way, as a user asks for it."""
    results = keras.Model(model.inputs, outputs)(IMAGES, training=False)
    return [np.asarray(result) for result in results]


def test_every_layer_gives_its_features(models):
    _, qmodel = models
    outputs = [y for x in qmodel.layers if not is_model(x) for y in keras.tree.flatten(x.output)]
    results = features(qmodel, outputs)
    assert len(results) == len(outputs) > 8
    np.testing.assert_array_equal(results[-1], qmodel(IMAGES, training=False))


def test_features_are_those_of_the_float_model(models):
    model, qmodel = models
    kinds = (keras.Model, layers.InputLayer)
    names = [x.name for x in model.layers if not isinstance(x, kinds)]
    assert len(names) > 2
    pairs = zip(*(features(m, [m.get_layer(name).output for name in names]) for m in models))
    for name, (one, other) in zip(names, pairs):
        assert np.abs(one - other).max() < 0.05 * np.abs(one).max(), name


def test_inputs_of_layers_are_those_of_the_quantized_model(models):
    _, qmodel = models
    names = {"gap", "classes", "add", "pool"} & {x.name for x in qmodel.layers}
    features(qmodel, [first_of(qmodel.get_layer(name).input) for name in sorted(names)])


def first_of(tensors):
    return keras.tree.flatten(tensors)[0]


def test_a_nested_model_gives_the_features_of_its_layers():
    qmodel = quantized(nesting(), IMAGES)
    backbone = qmodel.get_layer("backbone")
    outputs = [x.output for x in backbone.layers]
    keras.Model(backbone.input, outputs)


@pytest.mark.parametrize("saved", [False, True], ids=["in the search", "loaded"])
def test_features_of_a_model_with_two_profiles(saved, tmp_path):
    qmodel = dqmq_tf.quantize_model(stack(), config=dqmq_tf.DQMQConfig(profiles=2))
    qmodel.calibrate(IMAGES)
    if saved:
        qmodel.save(tmp_path / "model.keras")
        qmodel = keras.models.load_model(tmp_path / "model.keras")
    outputs = [qmodel.get_layer(name).output for name in ("gap", "classes", "unsort")]
    gap, classes, result = features(qmodel, outputs)
    assert gap.shape == (16, 4)
    np.testing.assert_allclose(classes, result, atol=0.05)
    np.testing.assert_array_equal(result, qmodel(IMAGES, training=False))


def test_the_models_of_the_user_keep_their_layers():
    model = branches()
    before = {x.name: x.output for x in model.layers}
    dqmq_tf.quantize_model(model)
    assert all(x.output is before[x.name] for x in model.layers)
