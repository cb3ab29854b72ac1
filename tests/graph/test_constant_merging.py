"""Merged constants: the same predictions, fewer operators, and files that stay exact."""

import collections

import keras
import numpy as np
import pytest
from helpers.frozen_models import freeze
from helpers.networks import assert_simulates, chain, names, shaken, written
from helpers.predictions import predicted
from keras import layers, ops

import dqmq_tf
from dqmq_tf.graph import trace
from dqmq_tf.graph.constant_merging import merge_constants

RNG = np.random.default_rng(0)
CHANNELS = np.array([1.0, 2.0, 4.0], "float32")


def conv(filters=3, **options):
    return layers.Conv2D(filters, 3, padding="same", **options)


class OwnReLU(layers.ReLU):
    def call(self, x):
        return ops.relu(x) + 1.0


class OwnActivation(layers.Activation):
    def call(self, x):
        return 2.0 * super().call(x)


def hard_sigmoid(x):
    return layers.ReLU(6.0, name="clip")(x + 3.0) * (1 / 6)


def model_of(*calls, shape=(6, 6, 3)):
    return chain(shape, *calls)


def kinds(model):
    """Classes of the layers and operations, in order."""
    return [type(node.layer).__name__ for node in trace(model).nodes]


def assert_same(model, merged):
    inputs = RNG.normal(scale=4.0, size=(4, *model.input_shape[1:])).astype("float32")
    expected = np.array(model(inputs))
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(np.array(merged(inputs)), expected, atol=2e-5)


# What a model begins with, and the kinds of layers and operations that are left of it.
MERGED = {
    "two maps of the image": ([lambda x: x / 127.5 - 1.0], ["Rescaling"]),
    "maps of channels": (
        [layers.Rescaling(0.5), layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0] * 3)],
        ["Rescaling"],
    ),
    "three maps, one negative": ([lambda x: (2.0 - x) * CHANNELS / 3.0], ["Rescaling"]),
    "behind a kernel": ([conv(), lambda x: x * 2.0], ["Conv2D", "Rescaling"]),
    "hard sigmoid by parts": ([conv(), hard_sigmoid], ["Conv2D", "Rescaling", "ReLU"]),
    "hard sigmoid by parts of the image": ([hard_sigmoid], ["Rescaling", "ReLU"]),
    "hard sigmoid": (
        [conv(), layers.Activation("hard_sigmoid")],
        ["Conv2D", "Rescaling", "ReLU"],
    ),
    "hard sigmoid as a function": ([keras.activations.hard_sigmoid], ["Rescaling", "ReLU"]),
    "scaled relu": ([conv(), lambda x: ops.relu(x) * 0.25], ["Conv2D", "Rescaling", "ReLU"]),
    "scaled and shifted relu6": (
        [conv(), lambda x: ops.relu6(x - 1.0) / 3.0],
        ["Conv2D", "Rescaling", "ReLU"],
    ),
    "relu between maps": (
        [layers.Rescaling(2.0, offset=1.0), layers.ReLU(), lambda x: 1.0 - x],
        None,
    ),
    "relu between maps that merge": (
        [lambda x: (x + 1.0) / 2.0, layers.ReLU(), lambda x: (x - 1.0) / 2.0],
        ["Rescaling", "ReLU", "Rescaling"],
    ),
}


@pytest.mark.parametrize("name", MERGED)
def test_merged_models_compute_the_same(name):
    calls, expected = MERGED[name]
    model = model_of(*calls)
    merged = merge_constants(model)
    if expected is None:
        assert merged is model
        return
    assert kinds(merged) == expected
    assert_same(model, merged)
    # The last layer of a row has the name of the last layer that it replaces.
    assert trace(merged).nodes[-1].path == trace(model).nodes[-1].path
    assert merge_constants(merged) is merged


def random_step(generator):
    """A random map or relu."""
    a, b = (float(value) for value in generator.uniform(-2, 2, 2))
    channels = generator.uniform(0.5, 2.0, 3).astype("float32")
    return generator.choice(
        [
            lambda x: x * a,
            lambda x: x * abs(a),
            lambda x: x + b,
            lambda x: b - x,
            lambda x: x / channels,
            lambda x: ops.subtract(channels, x),
            lambda x: -x,
            ops.relu,
            layers.ReLU(abs(b)),
            layers.Rescaling(a, offset=b),
            layers.Activation("hard_sigmoid"),
        ]
    )


@pytest.mark.parametrize("seed", range(40))
def test_random_rows_compute_the_same(seed):
    generator = np.random.default_rng(seed)
    first = [conv()] if generator.integers(2) else []
    steps = [random_step(generator) for _ in range(generator.integers(1, 7))]
    model = model_of(*first, *steps)
    merged = merge_constants(model)
    inputs = RNG.normal(scale=4.0, size=(4, 6, 6, 3)).astype("float32")
    np.testing.assert_allclose(
        np.array(merged(inputs)), np.array(model(inputs)), rtol=1e-4, atol=1e-4
    )
    # Only a hard sigmoid becomes more layers than it was.
    count = kinds(model).count("Activation")
    assert len(kinds(merged)) <= len(kinds(model)) + count
    assert merge_constants(merged) is merged


