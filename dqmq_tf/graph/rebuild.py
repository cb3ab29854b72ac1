"""Copies a model, or builds it again from its graph with other calls in place of its own."""

from collections.abc import Callable, Mapping
from typing import Any

import keras

from dqmq_tf.graph.cloning import clone_layer, copy_state, has_variables
from dqmq_tf.graph.deep_graphs import deep_graphs
from dqmq_tf.graph.from_keras import trace_nested
from dqmq_tf.graph.graph import Graph, Node, replay


@deep_graphs()
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
        if isinstance(layer, keras.layers.Layer):
            # The state may decide the shape of the output, as a vocabulary does.
            if has_variables(layer, clone):
                copy_state(layer, clone)
            else:
                waiting.append((layer, clone))
        return clone

    def copy_of(layer: Any) -> Any:
        if id(layer) not in copies:
            copies[id(layer)] = copy_layer(layer)
        return copies[id(layer)]

    copy = _connected(trace_nested(model), model, copy_of)
    for layer, clone in waiting:
        copy_state(layer, clone)
    return copy


def forget_calls(graph: Graph) -> None:
    """Makes the layers of a graph forget that they were called.

    `layer.output` is the output of the layer's first call. After this, the first call is that of the
    next model that the layers are put into. The model that the graph was read from is of no use
    any more: `connect_again` makes a new one of the same layers.

    Args:
        graph: A graph with nested models kept (`trace_nested`).
    """
    for node in graph.nodes:
        # Keras has no public way to take a layer out of a model.
        node.layer._inbound_nodes.clear()
        node.layer._outbound_nodes.clear()
        if node.subgraph is not None:
            forget_calls(node.subgraph)


@deep_graphs()
def connect_again(graph: Graph, source: keras.Model) -> keras.Model:
    """Returns a new model of the layers of a model, which calls them once more.

    Args:
        graph: The graph of the model, with nested models kept (`trace_nested`).
        source: The model. Its `name`, its kind (Sequential or not) and `trainable` are used.
    """
    return _connected(graph, source, lambda layer: layer)


@deep_graphs()
def put_in_front(model: keras.Model, position: int, layer: keras.layers.Layer) -> keras.Model:
    """Returns a copy of a model in which an input passes through a layer first.

    Args:
        model: A Sequential or functional model. It is not changed.
        position: The position of the input in `model.inputs`.
        layer: The layer. Its output has the shape of its input.
    """
    copy = copy_model(model)
    graph = trace_nested(copy)
    forget_calls(graph)
    return _connected(graph, copy, lambda layer: layer, {position: layer})


def _connected(
    graph: Graph,
    source: keras.Model,
    layer_for: Callable[[Any], Any],
    first: Mapping[int, keras.layers.Layer] | None = None,
) -> keras.Model:
    """Returns a model of the same kinds and names as a model and its nested models.

    Args:
        graph: The graph of the model, with nested models kept (`trace_nested`).
        source: The model.
        layer_for: `layer_for(layer)` returns the layer to call in place of a layer.
        first: New layers that inputs of the model pass through first, by the positions of the
            inputs.
    """
    nested: dict[int, keras.Model] = {}

    def replacement(node: Node) -> Any:
        if node.subgraph is None:
            return layer_for(node.layer)
        if id(node.layer) not in nested:
            nested[id(node.layer)] = connected(node.subgraph, node.layer, {})
        return nested[id(node.layer)]

    def connected(
        graph: Graph, source: keras.Model, first: Mapping[int, keras.layers.Layer]
    ) -> keras.Model:
        inputs = new_inputs(graph)
        if isinstance(source, keras.Sequential):
            # Operations in the graph of a Sequential model compute masks. Its layers add them again.
            nodes = [node for node in graph.nodes if isinstance(node.layer, keras.layers.Layer)]
            called = [*first.values(), *map(replacement, nodes)]
            model = keras.Sequential([*inputs, *called], name=source.name)
        else:
            values = dict(zip(graph.inputs, inputs))
            for position, layer in first.items():
                tensor = graph.inputs[position]
                values[tensor] = layer(values[tensor])
            outputs = replay(graph, values, lambda node, args, kw: replacement(node)(*args, **kw))
            model = keras.Model(structured(graph, inputs), single(outputs), name=source.name)
        if not source.trainable:
            model.trainable = False
        return model

    return connected(graph, source, first or {})


@deep_graphs()
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
            # The public attribute would freeze the layers inside, which have their own by now.
            nested[id(node.layer)]._trainable = node.layer.trainable
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
