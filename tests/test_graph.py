import keras
import numpy as np
import pytest
from keras import layers, ops

from dqmq_tf import graph as graphs


def batch_of(model, size=3):
    rng = np.random.default_rng(0)

    def one(tensor):
        shape = [size, *[n or 5 for n in tensor.shape[1:]]]
        if "int" in str(tensor.dtype):
            return rng.integers(1, 5, shape)
        return rng.normal(size=shape).astype("float32")

    return keras.tree.map_structure(one, inputs_of(model))


def inputs_of(model):
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def replayed(model, data, trace=graphs.trace):
    graph = trace(model)
    values = dict(zip(graph.inputs, keras.tree.flatten(data)))
    outputs = graphs.replay(graph, values, lambda node, args, kwargs: node.layer(*args, **kwargs))
    return graph, outputs


def sequential():
    return keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(3, 3), layers.BatchNormalization(),
         layers.ReLU(), layers.Flatten(), layers.Dropout(0.5), layers.Dense(4)]
    )  # fmt: skip


def nested_sequential():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="dense")], name="inner")
    return keras.Sequential([keras.Input((4,)), layers.Dense(4), inner, layers.ReLU()])


def sequential_without_input_layer():
    model = keras.Sequential([layers.Dense(4), layers.Dense(2)])
    model.build((None, 3))
    return model


def list_model():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    x = layers.Dense(5)(a)
    y = layers.Concatenate()([x, b])
    return keras.Model([a, b], [layers.Dense(2)(y), x, a])


def dict_model():
    # The order of the dictionaries is not that of their sorted keys.
    inputs = {"z": keras.Input((4,), name="z"), "a": keras.Input((4,), name="a")}
    x = layers.Subtract()([inputs["z"], inputs["a"]])
    return keras.Model(inputs, {"y": layers.Dense(2)(x), "b": layers.Dense(3)(inputs["a"])})


def nested_structure_model():
    a, b, c = (keras.Input((4,), name=n) for n in "abc")
    return keras.Model(
        {"pair": [a, b], "one": c}, {"sum": [layers.Add()([a, b]), c], "d": layers.Dense(2)(c)}
    )


def shared_layers():
    a, b = layers.Dense(4, name="a"), layers.Dense(4, name="b", activation="relu")
    x = keras.Input((4,))
    return keras.Model(x, a(b(a(x))))


def shared_with_another_model():
    dense = layers.Dense(4, name="dense")
    x = keras.Input((4,))
    keras.Model(x, dense(layers.ReLU()(dense(x))))
    y = keras.Input((4,))
    return keras.Model(y, layers.Add()([dense(dense(y)), y]))


def cut_out_of_another_model():
    x = keras.Input((4,))
    y = layers.Dense(5)(x)
    z = layers.Dense(6)(y)
    keras.Model(x, z)
    return keras.Model(x, [z, y])


def block(name, width=4):
    x = keras.Input((width,))
    y = layers.Dense(width, activation="relu", name="dense")(x)
    return keras.Model(x, layers.Add(name="add")([x, y]), name=name)


def nested_functional():
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(2, name="dense")(block("first")(x)))


def nested_in_nested():
    x = keras.Input((4,))
    middle = keras.Model(x, block("inner")(layers.Dense(4, name="dense")(x)), name="middle")
    y = keras.Input((4,))
    return keras.Model(y, middle(y))


def shared_nested():
    inner = block("inner")
    x = keras.Input((4,))
    middle = keras.Model(x, inner(ops.tanh(inner(x))), name="middle")
    a, b = keras.Input((4,)), keras.Input((4,))
    return keras.Model([a, b], layers.Subtract()([middle(a), middle(inner(b))]))


def nested_last_and_first():
    inner = block("inner")
    x = keras.Input((4,))
    y = inner(x)
    return keras.Model(x, [inner(y), y])


def nested_with_structures():
    x = keras.Input((4,), name="x")
    inner = keras.Model(
        {"b": x, "a": (y := keras.Input((3,), name="y"))},
        {"q": layers.Dense(2)(y), "p": layers.Dense(5)(x)},
        name="inner",
    )
    a, b = keras.Input((3,)), keras.Input((4,))
    outputs = inner({"a": a, "b": b})
    return keras.Model([a, b], [outputs["p"], outputs["q"]])


def operations():
    x = keras.Input((6, 4))
    y = x[:, ::2, 1:] * np.array([1.0, 2.0, 3.0], "float32") + 0.5
    y = ops.reshape(y, (-1, 9))
    z = ops.mean(x, axis=(1, 2), keepdims=False)
    y = layers.Dense(3)(y) + ops.expand_dims(z, -1)
    return keras.Model(x, [ops.maximum(y, 0.0), -y, ops.concatenate([y, y * y], axis=-1)])


def state_of_a_recurrent_layer():
    x = keras.Input((5, 3))
    y, hidden, cell = layers.LSTM(4, return_state=True, return_sequences=True)(x)
    z = layers.LSTM(4)(y, initial_state=[hidden, cell])
    return keras.Model(x, [z, hidden, cell])


def called_with_keywords():
    x = keras.Input((5, 4))
    y = layers.MultiHeadAttention(2, 3)(query=x, value=x, key=layers.Dense(4)(x))
    y = layers.Dropout(0.5)(y, training=False)
    y, scores = layers.MultiHeadAttention(2, 3)(y, x, return_attention_scores=True)
    return keras.Model(x, [y, scores])


@keras.saving.register_keras_serializable(package="dqmq_tf_tests")
class TakesTuple(layers.Layer):
    def call(self, pair, scale=1.0, extra=None):
        first, second = pair
        total = first + scale * second
        return (total, total - extra["x"]) if extra else (total, second)


