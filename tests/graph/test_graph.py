"""What tracing finds in a model: its layers, calls, tensors and names."""

import keras
import numpy as np
import pytest
from helpers.traced_models import (
    MODELS,
    batch_of,
    dict_model,
    inputs_of,
    list_model,
    nested_in_nested,
    nested_structure_model,
    replayed,
    shared_layers,
    shared_nested,
    shared_with_another_model,
)
from keras import layers

from dqmq_tf import graph as graphs
from dqmq_tf.graph import kernels


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("trace", [graphs.trace, graphs.trace_nested], ids=["inlined", "nested"])
def test_replay_of_the_graph_is_the_model(make, trace):
    model = make()
    data = batch_of(model)
    graph, outputs = replayed(model, data, trace)
    expected = model(data)
    found, wanted = keras.tree.flatten(outputs), keras.tree.flatten(expected)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        np.testing.assert_array_equal(a, b)
    if isinstance(expected, dict):
        assert sorted(outputs) == sorted(expected)
        for key in expected:
            keras.tree.map_structure(np.testing.assert_array_equal, outputs[key], expected[key])


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_graph_is_consistent(make):
    model = make()
    graph = graphs.trace(model)
    known = set(graph.inputs)
    for node in graph.nodes:
        assert node.subgraph is None
        assert set(node.inputs) <= known, "a node reads what has not been made"
        assert not set(node.outputs) & known, "a tensor is made twice"
        known |= set(node.outputs)
    assert set(graph.outputs) <= known
    assert known == set(graph.shapes) == set(graph.dtypes)
    flat = keras.tree.flatten(inputs_of(model))
    for tensor, symbol in zip(graph.inputs, flat):
        assert graph.shapes[tensor] == tuple(symbol.shape)
        assert graph.dtypes[tensor] == symbol.dtype
    for tensor, symbol in zip(graph.outputs, keras.tree.flatten(model.outputs)):
        assert graph.shapes[tensor] == tuple(symbol.shape)


def test_sites_are_paths_and_calls_count_from_zero():
    assert [(n.path, n.call) for n in graphs.trace(shared_layers()).nodes] == [
        ("a", 0), ("b", 0), ("a", 1),
    ]  # fmt: skip
    paths = [n.path for n in graphs.trace(nested_in_nested()).nodes]
    assert paths == ["middle/dense", "middle/inner/dense", "middle/inner/add"]
    shared = [n.path for n in graphs.trace(shared_nested()).nodes]
    assert shared.count("middle/inner/dense") == 4
    assert shared.count("inner/dense") == 1
    two = graphs.trace(shared_with_another_model())
    assert [(n.path, n.call) for n in two.nodes if n.path == "dense"] == [
        ("dense", 0),
        ("dense", 1),
    ]


def test_the_layers_of_the_graph_are_those_of_the_model():
    model = shared_nested()
    dense = model.get_layer("middle").get_layer("inner").get_layer("dense")
    found = [n.layer for n in graphs.trace(model).nodes if isinstance(n.layer, layers.Dense)]
    assert len(found) == 5 and all(layer is dense for layer in found)


def test_tracing_changes_neither_the_model_nor_later_traces():
    model = shared_nested()
    config = model.get_config()
    first, second = graphs.trace(model), graphs.trace(model)
    assert model.get_config() == config
    assert [(n.path, n.call, n.inputs, n.outputs) for n in first.nodes] == [
        (n.path, n.call, n.inputs, n.outputs) for n in second.nodes
    ]


def test_a_call_of_a_nested_model_keeps_its_arguments():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.BatchNormalization(name="bn")], name="inner"
    )
    x = keras.Input((4,))
    model = keras.Model(x, inner(x, training=False))
    (node,) = graphs.trace_nested(model).nodes
    assert node.arguments({i: None for i in node.inputs})[1] == {"training": False}


def test_subclassed_models_are_refused():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Subclassed()
    with pytest.raises(ValueError, match="Subclassed.*functional API"):
        graphs.trace(model)
    model(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="is subclassed"):
        graphs.trace(model)


def test_a_subclassed_model_inside_a_graph_is_a_layer():
    @keras.saving.register_keras_serializable(package="dqmq_tf_tests")
    class Head(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(2)

        def build(self, shape):
            self.dense.build(shape)

        def call(self, x):
            return self.dense(x)

    x = keras.Input((3,))
    model = keras.Model(x, Head(name="head")(x))
    assert [n.path for n in graphs.trace(model).nodes] == ["head"]
    data = batch_of(model)
    np.testing.assert_array_equal(keras.tree.flatten(replayed(model, data)[1])[0], model(data))


def test_unbuilt_models_are_refused():
    with pytest.raises(ValueError, match="no input shape yet"):
        graphs.trace(keras.Sequential([layers.Dense(2)]))


@pytest.mark.parametrize("thing", [layers.Dense(2), "model", None])
def test_what_is_no_keras_3_model_is_refused(thing):
    with pytest.raises(ValueError, match="Expected a Keras 3 model, found"):
        graphs.trace(thing)


def test_models_of_other_keras_packages_are_refused_by_name():
    foreign = type("Functional", (), {"__module__": "tf_keras.src.engine.functional"})()
    with pytest.raises(ValueError, match="tf_keras.src.engine.functional.Functional.*rebuilt"):
        graphs.trace(foreign)


def test_inputs_have_the_names_that_the_user_gave():
    assert graphs.trace(list_model()).input_names == ("a", "b")
    assert graphs.trace(dict_model()).input_names == tuple(sorted("za"))
    assert sorted(graphs.trace(nested_structure_model()).input_names) == ["a", "b", "c"]


def test_consumers_and_producers():
    graph = graphs.trace(list_model())
    a = graph.inputs[0]
    dense, concatenate, _ = graph.nodes
    assert a not in graph.producers and a in graph.outputs
    assert graph.consumers[a] == [dense]
    assert graph.producers[concatenate.outputs[0]] is concatenate
    squared = keras.Input((3,))
    node = graphs.trace(keras.Model(squared, layers.Multiply()([squared, squared])))
    assert [len(c) for c in node.consumers.values()] == [1]


def test_variables_are_named_by_their_path_inside_the_layer():
    attention = layers.MultiHeadAttention(2, 3, name="mha")
    x = keras.Input((5, 4))
    attention(x, x)
    names = kernels.variable_names(attention)
    assert {"query/kernel", "key/kernel", "value/kernel", "attention_output/kernel"} <= set(names)
    assert names["query/kernel"].shape == (4, 2, 3)
    assert all(any(v is w for w in attention.weights) for v in names.values())
    dense = layers.Dense(2, name="kernel")
    dense.build((None, 3))
    assert list(kernels.variable_names(dense)) == ["kernel", "bias"]
    lstm = layers.LSTM(2)
    lstm.build((None, 3, 4))
    assert len(kernels.variable_names(lstm)) == len(lstm.weights)


@pytest.mark.parametrize("equation", ["abc,cd->abd", "...c,cd->...d"])
def test_an_einsum_that_leaves_a_size_open_has_that_of_its_input(equation):
    output_shape = (None, 7) if equation.startswith("a") else 7
    x = keras.Input((5, 4))
    graph = graphs.trace(keras.Model(x, layers.EinsumDense(equation, output_shape)(x)))
    assert graph.shapes[graph.outputs[0]] == (None, 5, 7)