UNCHANGED = {
    "one rescaling": [layers.Rescaling(0.5), conv()],
    "one map of the image": [lambda x: x + 1.0, conv()],
    "a rescaling behind a kernel": [conv(), layers.Rescaling(0.5, offset=1.0)],
    "maps of channels behind a kernel": [conv(), lambda x: x * CHANNELS],
    "a relu": [conv(), layers.ReLU(6.0)],
    "a relu and a negative number": [layers.ReLU(6.0), lambda x: x * -1.0],
    # The range of a relu with another ceiling is fixed, whatever part of it the values need.
    "a scaled relu6": [conv(), layers.ReLU(6.0), lambda x: x * 2.0],
    "a subclass of a relu": [conv(), OwnReLU(), lambda x: x * 2.0],
    "a subclass of an activation": [conv(), OwnActivation("hard_sigmoid")],
    "a relu of the image and a number": [layers.ReLU(6.0), lambda x: x * 0.5],
    "an activity regularizer": [
        layers.Rescaling(2.0),
        layers.Rescaling(0.5, activity_regularizer="l2"),
    ],
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_brings_nothing_stays_as_it_is(name):
    model = model_of(*UNCHANGED[name])
    assert merge_constants(model) is model


def test_a_tensor_with_other_readers_stays():
    inputs = keras.Input((6, 6, 3))
    x = inputs * 2.0
    model = keras.Model(inputs, [x + 1.0, x])
    assert merge_constants(model) is model


def test_a_layer_that_is_called_twice_stays():
    inputs, scale = keras.Input((6, 6, 3)), layers.Rescaling(0.5)
    model = keras.Model(inputs, scale(scale(inputs)))
    assert merge_constants(model) is model


def test_integers_stay():
    # Their sum overflows, and their division by an integer is in floating point.
    inputs = keras.Input((6,), dtype="int32")
    model = keras.Model(inputs, (inputs + 1) * 2)
    assert merge_constants(model) is model


def test_layers_with_different_rules_stay():
    model = model_of(layers.Rescaling(2.0, name="a"), layers.Rescaling(0.5, offset=1.0, name="b"))
    both, one = (
        dqmq_tf.LayerRule(pattern=".*", weight_bits=8),
        dqmq_tf.LayerRule(pattern="a", quantize=False),
    )
    assert merge_constants(model, dqmq_tf.DQMQConfig(rules=[one, both])) is model
    assert kinds(merge_constants(model, dqmq_tf.DQMQConfig(rules=[both]))) == ["Rescaling"]


def test_models_with_masks_stay():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True)(inputs) * 2.0 + 1.0
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(x))
    assert merge_constants(model) is model


def test_models_for_channels_first_stay():
    keras.config.set_image_data_format("channels_first")
    try:
        model = model_of(lambda x: x * 2.0 + 1.0)
        assert merge_constants(model) is model
    finally:
        keras.config.set_image_data_format("channels_last")


def test_a_change_of_type_stays():
    inputs = keras.Input((6,))
    half = layers.Rescaling(2.0, dtype="float16")
    model = keras.Model(inputs, half(inputs / 1e5))
    assert merge_constants(model) is model


def test_nested_models_merge_once_for_all_their_calls():
    inner_inputs = keras.Input((6, 6, 3))
    inner = keras.Model(inner_inputs, conv(name="conv")(hard_sigmoid(inner_inputs)), name="inner")
    inputs = keras.Input((6, 6, 3))
    model = shaken(keras.Model(inputs, inner(inner(inputs))))
    merged = merge_constants(model)
    assert collections.Counter(kinds(merged)) == {"Rescaling": 2, "ReLU": 2, "Conv2D": 2}
    assert_same(model, merged)


def test_quantized_networks_lose_the_operators(tmp_path):
    def gate(x):
        s = layers.GlobalAveragePooling2D(keepdims=True)(x)
        s = layers.Conv2D(3, 1, activation="relu", name="squeeze")(s)
        s = layers.ReLU(6.0)(layers.Conv2D(3, 1, name="excite")(s) + 3.0) * (1 / 6)
        return layers.Multiply()([x, s])

    def normalized(x):
        return layers.Normalization(mean=[1.0, 0.0, -1.0], variance=[2.0, 1.0, 4.0])(x * 0.5)

    qmodel = freeze(
        model_of(normalized, conv(name="first"), gate, layers.Flatten(), layers.Dense(2))
    )
    assert not assert_simulates(qmodel, ties=0.03).float_layers
    model, report = written(qmodel, tmp_path)
    assert collections.Counter(names(model)) == {
        "QUANTIZE": 1, "DEPTHWISE_CONV_2D": 1, "CONV_2D": 3, "MEAN": 1, "MUL": 1, "RESHAPE": 1,
        "FULLY_CONNECTED": 1, "DEQUANTIZE": 1,
    }  # fmt: skip
    assert report.verification.different_numbers == 0
    assert report.verification.largest_quanta <= 2.01


@pytest.mark.parametrize("last", [False, True])
def test_hard_sigmoid_is_in_integers_and_reaches_both_ends(last, tmp_path):
    behind = [] if last else [conv(2)]
    model = model_of(conv(activation="hard_sigmoid", name="gate"), *behind)
    data = RNG.normal(scale=10.0, size=(64, 6, 6, 3)).astype("float32")
    qmodel = freeze(model, data=data)
    assert not assert_simulates(qmodel, data, ties=0.03).float_layers
    if last:
        found = predicted(qmodel, data)
        assert found.min() == 0 and found.max() == pytest.approx(1) and 0.1 < found.mean() < 0.9
        assert np.abs(found - predicted(model, data)).mean() < 0.01
    written_model, report = written(qmodel, tmp_path)
    assert names(written_model) == ["QUANTIZE", *["CONV_2D"] * (1 + len(behind)), "DEQUANTIZE"]
    assert report.verification.different_numbers == 0


def test_saved_models_of_both_kinds_load(tmp_path):
    model = model_of(conv(name="conv"), hard_sigmoid, conv(2, name="last"))
    qmodel = dqmq_tf.quantize_model(model)
    data = RNG.normal(size=(4, 6, 6, 3)).astype("float32")
    qmodel.calibrate(data)
    qmodel.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predicted(loaded, data), predicted(qmodel, data))
