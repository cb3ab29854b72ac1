"""Which inputs take pixels from 0 to 255, as the layers that read them tell."""

import keras
import numpy as np
import pytest

from dqmq_tf import graph
from dqmq_tf.graph.plain_pixels import plain_pixel_inputs

layers = keras.layers


def pixels(*before, shape=(8, 8, 3), dtype="float32"):
    """What `plain_pixel_inputs` finds in a model that begins with layers."""
    x = inputs = keras.Input(shape, name="image", dtype=dtype)
    for layer in before:
        x = layer(x)
    if len(shape) == 3:
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x))
    return plain_pixel_inputs(graph.trace(keras.Model(inputs, layers.Dense(2)(x))))


def adapted(variance):
    return layers.Normalization(mean=[120.0, 110.0, 100.0], variance=variance)


@pytest.mark.parametrize(
    "before",
    [
        lambda: [layers.Rescaling(1 / 255)],
        lambda: [layers.Rescaling(1 / 127.5, offset=-1)],
        lambda: [layers.Rescaling([1 / 58.4, 1 / 57.1, 1 / 57.4], offset=[-2.1, -2.0, -1.8])],
        lambda: [adapted([3600.0, 3400.0, 4000.0])],
        lambda: [layers.RandomFlip(), layers.Rescaling(1 / 255)],
    ],
)
def test_a_model_that_divides_pixels_takes_them_as_they_are(before):
    assert pixels(*before()) == {"image": 3}


@pytest.mark.parametrize(
    "before",
    [
        lambda: [],
        lambda: [layers.Rescaling(2, offset=-1)],  # For images from 0 to 1.
        lambda: [layers.Rescaling(1.0)],
        lambda: [layers.Rescaling(0.0, offset=1)],
        lambda: [layers.Normalization(mean=[0.5] * 3, variance=[0.06] * 3)],
        lambda: [adapted([3600.0, 3400.0, 1.0])],
        lambda: [layers.Normalization(mean=120.0, variance=3600.0, invert=True)],
        lambda: [layers.ReLU(), layers.Rescaling(1 / 255)],
        # Spectrograms in decibels, and other values around 0.
        lambda: [layers.Normalization(mean=-40.0, variance=225.0)],
        lambda: [layers.Normalization(mean=0.5, variance=400.0)],
        lambda: [layers.Rescaling(1 / 80, offset=1)],
    ],
)
def test_a_model_that_does_not_divide_pixels_tells_nothing(before):
    assert pixels(*before()) == {}


def test_only_images_have_pixels():
    assert pixels(layers.Rescaling(1 / 255), shape=(6,)) == {}
    assert pixels(layers.Rescaling(1 / 255), shape=(8, 8, 5)) == {}
    assert pixels(layers.Rescaling(1 / 255), shape=(8, 8, 1)) == {"image": 1}
    assert pixels(layers.Rescaling(1 / 255), shape=(8, 8, 4)) == {"image": 4}


def test_an_image_of_dtype_uint8_has_pixels():
    assert pixels(dtype="uint8") == {"image": 3}


def test_every_reader_of_the_image_must_divide_pixels():
    inputs = keras.Input((8, 8, 3), name="image")
    scaled = layers.Rescaling(1 / 255)(inputs)
    both = layers.Concatenate()([scaled, layers.Conv2D(3, 1)(inputs)])
    assert plain_pixel_inputs(graph.trace(keras.Model(inputs, both))) == {}
    assert plain_pixel_inputs(graph.trace(keras.Model(inputs, [scaled, inputs]))) == {}


def test_the_layer_may_be_adapted_to_pixels_and_stand_in_a_nested_model():
    layer = layers.Normalization()
    layer.adapt(np.random.default_rng(0).uniform(0, 255, (50, 8, 8, 3)))
    inner = keras.Sequential([keras.Input((8, 8, 3)), layer, layers.Conv2D(2, 3)])
    assert pixels(inner) == {"image": 3}
