"""A small network and the mixed-quality digits it is trained on, for tests of trained models."""

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf import quality

KINDS = ("gaussian_noise", "defocus_blur", "low_resolution", "low_light", "contrast")


def as_floats(image, label):
    return tf.cast(image, tf.float32) / 255.0, label


def images(count=64):
    """Noise of the size of these digits, `[count, 16, 16, 3]`."""
    return np.random.default_rng(0).uniform(0, 1, (count, 16, 16, 3)).astype("float32")


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
