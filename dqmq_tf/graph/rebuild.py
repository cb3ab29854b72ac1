"""Copies a model, or builds it again from its graph with other calls in place of its own."""

from collections.abc import Callable
from typing import Any

import keras

from dqmq_tf.graph.graph import Graph, Node, replay


def copy_model(model: keras.Model) -> keras.Model:
    """Returns a new model of the same architecture, names and weights."""
    config = _without_compilation(keras.saving.serialize_keras_object(model))
    copy = keras.saving.deserialize_keras_object(config)
    copy.set_weights(model.get_weights())
    return copy


def _without_compilation(config: Any) -> Any:
    """Removes loss and optimizer from a serialized model, as they may be private functions."""
    if isinstance(config, dict):
        kept = {key: value for key, value in config.items() if key != "compile_config"}
        return {key: _without_compilation(value) for key, value in kept.items()}
    if isinstance(config, list):
        return [_without_compilation(item) for item in config]
    return config


def rebuild(
    graph: Graph, name: str, call: Callable[[Node, tuple[Any, ...], dict[str, Any]], Any]
) -> keras.Model:
    """Returns a functional model with the inputs, outputs and nested models of a graph.

    `keras.models.clone_model` would rename inputs. It would also compile again what was compiled,
    which fails for the user's own losses.

    Args:
        graph: A `dqmq_tf.graph.Graph` with nested models kept (`trace_nested`).
        name: The name of the new model.
        call: `call(node, args, kwargs)` makes the call of a node that is not a nested model, and
            returns its outputs.
    """
    nested: dict[int, keras.Model] = {}

    def call_node(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.subgraph is None:
            return call(node, args, kwargs)
        if id(node.layer) not in nested:
            nested[id(node.layer)] = build(node.subgraph, node.layer.name)
        return nested[id(node.layer)](*args, **kwargs)

    def build(graph: Graph, name: str) -> keras.Model:
        inputs = new_inputs(graph)
        outputs = replay(graph, dict(zip(graph.inputs, inputs)), call_node)
        return keras.Model(structured(graph, inputs), single(outputs), name=name)

    return build(graph, name)


def new_inputs(graph: Graph) -> list[Any]:
    """Returns a `keras.Input` like each input of a graph."""
    return [
        keras.Input(batch_shape=graph.shapes[tensor], dtype=graph.dtypes[tensor], name=name)
        for tensor, name in zip(graph.inputs, graph.input_names)
    ]


def structured(graph: Graph, inputs: list[Any]) -> Any:
    """Returns new inputs in the structure that the model has."""
    by_tensor = dict(zip(graph.inputs, inputs))
    return single(keras.tree.map_structure(lambda tensor: by_tensor[tensor], graph.input_structure))


def single(structure: Any) -> Any:
    """Returns the item of a list of one, as Keras has it for models of one input or output."""
    return structure[0] if isinstance(structure, list) and len(structure) == 1 else structure