def called_with_tuples():
    x, y = keras.Input((4,)), keras.Input((4,))
    first, second = TakesTuple()((x, y), scale=3.0)
    third, fourth = TakesTuple()((second, first), extra={"x": x})
    return keras.Model([x, y], [third, fourth])


def embedding():
    x = keras.Input((5,), dtype="int32")
    return keras.Model(x, layers.GRU(3)(layers.Embedding(7, 4, mask_zero=True)(x)))


def variable_length():
    x = keras.Input((None, None, 3))
    return keras.Model(x, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x)))


def long_chain():
    x = y = keras.Input((4,))
    for _ in range(30):
        y = layers.Add()([layers.Dense(4)(y), x])
    return keras.Model(x, y)


MODELS = [
    sequential, nested_sequential, sequential_without_input_layer, list_model, dict_model,
    nested_structure_model, shared_layers, shared_with_another_model, cut_out_of_another_model,
    nested_functional, nested_in_nested, shared_nested, nested_last_and_first,
    nested_with_structures, operations, state_of_a_recurrent_layer, called_with_keywords,
    called_with_tuples, embedding, variable_length, long_chain,
]  # fmt: skip


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
    assert [(n.site, n.call) for n in graphs.trace(shared_layers()).nodes] == [
        ("a", 0), ("b", 0), ("a", 1),
    ]  # fmt: skip
    sites = [n.site for n in graphs.trace(nested_in_nested()).nodes]
    assert sites == ["middle/dense", "middle/inner/dense", "middle/inner/add"]
    shared = [n.site for n in graphs.trace(shared_nested()).nodes]
    assert shared.count("middle/inner/dense") == 4
    assert shared.count("inner/dense") == 1
    two = graphs.trace(shared_with_another_model())
    assert [(n.site, n.call) for n in two.nodes if n.site == "dense"] == [
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
    assert [(n.site, n.call, n.inputs, n.outputs) for n in first.nodes] == [
        (n.site, n.call, n.inputs, n.outputs) for n in second.nodes
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
    assert [n.site for n in graphs.trace(model).nodes] == ["head"]
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


def folds_of(make):
    x = keras.Input((6, 6, 2))
    return graphs.trace(keras.Model(x, make(x))).folds


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(3, 3, name="linear"),
        layers.Conv2D(3, 3, use_bias=False, name="linear"),
        layers.DepthwiseConv2D(3, name="linear"),
        layers.SeparableConv2D(3, 3, name="linear"),
        layers.Conv2DTranspose(3, 3, name="linear"),
        layers.Dense(3, name="linear"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_batch_norm_folds_into_a_linear_layer_before_it(layer):
    def make(x):
        return layers.ReLU()(layers.BatchNormalization(name="bn")(layer(x)))

    assert folds_of(make) == {"bn": "linear"}


def test_rescaling_folds_as_a_batch_norm_does():
    def make(x):
        return layers.Rescaling(0.25, name="scale")(layers.Conv2D(2, 1, name="conv")(x))

    assert folds_of(make) == {"scale": "conv"}
    assert folds_of(lambda x: layers.Conv2D(2, 1)(layers.Rescaling(0.25)(x))) == {}


def two_readers(x):
    y = layers.Conv2D(2, 1)(x)
    return layers.Add()([layers.BatchNormalization()(y), y])


def is_output(x):
    y = layers.Conv2D(2, 1)(x)
    return [layers.BatchNormalization()(y), y]


def shared_convolution(x):
    conv = layers.Conv2D(2, 1)
    return layers.BatchNormalization()(conv(layers.ReLU()(conv(x))))


def shared_batch_norm(x):
    bn = layers.BatchNormalization()
    return bn(layers.Conv2D(2, 1)(bn(layers.Conv2D(2, 1)(x))))


def over_rows(x):
    return layers.BatchNormalization(axis=1)(layers.Conv2D(2, 1)(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: layers.BatchNormalization()(layers.Conv2D(2, 1, activation="relu")(x)),
        lambda x: layers.BatchNormalization()(layers.MaxPooling2D()(layers.Conv2D(2, 1)(x))),
        lambda x: layers.LayerNormalization()(layers.Conv2D(2, 1)(x)),
        lambda x: layers.Conv2D(2, 1)(layers.BatchNormalization()(x)),
        two_readers,
        is_output,
        shared_convolution,
        shared_batch_norm,
        over_rows,
    ],
    ids=[
        "relu",
        "pool",
        "layer_norm",
        "before",
        "two_readers",
        "output",
        "shared_conv",
        "shared_bn",
        "rows",
    ],  # fmt: skip
)
def test_what_a_batch_norm_does_not_fold_into(make):
    assert folds_of(make) == {}


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
    names = graphs.variable_names(attention)
    assert {"query/kernel", "key/kernel", "value/kernel", "attention_output/kernel"} <= set(names)
    assert names["query/kernel"].shape == (4, 2, 3)
    assert all(any(v is w for w in attention.weights) for v in names.values())
    dense = layers.Dense(2, name="kernel")
    dense.build((None, 3))
    assert list(graphs.variable_names(dense)) == ["kernel", "bias"]
    lstm = layers.LSTM(2)
    lstm.build((None, 3, 4))
    assert len(graphs.variable_names(lstm)) == len(lstm.weights)


@pytest.mark.parametrize("equation", ["abc,cd->abd", "...c,cd->...d"])
def test_an_einsum_that_leaves_a_size_open_has_that_of_its_input(equation):
    output_shape = (None, 7) if equation.startswith("a") else 7
    x = keras.Input((5, 4))
    graph = graphs.trace(keras.Model(x, layers.EinsumDense(equation, output_shape)(x)))
    assert graph.shapes[graph.outputs[0]] == (None, 5, 7)
