"""Ranges fit the statistics that batch normalizations use: moving ones, or those of a training."""

import warnings

import keras
import numpy as np
import pytest
from helpers import eight_bits
from helpers.eight_bits import largest_error
from keras import layers

DATA = np.random.default_rng(0).uniform(0, 4, (32, 6, 6, 2)).astype("float32")


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


def quantized(model, data):
    return eight_bits.quantized(model, data, "simulation")


def with_statistics(model, mean, variance):
    """Sets the moving statistics of a model, as weights from elsewhere do."""
    for variable in model.weights:
        kind = variable.path.split("/")[-1]
        if kind in ("moving_mean", "moving_variance"):
            variable.assign(np.full(variable.shape, mean if kind == "moving_mean" else variance))
    return model


def images():
    convolution = layers.Conv2D(6, 3, activation="relu")
    return [convolution, layers.BatchNormalization(), layers.Conv2D(4, 3), layers.Flatten()]


def model_of(*body):
    """A new model: its biases are 0, its moving statistics those of new layers."""
    return keras.Sequential([keras.Input((6, 6, 2)), *body, layers.Dense(3)])


def nested():
    inner = [keras.Input((6, 6, 2)), layers.BatchNormalization(), layers.Conv2D(4, 3)]
    return model_of(keras.Sequential(inner), layers.Flatten())


def shared():
    inputs = keras.Input((6, 6, 2))
    convolution, norm = layers.Conv2D(2, 3, padding="same"), layers.BatchNormalization()
    x = norm(convolution(norm(inputs)))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def recurrent():
    reshaped = layers.Reshape((6, 12))
    return model_of(reshaped, layers.BatchNormalization(), layers.LSTM(4))


def frozen():
    model = model_of(*images())
    model.trainable = False
    return model


MODELS = {
    "images": lambda: model_of(*images()),
    "vectors": lambda: model_of(layers.Flatten(), layers.BatchNormalization(), layers.Dense(8)),
    "nested": nested,
    "shared": shared,
    "recurrent": recurrent,
    "frozen": frozen,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_whose_statistics_are_not_those_of_the_data_predicts_as_in_float(name):
    model = with_statistics(MODELS[name](), -3.0, 0.04)
    assert largest_error(model, quantized(model, DATA), DATA) < 0.1


def forget_ranges(qmodel):
    """Makes `fit` calibrate the model."""
    for quantizer in qmodel._parts.quantizers:
        quantizer.calibrated.assign(0.0)
    qmodel.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    return qmodel


def test_a_short_training_of_published_weights_keeps_their_predictions():
    model = with_statistics(model_of(*images()), -3.0, 0.04)
    qmodel = forget_ranges(quantized(model, DATA))
    qmodel.fit(DATA, np.zeros((32, 3)), batch_size=32, verbose=0)
    assert largest_error(qmodel.float_model(), qmodel, DATA) < 0.1


def largest_values(qmodel):
    """Returns the largest absolute value that each quantizer represents."""
    grids = [quantizer.values(8) for quantizer in qmodel._parts.quantizers]
    return np.array([step * max(zero, 255 - zero) for step, zero in grids])


def test_a_new_model_gets_ranges_for_batch_statistics():
    qmodel = quantized(model_of(*images()), 60 * DATA)
    found = largest_values(qmodel)
    # The values behind the normalization are small: its moving statistics would not normalize them.
    assert found[0] > 200 and found[-1] < 10
    forget_ranges(qmodel).fit(60 * DATA, np.zeros((32, 3)), batch_size=32, verbose=0)
    np.testing.assert_allclose(largest_values(qmodel), found, rtol=1e-5)


def test_a_new_head_on_a_trained_model_keeps_the_ranges_of_the_trained_model():
    trained = with_statistics(model_of(*images()), -3.0, 0.04)
    head = keras.Sequential([keras.Input((3,)), layers.BatchNormalization(), layers.Dense(2)])
    qmodel = quantized(keras.Sequential([trained, head]), DATA)
    largest = np.abs(trained.predict(DATA, verbose=0)).max()
    assert largest_values(qmodel)[-3] > 0.6 * largest


def test_freezing_a_new_model_without_training_warns():
    with pytest.warns(UserWarning, match="was not trained.*mean 0 and variance 1"):
        quantized(model_of(*images()), DATA).freeze()
    for model in (with_statistics(model_of(*images()), -3.0, 0.04), frozen()):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            quantized(model, DATA).freeze()
