"""Small networks trained on real images, shared by the tests that need a trained one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import dqmq_tf
from dqmq_tf import quality

KINDS = ("gaussian_noise", "defocus_blur", "low_resolution", "low_light", "contrast")


def as_floats(image, label):
    return tf.cast(image, tf.float32) / 255.0, label


def training_data(repeat=4):
    data = quality.digits("train", size=16).map(as_floats).cache()
    data = data.shuffle(2000, seed=1, reshuffle_each_iteration=False).repeat(repeat).batch(64)
    return quality.mixed_quality(data, kinds=KINDS, clean=0.2, seed=0)


def network():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((16, 16, 3), name="image")
    for i, (filters, strides) in enumerate([(12, 1), (16, 2), (24, 2)]):
        x = keras.layers.Conv2D(
            filters, 3, strides=strides, padding="same", use_bias=False, name=f"conv_{i}"
        )(x)
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"norm_{i}")(x)
        x = keras.layers.ReLU(name=f"relu_{i}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax", name="classes")(x))


def compiled(model, rate=2e-3):
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


@pytest.fixture(scope="session")
def float_network():
    """A float network after one pass over mixed-quality digits."""
    model = compiled(network())
    model.fit(training_data(), verbose=0)
    return model


@pytest.fixture(scope="session")
def clean_images():
    """180 clean test digits `[180, 16, 16, 3]` in [0, 1], and their labels."""
    images, labels = next(iter(quality.digits("test", size=16).map(as_floats).batch(180)))
    return images.numpy(), labels.numpy()


@pytest.fixture(scope="session")
def by_kind(clean_images):
    """`{kind: images}` of the same digits at severity 5, and `"clean"`."""
    images, _ = clean_images
    degraded = {kind: np.array(quality.degrade(images, kind, 5, seed=3)) for kind in KINDS}
    return {"clean": images, **degraded}


@pytest.fixture(scope="session")
def simulated(float_network):
    """A `DQMQModel` trained in simulation to a mean of 3 bits, with the history of its `fit`."""
    config = dqmq_tf.DQMQConfig(seed=0)
    budget = dqmq_tf.Budget(mean_bit_width=3)
    qmodel = dqmq_tf.quantize_model(
        float_network, target="simulation", budget=budget, config=config
    )
    history = compiled(qmodel, 1e-3).fit(training_data(), epochs=4, verbose=0).history
    return qmodel, history


@pytest.fixture(scope="session")
def deployable(float_network):
    """A `DQMQModel` trained for android to 7,500 download bytes, with the history of its `fit`."""
    qmodel = dqmq_tf.quantize_model(
        float_network, target="android", budget=dqmq_tf.Budget(download_bytes=7_500)
    )
    history = compiled(qmodel, 1e-3).fit(training_data(), epochs=3, verbose=0).history
    return qmodel, history
