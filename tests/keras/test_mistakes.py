"""What users pass or call by mistake: each error says what to do in its place."""

import copy
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_networks import compiled, images, network
from keras import layers

import dqmq_tf

IMAGES = images(16)
CONFIG = dqmq_tf.DQMQConfig
RULE = dqmq_tf.LayerRule(pattern="conv_0", weight_bits=8)


@pytest.fixture(scope="module")
def qmodel():
    model = compiled(dqmq_tf.quantize_model(network()))
    model.calibrate(IMAGES)
    model._training.settle()
    return model


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("found", [keras.Sequential(), "model.keras", None])
def test_what_is_not_quantized_cannot_be_converted_verified_or_summarized(found):
    advice = r"must be a DQMQModel. Found \w+. Create one with `dqmq_tf.quantize_model.*load_model"
    with pytest.raises(ValueError, match=advice):
        dqmq_tf.convert(found, "model.tflite")
    with pytest.raises(ValueError, match=advice):
        dqmq_tf.verify(found, "model.tflite", IMAGES)
    with pytest.raises(ValueError, match=advice):
        dqmq_tf.summary(found)


def test_arguments_in_the_wrong_order(qmodel):
    with pytest.raises(ValueError, match="must be a DQMQModel. Found str"):
        dqmq_tf.convert("model.tflite", qmodel)
    with pytest.raises(ValueError, match="must be a DQMQModel. Found str"):
        dqmq_tf.verify("model.tflite", qmodel, IMAGES)
    with pytest.raises(ValueError, match="must be the name of a file that ends in '.tflite'"):
        dqmq_tf.convert(qmodel, IMAGES)


def test_a_quantized_model_is_not_quantized_again(qmodel):
    nested = keras.Sequential([keras.Input(IMAGES.shape[1:]), qmodel])
    features = keras.Model(qmodel.input, qmodel.get_layer("conv_1").output)
    for model in (qmodel, nested, features, keras.models.load_model(saved(qmodel))):
        with pytest.raises(ValueError, match=r"quantized already.*qmodel.float_model\(\)"):
            dqmq_tf.quantize_model(model)
    again = dqmq_tf.quantize_model(qmodel.float_model(), target="microcontroller")
    assert again.target.name == "microcontroller"


def saved(qmodel):
    qmodel.save("model.keras")
    return "model.keras"


@pytest.mark.parametrize(
    "found, advice",
    [
        ("model.keras", "load_model"),
        (pathlib.Path("model.keras"), "load_model"),
        (layers.Dense(3), r"keras.Sequential\(\[keras.Input"),
        (None, "Keras 3 layers"),
    ],
)
def test_what_is_no_model_is_not_quantized(found, advice):
    with pytest.raises(ValueError, match=f"Expected a Keras 3 model, found .*{advice}"):
        dqmq_tf.quantize_model(found)


@pytest.mark.parametrize("config", [{"seed": 1}, CONFIG, RULE, "simulation", 1, {}])
def test_a_configuration_of_another_type(config):
    with pytest.raises(ValueError, match=r"is not a configuration: give a dqmq_tf.DQMQConfig"):
        dqmq_tf.quantize_model(network(), config=config)


@pytest.mark.parametrize("budget", [5000, {"size_bytes": 5000}, "5 kB"])
def test_a_budget_of_another_type(budget):
    with pytest.raises(ValueError, match=r"give a dqmq_tf.Budget, such as Budget\("):
        dqmq_tf.quantize_model(network(), budget=budget)


@pytest.mark.parametrize(
    "arguments, advice",
    [
        ({"seed": "a"}, "give an integer"),
        ({"profiles": 1.5}, "give an integer"),
        ({"embedding_size": None}, "give an integer"),
        ({"quality_aware": "no"}, "give True or False"),
        ({"settle": "0.5"}, "give a number"),
        ({"score_coefficient": None}, "give a number"),
        ({"terms": {"entropy": False}}, "give dqmq_tf.ObjectiveTerms"),
        ({"rules": 3}, "give dqmq_tf.LayerRule objects"),
        ({"rules": [{"pattern": "conv"}]}, "give dqmq_tf.LayerRule objects"),
    ],
)
def test_values_of_another_type_in_a_configuration(arguments, advice):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}=.* is not valid: {advice}"):
        CONFIG(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"pattern": 3}, {"pattern": ".*", "weight_bits": ("8",)}, {"pattern": ".*", "weights": (3,)}],
)
def test_values_of_another_type_in_a_rule(arguments):
    with pytest.raises(ValueError, match=r"is not valid: give (a regular|integers|names)"):
        dqmq_tf.LayerRule(**arguments)


def test_one_rule_is_a_list_of_one():
    assert CONFIG(rules=RULE) == CONFIG(rules=[RULE])


