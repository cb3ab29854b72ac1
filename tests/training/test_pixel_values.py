"""Images that were scaled before they reach a model that scales them itself."""

import warnings

import keras
import numpy as np
import pytest

import dqmq_tf

layers = keras.layers


def quantized(*first, dtype="float32"):
    inputs = x = keras.Input((6, 6, 3), dtype=dtype, name="image")
    for layer in first:
        x = layer(x)
    outputs = layers.Dense(2)(layers.Flatten()(layers.Conv2D(4, 3)(x)))
    qmodel = dqmq_tf.quantize_model(keras.Model(inputs, outputs))
    qmodel.compile("sgd", "mse")
    return qmodel


def images(low, high):
    return np.random.default_rng(0).uniform(low, high, (8, 6, 6, 3)).astype("float32")


@pytest.mark.parametrize("steps", ["fit", "calibrate"])
@pytest.mark.parametrize(
    "first, dtype, found",
    [
        ([layers.Rescaling(1 / 255)], "float32", "values from [0-9.e-]+ to 1,"),
        ([layers.Normalization(mean=128.0, variance=64.0**2)], "float32", "to 1,"),
        ([layers.Rescaling(1 / 255)], "uint8", "values from 0 to 0,"),
    ],
)
def test_images_that_are_scaled_twice_cause_a_warning_that_names_the_input(
    first, dtype, found, steps
):
    qmodel, x = quantized(*first, dtype=dtype), images(0, 1)
    with pytest.warns(UserWarning, match=f"Input 'image' takes pixels.*{found}") as caught:
        qmodel.fit(x, np.zeros((8, 2)), verbose=0) if steps == "fit" else qmodel.calibrate(x)
    if steps == "calibrate":
        assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "first, low, high",
    [
        ([], 0, 1),  # The model takes images from 0 to 1.
        ([layers.Rescaling(2.0, offset=-1.0)], 0, 1),
        ([layers.Rescaling(1 / 255)], 0, 40),  # Night.
    ],
)
def test_images_that_suit_the_model_cause_none(first, low, high):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*takes pixels")
        quantized(*first).calibrate(images(low, high))
