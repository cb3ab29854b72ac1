"""Output steps that are too fine for an integer kernel rise when a model is frozen."""

import keras
import numpy as np
import pytest

import dqmq_tf
from dqmq_tf.errors import ConversionError

DATA = np.random.default_rng(0).normal(size=(128, 16)).astype("float32")


def rare_relu(largest, normalized=False):
    """A relu whose largest output on the data is `largest`, and a layer that reads it."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((16,))
    x = keras.layers.Dense(1, name="rare")(x)
    if normalized:
        x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.ReLU(name="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
    rare = model.get_layer("rare")
    kernel = rare.kernel.numpy()
    if normalized:
        model.get_layer("norm").set_weights(np.array([[50.0], [0.0], [0.0], [0.999]]))
        largest /= 50.0
    rare.set_weights([kernel, np.array([largest - (DATA @ kernel).max()])])
    return model


@pytest.mark.parametrize("normalized", [False, True])
def test_a_file_holds_a_relu_that_hardly_ever_fires(normalized, tmp_path):
    qmodel = dqmq_tf.quantize_model(rare_relu(1e-4, normalized), target="android")
    qmodel.calibrate(DATA)
    with pytest.warns(UserWarning, match=r"'rare': a unit .* were raised.*pattern='rare'"):
        dqmq_tf.convert(qmodel, tmp_path / "model.tflite", data=DATA)
    dqmq_tf.verify(qmodel, tmp_path / "model.tflite", data=DATA)


def test_a_step_that_kernels_compute_stays(recwarn):
    qmodel = dqmq_tf.quantize_model(rare_relu(1e-2), target="android")
    qmodel.calibrate(DATA)
    steps = {name: step.numpy() for name, step in qmodel._parts.log_steps().items()}
    qmodel.freeze()
    for name, step in qmodel._parts.log_steps().items():
        np.testing.assert_array_equal(step.numpy(), steps[name], name)
    assert not [w for w in recwarn if "accumulator" in str(w.message)]


def large_terms_in_a_small_range():
    """A layer whose terms cancel, and whose output has the fixed range of a relu."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((16,))
    x = keras.layers.Dense(4, name="cancel")(x)
    x = keras.layers.ReLU(255, name="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
    kernel, bias = model.get_layer("cancel").get_weights()
    kernel[0], kernel[1] = 1e7, -1e7
    model.get_layer("cancel").set_weights([kernel, bias])
    data = DATA.copy()
    data[:, 1] = data[:, 0]
    return model, data


@pytest.mark.filterwarnings("ignore:At 8 bits")
def test_the_error_names_a_layer_whose_range_is_fixed(tmp_path):
    model, data = large_terms_in_a_small_range()
    qmodel = dqmq_tf.quantize_model(model, target="android")
    qmodel.calibrate(data)
    with pytest.raises(ConversionError, match=r"'cancel': a unit .* 256.*pattern='cancel'"):
        dqmq_tf.convert(qmodel, tmp_path / "model.tflite", data=data)


@pytest.mark.filterwarnings("error:.*accumulator")
def test_the_cure_that_messages_name(tmp_path):
    rules = dqmq_tf.LayerRule(pattern="rare", quantize=False)
    config = dqmq_tf.DQMQConfig(rules=rules)
    qmodel = dqmq_tf.quantize_model(rare_relu(1e-4), target="android", config=config)
    qmodel.calibrate(DATA)
    dqmq_tf.convert(qmodel, tmp_path / "model.tflite", data=DATA)
