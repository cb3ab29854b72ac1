"""Unfolds layers of the user's own into the layers that they call, which get integer kernels each.

A model says which layers it calls, but not what a class of the user's own does inside. Its `call`
says so when it gets symbolic tensors: the layers and functions that it calls then form a model, which
takes the place of the layer and has its name. A block of convolutions that is written as a class
is quantized as the same block written with the functional API.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

from dqmq_tf.config import DQMQConfig
from dqmq_tf.graph.cloning import layers_inside
from dqmq_tf.graph.deep_graphs import deep_graphs
from dqmq_tf.graph.from_keras import trace_nested
from dqmq_tf.graph.graph import Graph, Node, inline
from dqmq_tf.graph.kernels import kernel_variables, variable_names
from dqmq_tf.graph.overrides import overridden
from dqmq_tf.graph.rebuild import copy_model, rebuild
from dqmq_tf.graph.splitting import Part, has_masks, makes_mask
from dqmq_tf.graph.symbolic_calls import (
    in_full,
    model_of_call,
    shared_layers,
    tensors_of,
    without_training,
)


@deep_graphs()
def unfold_layers(
    model: keras.Model, config: DQMQConfig
) -> tuple[keras.Model, dict[str, tuple[Part, ...]]]:
    """Returns a model in which layers made of layers and functions are models inside the model.

    A layer stays as it is

    - if it has no layers inside, or uses variables beside those of the layers inside,
    - if its `call` does not accept symbolic tensors, as with functions of TensorFlow,
    - if it does other things in training than its layers do,
    - if a layer inside is also inside of another layer,
    - if the model has masks, or if the layer has quantizers of the user's own.

    Args:
        model: A built Sequential or functional model. It is not changed.
        config: The configuration, for its rules.

    Returns:
        The model, which is a copy if a layer was unfolded, and `{path: (Part, ...)}` of the layers
        that were, by their path in `model`.

    Raises:
        ValueError: If the model is subclassed or not of Keras 3.

    Example:

    >>> class Block(keras.layers.Layer):
    ...     def __init__(self, **kwargs):
    ...         super().__init__(**kwargs)
    ...         self.conv = keras.layers.Conv2D(8, 3, name="conv")
    ...     def call(self, x):
    ...         return keras.activations.relu(self.conv(x))
    >>> model = keras.Sequential([keras.Input((32, 32, 3)), Block(name="block")])
    >>> unfolded, parts = unfold_layers(model, dqmq_tf.DQMQConfig())
    >>> [part.path for part in parts["block"]]
    ['block/conv']
    """
    graph = trace_nested(model)
    layers = {id(node.layer): node for _, node in _calls_in(graph)}
    if not any(_may_unfold(n.layer) for n in layers.values()) or has_masks(inline(graph)):
        return model, {}
    kernels = {node.path: kernel_variables(node.layer) for node in layers.values()}
    tried: set[int] = set()
    unfolded = model
    with _left_as_found([node.layer for node in layers.values()]):
        while models := _models(graph, config, tried):
            unfolded = rebuild(graph, model.name, functools.partial(_call, models))
            graph = trace_nested(unfolded)
        if unfolded is model:
            return model, {}
        leaves = [
            (node.path, variable_names(node.layer))
            for node in inline(graph).nodes
            if isinstance(node.layer, keras.layers.Layer)
        ]
        copy = copy_model(unfolded)
    parts = {path: tuple(_parts(path, own, leaves)) for path, own in kernels.items()}
    return copy, {path: own for path, own in parts.items() if own}


@deep_graphs()
def functional_form(model: Any, config: DQMQConfig) -> tuple[Any, dict[str, tuple[Part, ...]]]:
    """Returns a functional copy of a subclassed model whose `call` is made of layers and functions.

    Args:
        model: A model. It is not changed. A subclassed one has one input, in floating point: a
            model that was called does not say which type it got.
        config: The configuration, for its rules.

    Returns:
        The copy, and the parts of its layers as of `unfold_layers`. The model itself and no parts if
        it is not subclassed, or if its `call` does something else.

    Raises:
        ValueError: If a subclassed model has not been called yet.
    """
    is_subclassed = isinstance(model, keras.Model) and not isinstance(model, keras.Sequential)
    if not is_subclassed or getattr(model, "inputs", None):
        return model, {}
    if not model.built:
        raise ValueError(
            f"Model {model.name!r} is subclassed ({type(model).__name__}) and was not called yet, so "
            "the shape of its inputs is not known. Call it on a batch of data before quantize_model."
        )
    shape = (model.get_build_config() or {}).get("input_shape")
    if not isinstance(shape, (list, tuple)) or any(isinstance(n, (list, tuple)) for n in shape):
        return model, {}
    with _left_as_found([model]):
        inputs = keras.Input(tuple(shape[1:]), name=f"{model.name}_input")
        graph = trace_nested(keras.Model(inputs, model(inputs)))
        called = model_of_call(graph, graph.nodes[-1])
        if called is None:
            return model, {}
        unfolded, parts = unfold_layers(called, config)
        return (copy_model(called) if unfolded is called else unfolded), parts


def _call(
    models: Mapping[int, keras.Model], node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Calls a layer, or the model that takes its place."""
    model = models.get(id(node.layer))
    if model is None:
        return node.layer(*args, **kwargs)
    return model(tensors_of((args, kwargs)))


