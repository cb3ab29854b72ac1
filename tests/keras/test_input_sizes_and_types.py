"""Inputs of any size, of another size than in training, and images as cameras give them (uint8)."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.eight_bits import converted, quantized, trained
from keras import layers, ops

import dqmq_tf
from dqmq_tf.export import ConversionError

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3)).astype("uint8")


def classifier(size, dtype=None, first=None, last=None):
    """A small network for images, whose first layers may be given."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((size, size, 3), dtype=dtype, name="image")
    x = first(inputs) if first else inputs
    x = layers.Conv2D(4, 3, name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = (last or layers.GlobalAveragePooling2D())(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="classes")(x))


def cast(x):
    return ops.cast(x, "float32") / 255


def centered(x):
    return layers.Rescaling(1 / 127.5, offset=-1)(x)


@pytest.mark.parametrize(
    "first, target",
    [(layers.Rescaling(1 / 255), "android"), (centered, "microcontroller"), (cast, "android")],
    ids=["rescaling", "centered on a microcontroller", "cast"],
)
def test_uint8_images_train_and_convert(first, target, tmp_path):
    qmodel = trained(quantized(classifier(8, "uint8", first), PIXELS, target), PIXELS)
    converted(qmodel, None, tmp_path)  # Verified on random pixels.
    dqmq_tf.verify(qmodel, tmp_path / "model.tflite", data=PIXELS)


def augmented(x):
    x = layers.Cropping2D(1)(layers.ZeroPadding2D(1)(x))
    x = layers.RandomTranslation(0.1, 0.1)(layers.RandomFlip()(x))
    return layers.Rescaling(1 / 255)(ops.cast(x, "float32"))


def test_what_only_casts_uint8_images_keeps_their_integers(tmp_path):
    qmodel = quantized(classifier(8, "uint8", augmented), PIXELS)
    for quantizer in qmodel._parts.quantizers:
        if quantizer.trainable:  # Training moves learned steps.
            quantizer.log_step.assign(1.01 * quantizer.log_step)
    converted(qmodel, PIXELS, tmp_path)


def test_uint8_arrays_for_a_float_input(tmp_path):
    qmodel = trained(quantized(classifier(8, None, layers.Rescaling(1 / 255)), PIXELS), PIXELS)
    converted(qmodel, PIXELS, tmp_path)
    same = qmodel.predict(PIXELS.astype("float32"), verbose=0)
    np.testing.assert_allclose(qmodel.predict(PIXELS, verbose=0), same, atol=1e-6)


def nested(size):
    inner = keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3, strides=2)(inner)
    backbone = keras.Model(inner, layers.BatchNormalization()(x), name="backbone")
    inputs = keras.Input((size, size, 3))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(backbone(inputs)))
    return keras.Model(inputs, layers.Dense(3)(x))


def reshaped(size):
    return classifier(size, last=lambda x: layers.GlobalMaxPooling1D()(layers.Reshape((-1, 4))(x)))


@pytest.mark.parametrize(
    "model, size", [(classifier, None), (nested, None), (reshaped, 8), (classifier, 8)]
)
def test_a_trained_model_moves_to_a_fixed_size(model, size, tmp_path):
    images = (PIXELS / 255).astype("float32")
    if size is None:
        with pytest.warns(UserWarning, match="change_input_shape"):
            qmodel = quantized(model(size), images)
    else:
        qmodel = quantized(model(size), images)
    trained(qmodel, images)
    if size is None:
        with pytest.raises(ConversionError, match="change_input_shape"):
            converted(qmodel, images, tmp_path)
    larger = np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)
    moved = dqmq_tf.change_input_shape(qmodel, (16, 16, 3))
    assert moved.input_shape == (None, 16, 16, 3)
    assert moved.decision_points == qmodel.decision_points
    if size is None:
        expected = qmodel.predict(larger, verbose=0)
        np.testing.assert_allclose(moved.predict(larger, verbose=0), expected, atol=1e-5)
    moved.save(tmp_path / "moved.keras")
    moved = keras.models.load_model(tmp_path / "moved.keras")
    converted(moved, larger, tmp_path)


def test_a_size_that_a_layer_does_not_accept_is_refused():
    qmodel = dqmq_tf.quantize_model(classifier(8, last=layers.Flatten()), target="simulation")
    with pytest.raises(ValueError, match="cannot run on inputs of shapes.*16, 16, 3"):
        dqmq_tf.change_input_shape(qmodel, (16, 16, 3))
    with pytest.raises(ValueError, match="as many axes"):
        dqmq_tf.change_input_shape(qmodel, (16, 16))
    with pytest.raises(ValueError, match="one shape for each"):
        dqmq_tf.change_input_shape(qmodel)


@pytest.mark.parametrize("shape, given", [((8, 8, 1), (8, 8)), ((1,), ()), ((6,), (6, 1))])
def test_a_last_axis_of_one_may_be_missing_or_added_as_in_keras(shape, given):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    x = layers.Dense(4, activation="relu")(layers.Flatten()(inputs))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    x = np.random.default_rng(0).random((16, *shape)).astype("float32")
    same, y = x.reshape(16, *given), np.zeros(16, int)
    qmodels = []
    for data in (x, same, tf.data.Dataset.from_tensor_slices((same, y)).batch(16)):
        qmodels.append(dqmq_tf.quantize_model(model, target="simulation"))
        qmodels[-1].compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
        labels = () if isinstance(data, tf.data.Dataset) else (y,)
        qmodels[-1].fit(data, *labels, epochs=2, batch_size=16, shuffle=False, verbose=0)
        qmodels[-1].calibrate(data)
        np.testing.assert_array_equal(qmodels[-1].predict(same), qmodels[0].predict(x))
        decided = [qmodels[-1].decisions(d).bits for d in (same, x)]
        np.testing.assert_array_equal(*decided)
