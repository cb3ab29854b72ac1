"""What can stand in front of a network: a standardization of each image, or `layers.Exposure`."""

import keras
import numpy as np
import tensorflow as tf

import dqmq_tf
from study import results

STANDARDIZATION, EXPOSURE = FRONTS = tuple(results.FRONTS)
# Images that are in floating point at the same time.
_PART = 10_000


def standardized(images):
    """Returns images, each with a mean of 128 and a standard deviation of 64, from 0 to 255."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    deviation = np.maximum(images.std(axis=(1, 2, 3), keepdims=True), 4)
    return np.clip(64 * (images - mean) / deviation + 128, 0, 255).astype("float32")


def standardized_pixels(images):
    """Returns `standardized` images, rounded to uint8, as a camera would give them to a network."""
    parts = range(0, len(images), _PART)
    rounded = [standardized(images[i : i + _PART].astype("float32")).round() for i in parts]
    return np.concatenate(rounded).astype("uint8")


def standardized_batches(data):
    """Returns a `tf.data.Dataset` of `(float32 images, classes)` whose images are standardized pixels."""

    def standardize(x, y):
        pixels = tf.numpy_function(standardized_pixels, [x], tf.uint8)
        return tf.cast(tf.ensure_shape(pixels, x.shape), tf.float32), y

    return data.map(standardize, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def exposed(model, images):
    """Returns a model behind `Exposure`, adapted to images."""
    layer = dqmq_tf.layers.Exposure(name="exposure")
    layer.adapt(images)
    inputs = keras.Input(model.input_shape[1:], name="image")
    return keras.Model(inputs, model(layer(inputs)))
