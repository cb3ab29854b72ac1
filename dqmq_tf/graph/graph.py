"""The graph of a Keras model as data: which layer is called on which tensors, in order.

`trace` reads a model's public config, so nothing private of Keras is touched, and returns a
`Graph` in which nested models are kept; `Graph.inline` puts their layers in their stead, which is
the view that quantization and export work on. `replay` runs a graph again with other layers or
on other values.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from dqmq_tf.graph.fold_rules import folds_into, is_foldable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One call of one layer.

    Attributes:
        path: Path of the layer, such as `"conv2d"` or `"backbone/conv2d"`.
        call: 0 for the first call of this layer in its own model, 1 for the next (shared layers).
        layer: The `keras.Layer` or `keras.Operation`.
        inputs: Ids of the tensors that the call takes, in order of appearance.
        outputs: Ids of the tensors that it returns.
        arguments: `arguments(values)` gives `(args, kwargs)` with each tensor id looked up.
        subgraph: The graph of a nested model, else None.
    """

    path: str
    call: int
    layer: Any
    inputs: tuple
    outputs: tuple
    arguments: Callable
    subgraph: "Graph | None" = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """Calls in execution order, between input and output tensors named by integer ids.

    Attributes:
        nodes: The calls.
        inputs, outputs: Tensor ids, flat.
        input_structure, output_structure: The same ids in the model's own structure.
        shapes, dtypes: By tensor id; shapes have None for the batch.
        input_names: Names of the model's inputs, in the order of `inputs`.
    """

    nodes: tuple
    inputs: tuple
    outputs: tuple
    input_structure: Any
    output_structure: Any
    shapes: dict
    dtypes: dict
    input_names: tuple

    @property
    def consumers(self):
        """`{tensor id: [nodes that take it]}`."""
        found = {}
        for node in self.nodes:
            for tensor in dict.fromkeys(node.inputs):
                found.setdefault(tensor, []).append(node)
        return found

    @property
    def producers(self):
        """`{tensor id: node that returns it}`."""
        return {tensor: node for node in self.nodes for tensor in node.outputs}

    @property
    def folds(self):
        """`{path of a batch norm or rescaling: path of the linear layer that it folds into}`."""
        consumers, producers, found = self.consumers, self.producers, {}
        for node in self.nodes:
            if isinstance(node.layer, (keras.layers.BatchNormalization, keras.layers.Rescaling)):
                source = producers.get(node.inputs[0])
                alone = len(consumers[node.inputs[0]]) == 1 and node.inputs[0] not in self.outputs
                if source and alone and is_foldable(source.layer):
                    rank = len(self.shapes[node.inputs[0]])
                    if folds_into(node.layer, source.layer, rank):
                        found[node.path] = source.path
        # A layer or a batch norm that is called more than once folds only if all calls agree.
        calls = self.calls
        return {bn: path for bn, path in found.items() if calls[bn] == calls[path] == 1}

    @property
    def calls(self):
        """`{path: how often its layer is called}`."""
        return collections.Counter(node.path for node in self.nodes)


def inline(graph):
    """Returns `graph` with each nested model replaced by its layers, recursively."""
    nodes, shapes, dtypes = [], {}, {}
    counter = iter(range(10**9))

    def run(part, values):
        for node in part.nodes:
            if node.subgraph is not None:
                inner = dict(zip(node.subgraph.inputs, (values[t] for t in node.inputs)))
                run(node.subgraph, inner)
                for outer, result in zip(node.outputs, node.subgraph.outputs):
                    values[outer] = inner[result]
                continue
            for tensor in node.outputs:
                values[tensor] = fresh(part, tensor)
            nodes.append(
                dataclasses.replace(
                    node,
                    inputs=tuple(values[t] for t in node.inputs),
                    outputs=tuple(values[t] for t in node.outputs),
                    arguments=_Renamed(node.arguments, {t: values[t] for t in node.inputs}),
                )
            )

    def fresh(part, tensor):
        number = next(counter)
        shapes[number], dtypes[number] = part.shapes[tensor], part.dtypes[tensor]
        return number

    values = {tensor: fresh(graph, tensor) for tensor in graph.inputs}
    run(graph, values)
    return Graph(
        nodes=tuple(nodes),
        inputs=tuple(values[t] for t in graph.inputs),
        outputs=tuple(values[t] for t in graph.outputs),
        input_structure=keras.tree.map_structure(lambda t: values[t], graph.input_structure),
        output_structure=keras.tree.map_structure(lambda t: values[t], graph.output_structure),
        shapes=shapes,
        dtypes=dtypes,
        input_names=graph.input_names,
    )


def replay(graph, values, call):
    """Runs a graph: `call(node, args, kwargs)` returns the outputs of a node.

    Args:
        graph: A `Graph`.
        values: `{tensor id: value}` with the inputs' values; completed in place.
        call: What is done at each node.

    Returns:
        The outputs' values in the graph's output structure.
    """
    for node in graph.nodes:
        args, kwargs = node.arguments(values)
        results = keras.tree.flatten(call(node, args, kwargs))
        values.update(zip(node.outputs, results))
    return keras.tree.map_structure(lambda tensor: values[tensor], graph.output_structure)


@dataclasses.dataclass(frozen=True)
class _Renamed:
    inner: Callable
    names: dict

    def __call__(self, values):
        return self.inner({old: values[new] for old, new in self.names.items()})
