import keras
import numpy as np
import pytest
from helpers.frozen_models import freeze, images
from helpers.networks import shaken

from dqmq_tf import export
from dqmq_tf.graph.activations import last_activation

layers = keras.layers


def ended(*last):
    x = inputs = keras.Input((4,))
    for layer in last:
        x = layer(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    "last, name",
    [
        ([layers.Dense(3, activation="softmax")], "softmax"),
        ([layers.Dense(3), layers.Softmax()], "softmax"),
        ([layers.Dense(3), layers.Activation("softmax")], "softmax"),
        ([layers.Dense(3), keras.ops.softmax], "softmax"),
        ([layers.Dense(1, activation="sigmoid")], "sigmoid"),
        ([layers.Dense(1), keras.ops.sigmoid], "sigmoid"),
        ([layers.Dense(3)], "linear"),
        ([layers.Dense(3, activation="softmax"), layers.Reshape((3, 1))], "reshape"),
    ],
)
def test_what_makes_an_output_is_named(last, name):
    assert last_activation(ended(*last).outputs[0]) == name


def test_nested_models_are_looked_into():
    inner = ended(layers.Dense(3, activation="softmax"))
    assert last_activation(ended(inner).outputs[0]) == "softmax"
    assert last_activation(ended(keras.Sequential([inner])).outputs[0]) == "softmax"


def test_each_output_of_a_nested_model_has_its_own():
    x = keras.Input((4,))
    two = [layers.Dense(3, activation=name)(x) for name in ("softmax", "sigmoid")]
    outer = keras.Input((4,))
    model = keras.Model(outer, keras.Model(x, two)(outer))
    assert [last_activation(y) for y in model.outputs] == ["softmax", "sigmoid"]


@pytest.mark.parametrize("target", ["android", "microcontroller"])
def test_a_call_of_the_relu_of_activations_is_that_relu(target, tmp_path):
    """`keras.activations.relu` has the arguments of `keras.layers.ReLU`, and is no `keras.ops.relu`."""
    variants = (
        {}, {"max_value": 6.0}, {"max_value": 0.5}, {"negative_slope": 0.2}, {"threshold": 0.1}
    )  # fmt: skip

    def frozen_with(relu):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 3))
        outputs = [
            layers.Dense(3)(layers.Flatten()(relu(layers.Conv2D(4, 3)(inputs), **options)))
            for options in variants
        ]
        return freeze(shaken(keras.Model(inputs, outputs)), target=target)

    called = frozen_with(keras.activations.relu)
    layer = frozen_with(lambda x, **options: layers.ReLU(**options)(x))
    x = images(called)
    for found, expected in zip(called.predict(x, verbose=0), layer.predict(x, verbose=0)):
        np.testing.assert_array_equal(found, expected)
    report = export.convert(called, tmp_path / "model.tflite", data=x)
    assert len(report.float_layers) == 1, report.float_layers
    assert report.verification.different_numbers == 0