def _calls_in(graph: Graph) -> Iterator[tuple[Graph, Node]]:
    """Yields the calls of all layers in a graph and its nested models, each with its own graph."""
    for node in graph.nodes:
        if node.subgraph is None:
            yield graph, node
        else:
            yield from _calls_in(node.subgraph)


def _parts(
    path: str, kernels: dict[str, Any], leaves: Iterable[tuple[str, dict[str, Any]]]
) -> Iterator[Part]:
    """Yields the layers that a layer was unfolded into.

    Args:
        path: The path of the layer.
        kernels: `{name: variable}` of its kernels.
        leaves: `(path, {name: variable})` of all layers now.
    """
    names = {id(variable): name for name, variable in kernels.items()}
    for leaf, variables in leaves:
        if leaf.startswith(f"{path}/"):
            own = {names[id(v)]: name for name, v in variables.items() if id(v) in names}
            yield Part(path=leaf, kernels=own)


def _may_unfold(layer: Any) -> bool:
    """Whether a layer has a `call` of the user's own, layers inside, and no mask or loss beside."""
    if not isinstance(layer, keras.layers.Layer) or not overridden(layer, ("call",)):
        return False
    inner = layers_inside(layer)[1:]
    return bool(inner) and layer.activity_regularizer is None and not any(map(makes_mask, inner))


def _models(graph: Graph, config: DQMQConfig, tried: set[int]) -> dict[int, keras.Model]:
    """Returns `{id of a layer: the model that takes its place}`.

    Args:
        graph: The graph of a model.
        config: The configuration.
        tried: The ids of layers that were looked at before. Those of this graph are added.
    """
    calls: dict[int, list[tuple[Graph, Node]]] = {}
    nodes = list(_calls_in(graph))
    whole = tried | shared_layers(node.layer for _, node in nodes)
    for part, node in nodes:
        if id(node.layer) not in whole and _may_unfold(node.layer):
            calls.setdefault(id(node.layer), []).append((part, node))
    tried.update(calls)
    models = {}
    for key, layer_calls in calls.items():
        rule = config.rule_for(layer_calls[0][1].path)
        if len({_signature(*call) for call in layer_calls}) > 1 or rule.user_quantizers is not None:
            continue
        model = model_of_call(*layer_calls[0])
        if model is not None:
            models[key] = model
    return models


def _signature(graph: Graph, node: Node) -> str:
    """Returns what two calls of a layer have in common if one model can take the place of both."""
    tensors = dict.fromkeys(node.inputs)
    specs = {t: (i, graph.shapes[t], graph.dtypes[t]) for i, t in enumerate(tensors)}
    return in_full(without_training(node.arguments(specs)))


@contextlib.contextmanager
def _left_as_found(layers: Iterable[Any]) -> Iterator[None]:
    """Takes back what calls of layers, and of those inside, change in the layers."""
    found = {id(x): x for layer in layers for x in (layers_inside(layer) or [layer])}.values()
    states = [(x, x.name, len(x._inbound_nodes), len(x._outbound_nodes)) for x in found]
    try:
        yield
    finally:
        for layer, name, inbound, outbound in states:
            layer.name = name
            del layer._inbound_nodes[inbound:], layer._outbound_nodes[outbound:]
