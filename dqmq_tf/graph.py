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

from dqmq_tf.folds import folds_into, is_foldable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """One call of one layer.

    Attributes:
        site: Path of the layer, such as `"conv2d"` or `"backbone/conv2d"`.
        call: 0 for the first call of this layer in its own model, 1 for the next (shared layers).
        layer: The `keras.Layer` or `keras.Operation`.
        inputs: Ids of the tensors that the call takes, in order of appearance.
        outputs: Ids of the tensors that it returns.
        arguments: `arguments(values)` gives `(args, kwargs)` with each tensor id looked up.
        subgraph: The graph of a nested model, else None.
    """

    site: str
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
        """`{site of a batch norm or rescaling: site of the linear layer that it folds into}`."""
        consumers, producers, found = self.consumers, self.producers, {}
        for node in self.nodes:
            if isinstance(node.layer, (keras.layers.BatchNormalization, keras.layers.Rescaling)):
                source = producers.get(node.inputs[0])
                alone = len(consumers[node.inputs[0]]) == 1 and node.inputs[0] not in self.outputs
                if source and alone and is_foldable(source.layer):
                    rank = len(self.shapes[node.inputs[0]])
                    if folds_into(node.layer, source.layer, rank):
                        found[node.site] = source.site
        # A layer or a batch norm that is called more than once folds only if all calls agree.
        calls = self.calls
        return {bn: site for bn, site in found.items() if calls[bn] == calls[site] == 1}

    @property
    def calls(self):
        """`{site: how often its layer is called}`."""
        return collections.Counter(node.site for node in self.nodes)


def variable_names(layer):
    """Returns `{name: variable}` of a layer's weights, named by their path inside the layer.

    Most are `"kernel"` or `"bias"`; a layer made of layers has `"query/kernel"` and the like.
    """
    named = {}
    for variable in layer.weights:
        parts = variable.path.split("/")
        if layer.name in parts[:-1]:
            parts = parts[len(parts) - 1 - parts[-2::-1].index(layer.name) :]
        name = "/".join(parts)
        while name in named:
            name += "_"
        named[name] = variable
    return named


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


def trace(model):
    """Returns the inlined `Graph` of a built Sequential or functional model.

    Args:
        model: A Keras 3 Sequential or functional model, nested models and shared layers included.

    Returns:
        A `Graph` without subgraphs, in execution order.

    Raises:
        ValueError: If the model is subclassed, not built, or not made of Keras 3 layers.

    Example:

    >>> graph = dqmq_tf.graph.trace(model)
    >>> [node.site for node in graph.nodes]
    """
    return inline(trace_nested(model))


def trace_nested(model, prefix=""):
    """Returns the `Graph` of a model with nested models kept as nodes with a `subgraph`."""
    functional = _functional(model)
    config = functional.get_config()
    operations = {operation.name: operation for operation in functional.operations}
    inputs = [entry["name"] for entry in config["layers"] if not entry["inbound_nodes"]]
    ids, shapes, dtypes, specs = {}, {}, {}, {}

    def define(key, spec):
        ids[key] = len(ids)
        specs[key] = spec
        shapes[ids[key]] = tuple(spec.shape)
        dtypes[ids[key]] = keras.backend.standardize_dtype(spec.dtype)
        return ids[key]

    for name in inputs:
        define((name, 0, 0), operations[name].output)
    pending, subgraphs, nodes = [], {}, []
    for entry in config["layers"]:
        name = entry["name"]
        if entry["inbound_nodes"] and _is_model(operations[name]):
            subgraphs[name] = trace_nested(operations[name], prefix=f"{prefix}{name}/")
        for call, data in enumerate(entry["inbound_nodes"]):
            taken = []
            arguments = (_decode(data["args"], taken), _decode(data["kwargs"], taken))
            pending.append((name, call, arguments, taken))
    while pending:
        waiting = []
        for name, call, arguments, taken in pending:
            if any(reference.key not in ids for reference in taken):
                waiting.append((name, call, arguments, taken))
                continue
            args, kwargs = _fill(arguments, specs)
            results = _results(operations[name], args, kwargs)
            nodes.append(
                Node(
                    site=prefix + name,
                    call=call,
                    layer=operations[name],
                    inputs=tuple(ids[reference.key] for reference in taken),
                    outputs=tuple(define((name, call, i), r) for i, r in enumerate(results)),
                    arguments=_Arguments(arguments, ids),
                    subgraph=subgraphs.get(name),
                )
            )
        if len(waiting) == len(pending):
            raise ValueError(
                f"The calls of model {model.name!r} cannot be put in order: "
                f"{sorted({item[0] for item in pending})} wait for each other."
            )
        pending = waiting

    def resolve(key):
        name, call, index = key
        # Keras counts the calls of a nested functional model from 1 in this part of the config.
        shift = name in subgraphs and not isinstance(operations[name], keras.Sequential)
        return ids[(name, call - shift, index)]

    names = {number: key[0] for key, number in ids.items()}
    input_structure = _map_keys(config["input_layers"], resolve)
    output_structure = _map_keys(config["output_layers"], resolve)
    return Graph(
        nodes=tuple(nodes),
        inputs=tuple(keras.tree.flatten(input_structure)),
        outputs=tuple(keras.tree.flatten(output_structure)),
        input_structure=input_structure,
        output_structure=output_structure,
        shapes=shapes,
        dtypes=dtypes,
        input_names=tuple(names[t] for t in keras.tree.flatten(input_structure)),
    )


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


