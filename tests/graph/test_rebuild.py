"""`rebuild`: the same network again, with what was asked for in place of calls."""

import keras
import numpy as np

from dqmq_tf import graph as graphs
from dqmq_tf.graph.rebuild import copy_model, put_in_front, rebuild


def network():
    """Two inputs, a layer called twice, and a nested model called twice."""
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="inside")], name="nest")
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    shared = keras.layers.Dense(4, name="shared")
    x = keras.layers.Add(name="add")([inner(shared(a)), inner(shared(b))])
    return keras.Model({"a": a, "b": b}, [x, shared(x)], name="net")


def test_the_same_calls_give_the_same_network():
    model, calls = network(), []

    def call(node, args, kwargs):
        calls.append(node.path)
        return node.layer(*args, **kwargs)

    copy = rebuild(graphs.trace_nested(model), "again", call)
    x = {key: np.random.default_rng(0).normal(size=(3, 4)).astype("float32") for key in "ab"}
    for found, expected in zip(copy(x), model(x)):
        np.testing.assert_array_equal(found, expected)
    assert copy.name == "again" and [layer.name for layer in copy.inputs] == ["a", "b"]
    # A nested model is made once, and called twice like the shared layer.
    assert calls.count("nest/inside") == 1 and calls.count("shared") == 3
    nested = [layer for layer in copy.layers if isinstance(layer, keras.Model)]
    assert len(nested) == 1 and nested[0] is not model.get_layer("nest")


def test_a_frozen_model_inside_stays_frozen_and_can_be_unfrozen():
    model = network()
    model.get_layer("nest").trainable = False
    copy = rebuild(
        graphs.trace_nested(model), "again", lambda node, args, kw: node.layer(*args, **kw)
    )
    assert not copy.get_layer("nest").trainable
    copy.get_layer("nest").trainable = True
    assert len(copy.trainable_weights) == len(copy.weights) == 4


def test_calls_can_be_replaced():
    model = network()

    def call(node, args, kwargs):
        outputs = node.layer(*args, **kwargs)
        return outputs * 2.0 if node.path == "add" else outputs

    copy = rebuild(graphs.trace_nested(model), "twice", call)
    x = {key: np.ones((1, 4), "float32") for key in "ab"}
    np.testing.assert_allclose(copy(x)[0], 2 * np.asarray(model(x)[0]), rtol=1e-6)


def test_a_layer_in_front_of_one_input():
    model = network()
    copy = put_in_front(model, 1, keras.layers.Rescaling(2.0, name="front"))
    x = {key: np.random.default_rng(0).normal(size=(3, 4)).astype("float32") for key in "ab"}
    for found, expected in zip(copy(x), model({"a": x["a"], "b": 2 * x["b"]})):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert {layer.name for layer in copy.layers} == {"front", *(la.name for la in model.layers)}
    # The model itself still has its own layers, calls and weights.
    assert copy.get_layer("shared") is not model.get_layer("shared")
    assert len(model.get_layer("shared")._inbound_nodes) == 3


def test_a_layer_in_front_of_a_sequential_model():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="dense")], name="seq")
    copy = put_in_front(model, model.inputs[0].name, keras.layers.Rescaling(2.0, name="front"))
    assert isinstance(copy, keras.Sequential) and copy.name == "seq"
    assert [layer.name for layer in copy.layers] == ["front", "dense"]
    x = np.ones((1, 4), "float32")
    np.testing.assert_allclose(copy(x), model(2 * x), rtol=1e-6)


def test_an_identity_is_copied_whatever_its_dtype_was_made_of():
    """Keras's `Identity` has no config if its dtype is a policy, as inside of layers that hand it on."""
    inputs = keras.Input((4,))
    same = keras.layers.Identity(dtype=keras.DTypePolicy("float32"), name="same")
    copy = copy_model(keras.Model(inputs, keras.layers.Dense(2)(same(inputs))))
    assert copy.get_layer("same").get_config()["name"] == "same"
    assert keras.Model.from_config(copy.get_config()).get_layer("same").dtype == "float32"
