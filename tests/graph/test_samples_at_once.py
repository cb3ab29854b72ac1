"""Runs of a whole network layer by layer take as many samples as fit into memory."""

import keras
import numpy as np
import pytest

from dqmq_tf.graph import trace
from dqmq_tf.graph.samples_at_once import samples_at_once


def _network(shape, filters):
    image = keras.Input(shape)
    x = keras.layers.Conv2D(filters, 3, padding="same")(image)
    return keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x)))


@pytest.mark.parametrize("shape", [(32, 32, 4), (None, None, 4)], ids=["fixed", "open"])
def test_activations_have_at_most_32_million_values(shape):
    images = np.zeros((2, 32, 32, 4), "float32")
    count = samples_at_once(trace(_network(shape, 14)), [images])
    # The image, the convolution and the ReLU have 32,768 values.
    assert 0.98 * 2**25 / 2**15 <= count <= 2**25 / 2**15


def test_there_are_always_eight():
    images = np.zeros((2, 512, 512, 3), "float32")
    assert samples_at_once(trace(_network((512, 512, 3), 64)), [images]) == 8
