"""The graph of a Keras model as data: which layer is called on which tensors, in which order.

`trace` (in `from_keras`) reads a model into a `Graph`. `inline` replaces nested models by their
layers, which is the view that quantization and export work on. `replay` runs a graph again with
other layers or on other values.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import keras

from dqmq_tf.graph.aliases import find_aliases
from dqmq_tf.graph.fold_rules import folds_into, is_foldable
from dqmq_tf.graph.plain_classes import plain_class

CallArguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One call of one layer.

    Attributes:
        path: The path of the layer, such as `"conv2d"` or `"backbone/conv2d"`.
        call: 0 for the first call of this layer in its own model, 1 for the next (shared layers).
        layer: The `keras.layers.Layer` or `keras.Operation`.
        inputs: The ids of the tensors that the call takes, in order of appearance.
        outputs: The ids of the tensors that it returns.
        arguments: `arguments(values)` returns `(args, kwargs)` with each tensor id looked up in
            `values`.
        subgraph: The graph of a nested model. None for a layer.
    """

    path: str
    call: int
    layer: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    arguments: Callable[[Mapping[int, Any]], CallArguments]
    subgraph: "Graph | None" = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """Calls in execution order, between input and output tensors named by integer ids.

    Attributes:
        nodes: The calls.
        inputs, outputs: Tensor ids, flat.
        input_structure, output_structure: The same ids in the structure that the model has.
        shapes, dtypes: By tensor id. Shapes have None for the batch.
        input_names: The names of the model's inputs, in the order of `inputs`.
        functions_share_scales: Whether functions such as `keras.ops.split` share the scale of their
            input, as the layers that do the same. False for a model that was saved by an earlier
            version, whose functions have quantizers of their own.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_structure: Any
    output_structure: Any
    shapes: dict[int, tuple[int | None, ...]]
    dtypes: dict[int, str]
    input_names: tuple[str, ...]
    functions_share_scales: bool = True

    @functools.cached_property
    def consumers(self) -> dict[int, list[Node]]:
        """`{tensor id: [nodes that take it]}`."""
        consumers: dict[int, list[Node]] = {}
        for node in self.nodes:
            for tensor in dict.fromkeys(node.inputs):
                consumers.setdefault(tensor, []).append(node)
        return consumers

    @functools.cached_property
    def producers(self) -> dict[int, Node]:
        """`{tensor id: node that returns it}`."""
        return {tensor: node for node in self.nodes for tensor in node.outputs}

    def only_reader(self, tensor: int) -> Node | None:
        """Returns the node that takes a tensor. None if more nodes do, or if it is an output."""
        readers = self.consumers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    @functools.cached_property
    def folds(self) -> dict[str, str]:
        """`{path of a batch norm or rescaling: path of the linear layer that it folds into}`."""
        folds = {}
        for node in self.nodes:
            kind = plain_class(node.layer)
            if kind not in (keras.layers.BatchNormalization, keras.layers.Rescaling):
                continue
            tensor = node.inputs[0]
            source = self.producers.get(tensor)
            if source and self.only_reader(tensor) and is_foldable(source.layer):
                if folds_into(node.layer, source.layer, len(self.shapes[tensor])):
                    folds[node.path] = source.path
        # With several calls, one kernel would have to take in several maps.
        return {
            path: linear
            for path, linear in folds.items()
            if self.calls[path] == self.calls[linear] == 1
        }

    @functools.cached_property
    def aliases(self) -> dict[int, int]:
        """`{tensor: first tensor with the same values at inference}`; see `find_aliases`."""
        return find_aliases(self)

    @functools.cached_property
    def calls(self) -> collections.Counter[str]:
        """`{path: number of calls of its layer}`."""
        return collections.Counter(node.path for node in self.nodes)


def inline(graph: Graph) -> Graph:
    """Returns `graph` with each nested model replaced by its layers, recursively.

    Layers of a nested model that compute only what the whole model does not use are left out.
    """
    nodes: list[Node] = []
    shapes: dict[int, tuple[int | None, ...]] = {}
    dtypes: dict[int, str] = {}
    new_ids = itertools.count()

    def copy_tensor(part: Graph, tensor: int) -> int:
        new = next(new_ids)
        shapes[new], dtypes[new] = part.shapes[tensor], part.dtypes[tensor]
        return new

    def copy_nodes(part: Graph, ids: dict[int, int]) -> None:
        for node in part.nodes:
            if node.subgraph is not None:
                inner = dict(zip(node.subgraph.inputs, (ids[t] for t in node.inputs)))
                copy_nodes(node.subgraph, inner)
                for tensor, result in zip(node.outputs, node.subgraph.outputs):
                    ids[tensor] = inner[result]
                continue
            for tensor in node.outputs:
                ids[tensor] = copy_tensor(part, tensor)
            nodes.append(
                dataclasses.replace(
                    node,
                    inputs=tuple(ids[t] for t in node.inputs),
                    outputs=tuple(ids[t] for t in node.outputs),
                    arguments=_Renamed(node.arguments, {t: ids[t] for t in node.inputs}),
                )
            )

    ids = {tensor: copy_tensor(graph, tensor) for tensor in graph.inputs}
    copy_nodes(graph, ids)
    return Graph(
        nodes=_needed(nodes, [ids[t] for t in graph.outputs]),
        inputs=tuple(ids[t] for t in graph.inputs),
        outputs=tuple(ids[t] for t in graph.outputs),
        input_structure=keras.tree.map_structure(lambda t: ids[t], graph.input_structure),
        output_structure=keras.tree.map_structure(lambda t: ids[t], graph.output_structure),
        shapes=shapes,
        dtypes=dtypes,
        input_names=graph.input_names,
    )


def replay(
    graph: Graph,
    values: MutableMapping[int, Any],
    call: Callable[[Node, tuple[Any, ...], dict[str, Any]], Any],
) -> Any:
    """Runs a graph.

    Args:
        graph: A `Graph`.
        values: `{tensor id: value}` of the inputs. The values of all other tensors are added.
        call: `call(node, args, kwargs)` returns the outputs of a node.

    Returns:
        The values of the outputs, in the graph's output structure.
    """
    for node in graph.nodes:
        args, kwargs = node.arguments(values)
        results = keras.tree.flatten(call(node, args, kwargs))
        values.update(zip(node.outputs, results))
    return keras.tree.map_structure(lambda tensor: values[tensor], graph.output_structure)


def _needed(nodes: Sequence[Node], outputs: Iterable[int]) -> tuple[Node, ...]:
    """Returns the nodes that outputs depend on."""
    read, needed = {*outputs}, []
    for node in reversed(nodes):
        if read.intersection(node.outputs):
            read.update(node.inputs)
            needed.append(node)
    return tuple(reversed(needed))


@dataclasses.dataclass(frozen=True)
class _Renamed:
    """Arguments of a node whose tensors have new ids."""

    arguments: Callable[[Mapping[int, Any]], CallArguments]
    new_ids: dict[int, int]

    def __call__(self, values: Mapping[int, Any]) -> CallArguments:
        return self.arguments({old: values[new] for old, new in self.new_ids.items()})
