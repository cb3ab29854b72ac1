"""Copies a model for inputs of another size."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from dqmq_tf.graph.from_keras import trace_nested
from dqmq_tf.graph.graph import Graph, Node, replay
from dqmq_tf.graph.kernels import einsum_terms
from dqmq_tf.graph.rebuild import connect_again, copy_model, forget_calls

Shape = tuple[int | None, ...]


def with_input_shapes(model: keras.Model, shapes: Sequence[Shape]) -> keras.Model:
    """Returns a copy of a model for inputs of other shapes.

    Args:
        model: A Sequential or functional model. It is not changed.
        shapes: The shape of each input, with the batch axis.

    Raises:
        ValueError: If a layer does not accept the shape that it would get.
    """
    copy = copy_model(model)
    graph = _resized(trace_nested(copy), shapes)
    forget_calls(graph)
    return connect_again(graph, copy)


def _resized(graph: Graph, shapes: Sequence[Shape]) -> Graph:
    """Returns a graph with inputs of other shapes, in its nested models as well."""
    values: dict[int, Any] = {
        tensor: keras.KerasTensor(shape, dtype=graph.dtypes[tensor])
        for tensor, shape in zip(graph.inputs, shapes)
    }
    resized: dict[int, Graph] = {}
    layers: dict[int, Any] = {}

    def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.subgraph is not None:
            if id(node.layer) not in resized:
                inner = _resized(node.subgraph, [values[tensor].shape for tensor in node.inputs])
                resized[id(node.layer)] = inner
            inner = resized[id(node.layer)]
            return [keras.KerasTensor(inner.shapes[t], inner.dtypes[t]) for t in inner.outputs]
        layer = layers.setdefault(id(node.layer), _without_shape(node.layer))
        return layer.compute_output_spec(*args, **kwargs)

    replay(graph, values, call)
    return dataclasses.replace(
        graph,
        nodes=tuple(
            dataclasses.replace(
                node,
                layer=layers.get(id(node.layer), node.layer),
                subgraph=resized.get(id(node.layer), node.subgraph),
            )
            for node in graph.nodes
        ),
        shapes={tensor: tuple(value.shape) for tensor, value in values.items()},
    )


def _without_shape(layer: Any) -> Any:
    """Returns a layer that does not remember the shape that it was built for.

    Args:
        layer: A layer of a copied model. An `EinsumDense` layer is changed in place.
    """
    if isinstance(layer, keras.layers.EinsumDense):
        # Such as the length of a sequence. None stands for the size that the input has.
        inputs, _, outputs = einsum_terms(layer.equation)
        sizes = zip(reversed(outputs.replace("...", "")), reversed(layer.partial_output_shape))
        layer.partial_output_shape = tuple(
            None if letter in inputs else size for letter, size in sizes
        )[::-1]
    if isinstance(layer, keras.layers.Reshape):
        return type(layer).from_config(layer.get_config())
    return layer
