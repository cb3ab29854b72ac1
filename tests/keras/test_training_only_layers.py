"""Models with layers that change nothing at inference: quantize, train and write a file."""

import keras
import numpy as np
import pytest
from helpers.eight_bits import converted, largest_error, quantized, trained
from keras import layers, ops

IMAGES = np.random.default_rng(0).uniform(0, 255, (32, 16, 16, 3)).astype("float32")
SIGNALS = np.random.default_rng(0).normal(0, 1, (32, 6, 4)).astype("float32")


class Noise(layers.Layer):
    """Adds noise of a strength that a callback might change."""

    def build(self, shape):
        self.strength = self.add_weight(name="strength", trainable=False, initializer="ones")

    def call(self, x, training=False):
        return x + self.strength * keras.random.normal(ops.shape(x)) if training else x


def transfer_learning():
    """As in Keras's guide: augmentation, preprocessing, a frozen base and a new head."""
    base_input = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, use_bias=False)(base_input)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    base = keras.Model(base_input, x, name="base")
    base.trainable = False
    augmentation = keras.Sequential(
        [layers.RandomFlip("horizontal"), layers.RandomRotation(0.1), layers.RandomZoom(0.1)],
        name="augmentation",
    )
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1)(augmentation(inputs))
    x = layers.GlobalAveragePooling2D()(base(x, training=False))
    return keras.Model(inputs, layers.Dense(3)(layers.Dropout(0.2)(x))), IMAGES


def augmentation_before_normalization():
    normalization = layers.Normalization()
    normalization.adapt(IMAGES)
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.RandomContrast(0.2)(layers.RandomTranslation(0.1, 0.1)(inputs))
    x = layers.Conv2D(4, 3, strides=2, activation="relu")(normalization(x))
    x = layers.SpatialDropout2D(0.2)(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))), IMAGES


def noise_of_the_users_own():
    inputs = keras.Input((6, 4), name="x")
    x = Noise()(layers.Dense(4)(layers.GaussianDropout(0.2)(inputs)))
    x = layers.ActivityRegularization(0.01)(layers.AlphaDropout(0.1)(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))), SIGNALS


def a_state_beside_the_output():
    inputs = keras.Input((6, 4), name="x")
    output, state = layers.GRU(5, return_state=True, name="gru")(inputs)
    return keras.Model(inputs, [layers.Dense(3)(output), layers.Dense(2)(state)]), SIGNALS


def the_same_twice():
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(4, 3, strides=2)(inputs)
    first = layers.Conv2D(4, 3)(layers.ReLU()(x))
    second = layers.Conv2D(4, 3)(ops.relu(x))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(first + second))), IMAGES / 255


KINDS = [
    transfer_learning,
    augmentation_before_normalization,
    noise_of_the_users_own,
    a_state_beside_the_output,
    the_same_twice,
]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_and_written(kind, tmp_path):
    keras.utils.set_random_seed(0)
    model, data = kind()
    qmodel = trained(quantized(model, data), data)
    report = converted(qmodel, data, tmp_path)
    assert set(report.float_layers) <= {"gru"}


def test_augmentation_changes_training_alone():
    keras.utils.set_random_seed(0)
    model, data = transfer_learning()
    qmodel = quantized(model, data)
    assert largest_error(model, qmodel.float_model(), data) < 1e-6
    assert largest_error(qmodel, qmodel, data) == 0
    body = qmodel.float_model()
    assert np.ptp(body(data, training=True) - body(data, training=True)) > 0


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_augmentation_without_a_gradient_trains_in_half_precision(policy):
    # TensorFlow has no bfloat16 gradient of the transform.
    half = keras.DTypePolicy(policy)
    inputs = keras.Input((16, 16, 3))
    x = layers.RandomRotation(0.1, dtype=half)(inputs)
    x = layers.Conv2D(4, 3, strides=2, dtype=half)(layers.Rescaling(1 / 255, dtype=half)(x))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    trained(quantized(model, IMAGES), IMAGES)
