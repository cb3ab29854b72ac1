"""Output steps that are too fine for an integer kernel rise when a model is frozen."""

import keras
import numpy as np
import pytest

import dqmq_tf
from dqmq_tf.errors import ConversionError
from dqmq_tf.layers.trained_precision import precision_of
from dqmq_tf.lowering import output_grid

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


def test_files_are_measured_while_steps_are_too_fine():
    qmodel = dqmq_tf.quantize_model(rare_relu(1e-4), target="android")
    qmodel.calibrate(DATA)
    keeper = qmodel._training.keeper
    count = len(qmodel._parts.costs.decided) + len(qmodel._parts.costs.weights)
    assert keeper.write(np.full(count, 8)) is not None and keeper.refusal is None


def test_each_profile_gets_steps_that_kernels_compute(tmp_path):
    # Two layers with tiny outputs in a row, which have few bits in one profile or the other.
    keras.utils.set_random_seed(0)
    model = rare_relu(1e-4)
    x = keras.layers.Dense(1, activation="relu", name="second")(model.get_layer("relu").output)
    model = keras.Model(model.input, keras.layers.Dense(2, name="last")(x))
    kernel = model.get_layer("second").kernel
    kernel.assign(np.full(kernel.shape, 1e-3))
    qmodel = dqmq_tf.quantize_model(model, target="android")
    qmodel.calibrate(DATA)
    qmodel.freeze(profiles=2, data=DATA)
    assigned = qmodel._parts.policy.assigned
    assigned.assign(np.array([[8, 2, 8], [2, 8, 8], *assigned.numpy()[2:]], "float32"))
    with pytest.warns(UserWarning, match="were raised"):
        qmodel._training.keeper._fit_to_file()
    for profile in (0, 1):
        output_grid.check_steps(
            qmodel._parts, precision_of(qmodel._parts, assigned.numpy()[profile])
        )


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
