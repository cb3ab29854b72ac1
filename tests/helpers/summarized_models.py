"""Models and data whose summaries the tests of `dqmq_tf.report` check."""

import keras
import numpy as np
import tensorflow as tf

import dqmq_tf
from dqmq_tf import quality

KINDS = ("gaussian_noise", "motion_blur")
SAMPLES = 96


def small_network() -> keras.Model:
    """Returns a float network for images of digits."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = keras.layers.Rescaling(1 / 255.0, name="unit")(inputs)
    x = keras.layers.Conv2D(8, 3, strides=2, name="stem")(x)
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="classes")(x), name="small")


def mixed_digits() -> tf.data.Dataset:
    """Returns batches of digits, some degraded, with their labels, kinds and severities."""
    digits = quality.digits("test", size=16).take(SAMPLES).batch(32)
    mixed = quality.mixed_quality(
        digits, kinds=KINDS, severity=(2, 4), clean=0.3, seed=3, with_quality=True
    )
    return mixed.cache()


def columns(data: tf.data.Dataset) -> list[np.ndarray]:
    """Returns the images, labels, kinds and severities of `mixed_digits`."""
    elements = list(data.unbatch().as_numpy_iterator())
    arrays = [[e[0] for e in elements], [e[1] for e in elements]]
    arrays += [[e[2][key] for e in elements] for key in ("kind", "severity")]
    return [np.array(array) for array in arrays]


def per_sample_model(data: tf.data.Dataset) -> dqmq_tf.DQMQModel:
    """Returns a briefly trained model with activation bits per sample and two profiles."""
    keras.utils.set_random_seed(0)
    qmodel = dqmq_tf.quantize_model(
        small_network(),
        target="simulation",
        budget=dqmq_tf.Budget(mean_bit_width=7.0),
        config=dqmq_tf.DQMQConfig(profiles=2),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    qmodel.compile(optimizer="adam", loss=loss)
    qmodel.fit(data.map(lambda x, y, drawn: (x, y)), epochs=3, verbose=0)
    # The policy hardly tells qualities apart after such a short training.
    directions = np.random.default_rng(0).normal(0, 1.0, qmodel._parts.policy.direction.shape)
    qmodel._parts.policy.direction.assign(directions)
    qmodel._training.settle()
    return qmodel
