"""`rebuild`: the same network again, with what was asked for in place of calls."""

import keras
import numpy as np

from dqmq_tf import graph as graphs
from dqmq_tf.graph.rebuild import rebuild


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


def test_calls_can_be_replaced():
    model = network()

    def call(node, args, kwargs):
        outputs = node.layer(*args, **kwargs)
        return outputs * 2.0 if node.path == "add" else outputs

    copy = rebuild(graphs.trace_nested(model), "twice", call)
    x = {key: np.ones((1, 4), "float32") for key in "ab"}
    np.testing.assert_allclose(copy(x)[0], 2 * np.asarray(model(x)[0]), rtol=1e-6)
