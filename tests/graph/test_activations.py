import keras
import pytest

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
