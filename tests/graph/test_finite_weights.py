"""`dqmq_tf.graph.finite_weights`: weights that a training has made NaN are refused by name."""

import warnings

import keras
import numpy as np
import pytest
from helpers.small_networks import images, network

import dqmq_tf
from dqmq_tf.graph import trace
from dqmq_tf.graph.finite_weights import check_finite_weights

MESSAGE = "Layer 'conv_0': 324 of the weights in 'kernel' are NaN or infinity.*learning rate"


@pytest.fixture(scope="module")
def diverged():
    qmodel = dqmq_tf.quantize_model(network())
    qmodel.compile("sgd", "mse")
    qmodel.fit(images(), np.full((64, 10), np.nan), verbose=0)
    return qmodel


def test_a_training_that_diverges_ends_as_in_keras():
    qmodel = dqmq_tf.quantize_model(network())
    qmodel.compile("sgd", "mse")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # No warning of NumPy about a cast.
        history = qmodel.fit(images(), np.full((64, 10), np.nan), verbose=0).history
    assert np.isnan(history["loss"]).all()


@pytest.mark.parametrize("data", [None, (images(8), np.zeros(8, int))], ids=["", "data"])
def test_summary_names_the_layer_whose_training_diverged(diverged, data):
    with pytest.raises(dqmq_tf.ConversionError, match=MESSAGE):
        dqmq_tf.summary(diverged, data)


def test_freeze_and_convert_name_it_before_they_cast_anything(diverged, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for use in (diverged.freeze, lambda: dqmq_tf.convert(diverged, tmp_path / "m.tflite")):
            with pytest.raises(dqmq_tf.ConversionError, match=MESSAGE):
                use()


def test_a_frozen_model_is_checked_too():
    qmodel = dqmq_tf.quantize_model(network())
    qmodel.calibrate(images())
    qmodel.freeze()
    kernel = qmodel._parts.wrappers["classes"].kernel("kernel")
    kernel.assign(np.full(kernel.shape, np.inf))
    with pytest.raises(dqmq_tf.ConversionError, match="Layer 'classes'"):
        qmodel.precision()


def test_a_mask_that_is_not_trained_may_hold_infinity():
    class Masked(keras.layers.Layer):
        def build(self, shape):
            self.mask = self.add_weight(
                shape=shape[1:], initializer=keras.initializers.Constant(-np.inf), trainable=False
            )

        def call(self, x):
            return keras.ops.maximum(x, self.mask)

    x = keras.Input((3,))
    check_finite_weights(trace(keras.Model(x, Masked()(keras.layers.Dense(3)(x)))))


def test_a_range_that_became_nan_is_named_in_fit_and_by_convert(tmp_path):
    # 8 bits round what the logarithm reads to 0, and its gradient to infinity.
    x = np.exp(1.5 * np.random.default_rng(0).normal(size=(256, 8))).astype("float32")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,))
    shifted = keras.layers.Rescaling(1.0, offset=1e-3, name="shifted")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.ops.log(shifted)))
    qmodel = dqmq_tf.quantize_model(model)
    qmodel.compile("adam", "mse")
    message = "The range of the output of 'shifted' became NaN.*LayerRule\\(pattern='shifted'"
    with pytest.warns(UserWarning, match=message):
        history = qmodel.fit(x, x[:, :2], epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    with pytest.raises(dqmq_tf.ConversionError, match=message):
        dqmq_tf.convert(qmodel, tmp_path / "m.tflite")


def test_a_training_that_diverged_is_not_blamed_on_a_range():
    qmodel = dqmq_tf.quantize_model(network())
    qmodel.compile("sgd", "mse")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*became NaN")
        qmodel.fit(images(), np.full((64, 10), np.nan), verbose=0)
