"""Copies a model, or builds it again from its graph with other calls in place of its own."""

from collections.abc import Callable
from typing import Any

import keras

from dqmq_tf.graph.cloning import clone_layer, copy_state
from dqmq_tf.graph.from_keras import trace_nested
from dqmq_tf.graph.graph import Graph, Node, replay


def copy_model(model: keras.Model) -> keras.Model:
    """Returns a new model of the same architecture, names and state.

    Args:
        model: A Sequential or functional model. It is not changed.

    Returns:
        A Sequential model for a Sequential model, else a functional model. So are nested models.

    Raises:
        ValueError: If the model is subclassed, or if a layer with weights cannot be copied.
    """
    copies: dict[int, Any] = {}
    # Layers without variables so far: their clones get a state once they are built.
    waiting: list[tuple[Any, Any]] = []

    def copy_layer(layer: Any) -> Any:
        clone = clone_layer(layer)
        if isinstance(layer, keras.layers.Layer) and clone is not layer:
            # The state may decide the shape of the output, as a vocabulary does.
            if clone.built:
                copy_state(layer, clone)
            else:
                waiting.append((layer, clone))
        return clone

    def copy_of(node: Node) -> Any:
        if id(node.layer) not in copies:
            copies[id(node.layer)] = (
                copy_layer(node.layer)
                if node.subgraph is None
                else copy_graph(node.subgraph, node.layer)
            )
        return copies[id(node.layer)]

    def copy_graph(graph: Graph, source: keras.Model) -> keras.Model:
        inputs = new_inputs(graph)
        if isinstance(source, keras.Sequential):
            layers = [copy_of(node) for node in graph.nodes]
            copy = keras.Sequential([*inputs, *layers], name=source.name)
        else:
            values = dict(zip(graph.inputs, inputs))
            outputs = replay(graph, values, lambda node, args, kw: copy_of(node)(*args, **kw))
            copy = keras.Model(structured(graph, inputs), single(outputs), name=source.name)
        if not source.trainable:
            copy.trainable = False
        return copy

    copy = copy_graph(trace_nested(model), model)
    for layer, clone in waiting:
        copy_state(layer, clone)
    return copy


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