def _results(operation, args, kwargs):
    """What a call returns, as KerasTensors."""
    results = keras.tree.flatten(operation.compute_output_spec(*args, **kwargs))
    if not isinstance(operation, keras.layers.EinsumDense):
        return results
    # An `output_shape` of None says nothing of a size that the input has.
    (result,), kernel = results, keras.KerasTensor(operation.kernel.shape)
    exact = keras.ops.einsum(operation.equation, *keras.tree.flatten((args, kwargs))[:1], kernel)
    return [keras.KerasTensor(exact.shape, dtype=result.dtype)]


@dataclasses.dataclass(frozen=True)
class _Reference:
    key: tuple


@dataclasses.dataclass(frozen=True)
class _Arguments:
    arguments: tuple
    ids: dict

    def __call__(self, values):
        return _fill(self.arguments, {key: values[i] for key, i in self.ids.items() if i in values})


@dataclasses.dataclass(frozen=True)
class _Renamed:
    inner: Callable
    names: dict

    def __call__(self, values):
        return self.inner({old: values[new] for old, new in self.names.items()})


def _fill(arguments, values):
    """`(args, kwargs)` with each reference replaced by its value."""

    def fill(value):
        if isinstance(value, _Reference):
            return values[value.key]
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(fill(item) for item in value)
        return value

    args, kwargs = arguments
    return tuple(fill(args)), fill(kwargs)


def _decode(value, taken):
    """Serialized call arguments with tensors as `_Reference`s, which are also listed in `taken`."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            reference = _Reference(tuple(value["config"]["keras_history"]))
            taken.append(reference)
            return reference
        if value.get("class_name") == "__tuple__":
            return tuple(_decode(item, taken) for item in value["config"]["value"])
        if "class_name" in value and "config" in value:
            return keras.saving.deserialize_keras_object(value)
        return {key: _decode(item, taken) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_decode(item, taken) for item in value)
    return value


def _map_keys(value, function):
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        return function(value)
    if isinstance(value, dict):
        return {key: _map_keys(item, function) for key, item in value.items()}
    return [_map_keys(item, function) for item in value]


def _is_model(operation):
    # A subclassed model inside a graph is a layer like any other: it has no graph of its own.
    return isinstance(operation, keras.Model) and bool(getattr(operation, "inputs", None))


def _functional(model):
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"Expected a Keras 3 model, found {type(model).__module__}.{type(model).__name__}. "
            "Models of tf_keras or TFMOT have to be rebuilt with Keras 3 layers (import keras)."
        )
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            f"Sequential model {model.name!r} has no input shape yet: give it a keras.Input first, "
            "or call model.build(input_shape)."
        )
    try:
        inputs, outputs = model.inputs, model.outputs
    except AttributeError:
        inputs = None
    if not inputs:
        raise ValueError(
            f"Model {model.name!r} is subclassed ({type(model).__name__}): its layers cannot be "
            "seen. Build it as keras.Sequential or with the functional API, "
            "keras.Model(inputs, outputs)."
        )
    structure = model.input if not isinstance(model, keras.Sequential) else inputs[0]
    result = model.output if not isinstance(model, keras.Sequential) else outputs[0]
    return keras.Model(structure, result, name=model.name)
