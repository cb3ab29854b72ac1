"""What can stand in front of a network: a preprocessing of each image, or `layers.Exposure`."""

import keras
import numpy as np
import tensorflow as tf

import dqmq_tf
from study import results

STANDARDIZATION, EXPOSURE = FRONTS = tuple(results.FRONTS)
# These run on traffic signs alone. With `BESIDE`, a network sees the image and what `Exposure` makes of it.
CLAHE, BESIDE = "clahe", "beside"
_CLIP_LIMIT, _TILES = 2.0, (4, 4)
# Images that are in floating point at the same time.
_PART = 10_000


def standardized(images):
    """Returns images, each with a mean of 128 and a standard deviation of 64, from 0 to 255."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    deviation = np.maximum(images.std(axis=(1, 2, 3), keepdims=True), 4)
    return np.clip(64 * (images - mean) / deviation + 128, 0, 255).astype("float32")


def equalized(images):
    """Returns uint8 RGB images whose lightness has been equalized in tiles (CLAHE).

    The method is that of Zuiderveld 1994, "Contrast limited adaptive histogram equalization", as
    OpenCV has it, with 4 x 4 tiles and its usual clip limit of 2.
    """
    import cv2

    clahe = cv2.createCLAHE(_CLIP_LIMIT, _TILES)
    found = np.empty_like(images)
    for image, result in zip(images, found):
        lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
        lab[..., 0] = clahe.apply(lab[..., 0])
        result[:] = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    return found


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
    inputs, corrected = _corrected(model, images)
    return keras.Model(inputs, model(corrected))


def beside(model, images):
    """Returns a model that also sees its input as `Exposure` corrects it, adapted to images.

    The first convolution gets twice as many channels. It begins with half of its kernel for each.
    """
    inputs, corrected = _corrected(model, images)
    first = model.layers[1]
    kernel, *bias = first.get_weights()
    wide = keras.layers.Conv2D.from_config({**first.get_config(), "name": "wide"})
    seen = keras.layers.Concatenate(name="beside")([inputs, corrected])
    rest = keras.Model(first.output, model.output)
    widened = keras.Model(inputs, rest(wide(seen)), name=model.name)
    wide.set_weights([np.concatenate([kernel, kernel], axis=2) / 2, *bias])
    return widened


def _corrected(model, images):
    """Returns an input for a model, and what `Exposure`, adapted to images, makes of it."""
    layer = dqmq_tf.layers.Exposure(name="exposure")
    layer.adapt(images)
    inputs = keras.Input(model.input_shape[1:], name="image")
    return inputs, layer(inputs)