@pytest.mark.parametrize("steps", [0, "a", None])
def test_a_training_loop_of_no_steps(qmodel, steps):
    with pytest.raises(ValueError, match=f"steps={steps!r}: pass the number"):
        qmodel.custom_training(steps)


def test_a_step_of_a_training_loop_in_a_graph():
    model = dqmq_tf.quantize_model(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    x, optimizer = np.ones((8, 4), "float32"), keras.optimizers.SGD(0.01)

    @tf.function
    def outside(x):
        return model(x, training=True)

    with pytest.raises(ValueError, match="its search of bit-widths has not begun"):
        outside(x)
    with model.custom_training(4, x) as training:
        forward = tf.function(lambda x: tf.reduce_sum(tf.square(model(x, training=True))))

        @tf.function
        def step(x):
            with tf.GradientTape() as tape:
                loss = forward(x)
            training.apply_gradients(tape, loss, x, optimizer)

        with pytest.raises(RuntimeError, match="Call it outside, and put @tf.function around the"):
            step(x)
        before = model.get_weights()
        for _ in range(4):
            with tf.GradientTape() as tape:
                loss = forward(x)
            training.apply_gradients(tape, loss, x, optimizer)
    assert any((a != b).any() for a, b in zip(model.get_weights(), before))


@pytest.mark.parametrize("profiles", [IMAGES, "2", 2.0, 0])
def test_freezing_to_what_is_no_number_of_profiles(qmodel, profiles):
    with pytest.raises(ValueError, match="pass 1, 2, 3 or 4"):
        qmodel.freeze(profiles)


def test_cloning_names_the_ways_to_copy(qmodel):
    with pytest.raises(ValueError, match=r"copy.deepcopy\(qmodel\), or dqmq_tf.DQMQModel.from_con"):
        keras.models.clone_model(qmodel)
    with pytest.raises(ValueError, match=r"Call dqmq_tf.quantize_model\(model\)"):
        dqmq_tf.DQMQModel(qmodel.input, qmodel.output)
    expected = qmodel.predict(IMAGES, verbose=0)
    np.testing.assert_array_equal(copy.deepcopy(qmodel).predict(IMAGES, verbose=0), expected)
    fresh = dqmq_tf.DQMQModel.from_config(qmodel.get_config())
    assert fresh.count_params() == qmodel.count_params()


@pytest.mark.parametrize("name", ["q.h5", "q.hdf5", pathlib.Path("q.h5")])
def test_hdf5_cannot_hold_a_quantized_model(qmodel, name, folder):
    with pytest.raises(ValueError, match=r"ends in '.keras'"):
        qmodel.save(name)
    with pytest.raises(ValueError, match=r"ends? in ['`].keras['`]"):
        checkpoint = keras.callbacks.ModelCheckpoint(str(name))
        checkpoint.set_model(qmodel)
        checkpoint.on_epoch_end(0, {})
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["w.h5", "w", "w.keras", "w.ckpt"])
def test_weights_have_one_kind_of_name(qmodel, name):
    with pytest.raises(ValueError, match=r"must end in `.weights.h5`"):
        qmodel.save_weights(name)


def test_weights_of_another_model_are_not_loaded(qmodel):
    network().save_weights("float.weights.h5")
    other = dqmq_tf.quantize_model(network(), target="simulation")
    other.save_weights("other.weights.h5")
    advice = "weights of quantized model.*float model, before quantize_model.*same target, budget"
    for path in ("float.weights.h5", "other.weights.h5"):
        with pytest.raises(ValueError, match=advice):
            qmodel.load_weights(path)
    with pytest.raises(FileNotFoundError):
        qmodel.load_weights("none.weights.h5")


@pytest.mark.parametrize("format", ["litert", "onnx", "openvino", "torch"])
def test_formats_that_cannot_hold_the_bits(qmodel, format, folder):
    with pytest.raises(ValueError, match=r"dqmq_tf.convert\(qmodel, 'model.tflite'\)"):
        qmodel.export("model.tflite", format=format)
    assert not list(folder.iterdir())


def test_a_saved_model_computes_what_the_model_computes(qmodel):
    qmodel.export("exported", verbose=False)
    loaded = tf.saved_model.load("exported")
    expected = qmodel.predict(IMAGES, verbose=0)
    np.testing.assert_allclose(loaded.serve(IMAGES), expected, atol=1e-6)


def test_the_quantization_of_keras_is_for_float_models(qmodel):
    before = qmodel.predict(IMAGES, verbose=0)
    for mode in ("int8", "int4", "float8"):
        with pytest.raises(ValueError, match=r"qmodel.float_model\(\).quantize"):
            qmodel.quantize(mode)
    np.testing.assert_array_equal(qmodel.predict(IMAGES, verbose=0), before)
