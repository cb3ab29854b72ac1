"""A functional model made anew from its graph, with other calls in place of its own."""

import keras

from dqmq_tf.graph import graph as graphs


def copy_model(model):
    """Returns a new model of the same architecture, names and weights."""
    config = _without_compilation(keras.saving.serialize_keras_object(model))
    copy = keras.saving.deserialize_keras_object(config)
    copy.set_weights(model.get_weights())
    return copy


def _without_compilation(config):
    """A serialized model, and those inside it, without loss and optimizer, which may be private."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key != "compile_config"}
        return {key: _without_compilation(value) for key, value in kept.items()}
    if isinstance(config, list):
        return [_without_compilation(item) for item in config]
    return config


def rebuild(graph, name, call):
    """Returns a functional model with the inputs, outputs and nested models of a graph.

    `keras.models.clone_model` would rename inputs, and compile again what was compiled, which fails
    for losses of the user's own.

    Args:
        graph: `dqmq_tf.graph.Graph` with nested models kept (`trace_nested`).
        name: Of the new model.
        call: `call(node, args, kwargs)` makes the call of a node that is no nested model, and
            returns its outputs.
    """
    nested = {}

    def made(node, args, kwargs):
        if node.subgraph is None:
            return call(node, args, kwargs)
        if id(node.layer) not in nested:
            nested[id(node.layer)] = build(node.subgraph, node.layer.name)
        return nested[id(node.layer)](*args, **kwargs)

    def build(graph, name):
        inputs = new_inputs(graph)
        outputs = graphs.replay(graph, dict(zip(graph.inputs, inputs)), made)
        return keras.Model(structured(graph, inputs), single(outputs), name=name)

    return build(graph, name)


def new_inputs(graph):
    """Returns a `keras.Input` like each input of a graph."""
    return [
        keras.Input(batch_shape=graph.shapes[tensor], dtype=graph.dtypes[tensor], name=name)
        for tensor, name in zip(graph.inputs, graph.input_names)
    ]


def structured(graph, inputs):
    """Returns new inputs in the structure of the model's own."""
    by_tensor = dict(zip(graph.inputs, inputs))
    return single(keras.tree.map_structure(lambda tensor: by_tensor[tensor], graph.input_structure))


def single(structure):
    """Returns what a list of one holds, as Keras has it for models of one input or output."""
    return structure[0] if isinstance(structure, list) and len(structure) == 1 else structure
