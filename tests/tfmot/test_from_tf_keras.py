"""Models of tf_keras (Keras 2), rebuilt with Keras 3."""

import sys

import keras
import numpy as np
import pytest
import tf_keras

import dqmq_tf

old = tf_keras.layers


def randomize(model):
    """Gives a model weights that are no initial values, and positive variances."""
    generator = np.random.default_rng(0)
    model.set_weights([generator.uniform(0.05, 0.4, w.shape) for w in model.get_weights()])
    return model


def assert_predicts_the_same(model, rebuilt, *inputs):
    feed = list(inputs) if len(inputs) > 1 else inputs[0]
    before = keras.tree.flatten(model(feed, training=False))
    after = keras.tree.flatten(rebuilt(feed, training=False))
    assert len(before) == len(after) > 0
    for a, b in zip(before, after):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert np.ptp(np.asarray(b)) > 0


def noise(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def image_network():
    inputs = tf_keras.Input((12, 12, 3), name="image")
    x = old.Rescaling(0.5, 0.1)(inputs)
    x = old.ZeroPadding2D(((0, 1), (1, 0)))(x)
    x = old.Conv2D(8, 3, strides=2, padding="same", use_bias=False, kernel_regularizer="l2")(x)
    x = skip = old.ReLU(6.0)(old.BatchNormalization(axis=-1, epsilon=2e-3)(x))
    x = old.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    x = old.LeakyReLU(alpha=0.2)(x)
    x = old.SeparableConv2D(8, 3, padding="same", activation="swish")(x)
    x = old.Add(name="sum")([x, skip])
    x = old.UpSampling2D()(old.Conv2DTranspose(4, 2, strides=2)(old.MaxPooling2D()(x)))
    x = old.Cropping2D(1)(old.LayerNormalization()(x))
    pooled = old.GlobalAveragePooling2D(keepdims=True)(x)
    largest = old.GlobalMaxPooling2D()(x)
    x = old.Concatenate()([old.Flatten()(pooled), largest])
    x = old.Dropout(0.3)(old.PReLU()(x))
    classes = old.Dense(5, activation="softmax", name="classes")(x)
    return tf_keras.Model(inputs, {"classes": classes, "largest": largest}, name="network")


def test_images():
    model = randomize(image_network())
    rebuilt = dqmq_tf.from_tf_keras(model)
    assert type(rebuilt).__module__.startswith("keras.") and rebuilt.name == "network"
    assert [layer.name for layer in rebuilt.layers] == [layer.name for layer in model.layers]
    assert set(rebuilt.output) == {"classes", "largest"}
    images = noise(3, 12, 12, 3)
    for name, value in model(images, training=False).items():
        np.testing.assert_allclose(value, rebuilt(images)[name], rtol=1e-4, atol=1e-5)
    assert rebuilt.get_layer(model.layers[3].name).kernel_regularizer is not None


def test_shared_layers_and_nested_models():
    backbone = tf_keras.Sequential(
        [old.InputLayer((6, 4)), old.Conv1D(5, 3, padding="causal", dilation_rate=2)], name="base"
    )
    head = old.Dense(3, activation="tanh", name="head")
    a, b = tf_keras.Input((6, 4), name="a"), tf_keras.Input((6, 4), name="b")
    x = old.Dot(axes=(1, 2))([head(backbone(a)), old.Permute((2, 1))(head(backbone(b)))])
    model = randomize(tf_keras.Model([a, b], [x, old.Average()([backbone(a), backbone(b)])]))
    rebuilt = dqmq_tf.from_tf_keras(model)
    assert len(rebuilt.trainable_variables) == 4
    assert_predicts_the_same(model, rebuilt, noise(2, 6, 4), noise(2, 6, 4))


@pytest.mark.parametrize("is_model", [False, True])
def test_what_a_nested_model_shares_with_the_whole_model_stays_one(is_model):
    shared = old.Dense(3, name="shared")
    if is_model:
        shared = tf_keras.Sequential([old.Input((3,)), shared], name="block")
    part = tf_keras.Input((3,))
    nested = tf_keras.Model(part, shared(old.ReLU()(part)), name="nested")
    x = tf_keras.Input((3,))
    model = randomize(tf_keras.Model(x, shared(nested(x))))
    rebuilt = dqmq_tf.from_tf_keras(model)
    assert rebuilt.count_params() == model.count_params() == 12
    assert rebuilt.layers[-1] is rebuilt.get_layer("nested").layers[-1]
    assert_predicts_the_same(model, rebuilt, np.random.default_rng(0).normal(size=(4, 3)))


def test_sequences():
    model = tf_keras.Sequential(
        [
            old.Embedding(11, 6, mask_zero=True, input_length=3),
            old.Bidirectional(old.LSTM(4, return_sequences=True)),
            old.TimeDistributed(old.Dense(5, activation="elu")),
            old.GRU(4, reset_after=True),
            old.Dense(2),
        ]
    )
    tokens = np.random.default_rng(0).integers(0, 11, (4, 3))
    randomize(model)
    assert_predicts_the_same(model, dqmq_tf.from_tf_keras(model), tokens)


def test_a_rebuilt_model_is_quantized(tmp_path):
    model = tf_keras.Sequential(
        [
            old.InputLayer((8, 8, 3)),
            old.Conv2D(4, 3, activation="relu", name="conv"),
            old.GlobalAveragePooling2D(),
            old.Dense(3, name="classes"),
        ]
    )
    qmodel = dqmq_tf.quantize_model(dqmq_tf.from_tf_keras(randomize(model)))
    assert qmodel.decision_points == ("conv:kernel", "classes:kernel")


class Own(old.Dense):
    pass


def of(*layers):
    return tf_keras.Sequential([old.InputLayer((6, 4)), *layers])


@pytest.mark.parametrize(
    "layers, message",
    [
        ([Own(3, name="own")], r"'own' .*Own: not among the layers"),
        ([old.Lambda(lambda x: 2 * x, name="twice")], r"'twice' .*Lambda: not among the layers"),
        (None, r"'block/inner' .*Attention: not among the layers"),
        (
            [old.Dense(3, activation=lambda x: 2 * x, name="doubled")],
            r"'doubled' .*Keras 3 refuses",
        ),
        (
            [old.LSTM(3, time_major=True, name="major")],
            r"'major' .*LSTM: Keras 3 has no time_major=True",
        ),
    ],
)
def test_a_layer_that_cannot_be_rebuilt_is_named(layers, message):
    if layers is None:
        inputs = tf_keras.Input((6, 4))
        attended = old.Attention(name="inner")([inputs, inputs])
        layers = [tf_keras.Model(inputs, attended, name="block")]
    with pytest.raises(dqmq_tf.UnsupportedLayerError, match=message):
        dqmq_tf.from_tf_keras(of(*layers))


def test_functions_between_layers_are_named():
    inputs = tf_keras.Input((4,))
    model = tf_keras.Model(inputs, old.Dense(2)(inputs * 2.0))
    with pytest.raises(dqmq_tf.UnsupportedLayerError, match="TFOpLambda: not among the layers"):
        dqmq_tf.from_tf_keras(model)


def test_a_layer_that_computes_something_else_is_named(monkeypatch):
    model = randomize(of(old.Dense(3, name="first"), old.ReLU(negative_slope=0.1, name="second")))
    monkeypatch.setattr(keras.layers.ReLU, "call", lambda self, x: x)
    with pytest.raises(dqmq_tf.UnsupportedLayerError, match="'second' .*its output differs"):
        dqmq_tf.from_tf_keras(model)


def test_wrong_models_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="takes a model of tf_keras"):
        dqmq_tf.from_tf_keras(keras.Sequential())
    with pytest.raises(ValueError, match="subclassed or has no input shape yet"):
        dqmq_tf.from_tf_keras(tf_keras.Sequential([old.Dense(3)]))
    monkeypatch.setitem(sys.modules, "tf_keras", None)
    with pytest.raises(ImportError, match="pip install tf_keras"):
        dqmq_tf.from_tf_keras(keras.Sequential())
