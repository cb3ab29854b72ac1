import pathlib

import numpy as np
import pytest
import sklearn
import tensorflow as tf

from dqmq_tf import quality


@pytest.fixture(scope="session")
def digit_images():
    """Forty images of digits, uint8 [40, 32, 32, 3]."""
    images, _ = next(iter(quality.digits("test").batch(40)))
    return images.numpy()


@pytest.fixture(scope="session")
def photographs():
    """Sixty pieces of a photograph from scikit-learn, uint8 [60, 32, 32, 3]."""
    file = pathlib.Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg"
    photograph = tf.cast(tf.io.decode_jpeg(file.read_bytes()), tf.float32)
    # Shrinking removes the JPEG blocks and the blur of the file.
    photograph = tf.image.resize(photograph, [192, 320], tf.image.ResizeMethod.AREA)
    pieces = tf.reshape(photograph, [6, 32, 10, 32, 3])
    pieces = tf.reshape(tf.transpose(pieces, [0, 2, 1, 3, 4]), [60, 32, 32, 3])
    return tf.saturate_cast(tf.round(pieces), tf.uint8).numpy()


@pytest.fixture(scope="session")
def gray():
    """A medium gray image, large enough to measure the statistics of noise."""
    return np.full([1, 96, 96, 3], 0.5, np.float32)


@pytest.fixture(scope="session")
def point():
    """A dark image with one bright pixel in the middle."""
    image = np.zeros([1, 33, 33, 1], np.float32)
    image[0, 16, 16, 0] = 1.0
    return image
