"""Functional models of every form that a graph can have, and what they compute."""

import keras
import numpy as np
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
