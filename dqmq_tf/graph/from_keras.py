"""Reads a Keras model into a `Graph`, through its public config alone."""

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import keras

from dqmq_tf.graph.cloning import lambdas_allowed
from dqmq_tf.graph.deep_graphs import deep_graphs
from dqmq_tf.graph.graph import CallArguments, Graph, Node, inline
from dqmq_tf.graph.inference_shapes import InferenceShapes
from dqmq_tf.graph.overrides import overridden

# `(name of the operation, number of the call, number of the output)` of a tensor, as in a config.
_Key = tuple[str, int, int]


def trace(model: keras.Model) -> Graph:
    """Returns the inlined `Graph` of a built Sequential or functional model.

    Args:
        model: A Keras 3 Sequential or functional model. Nested models and shared layers are
            allowed.

    Returns:
        A `Graph` without subgraphs, in execution order.

    Raises:
        ValueError: If the model is subclassed, not built, or not made of Keras 3 layers, or if it
            or a model inside overrides `call`.

    Example:

    >>> graph = dqmq_tf.graph.trace(model)
    >>> [node.path for node in graph.nodes]
    """
    return inline(trace_nested(model))


def trace_nested(model: keras.Model) -> Graph:
    """Returns the `Graph` of a model with nested models kept as nodes with a `subgraph`.

    Args:
        model: See `trace`.
    """
    return _traced(model, "", InferenceShapes())


def _traced(model: keras.Model, prefix: str, inference: InferenceShapes) -> Graph:
    """Returns the `Graph` of a model.

    Args:
        model: See `trace`.
        prefix: The beginning of each path, such as `"backbone/"`.
        inference: Infers the shapes.
    """
    functional = _functional(model)
    operations = {operation.name: operation for operation in functional.operations}
    config, is_own = _config(functional)
    ids: dict[_Key, int] = {}
    shapes: dict[int, tuple[int | None, ...]] = {}
    dtypes: dict[int, str] = {}
    specs: dict[_Key, Any] = {}

    def define(key: _Key, spec: Any) -> int:
        tensor = ids[key] = len(ids)
        specs[key] = spec
        shapes[tensor] = tuple(spec.shape)
        dtypes[tensor] = keras.backend.standardize_dtype(spec.dtype)
        return tensor

    calls, subgraphs = [], {}
    for entry in config["layers"]:
        name = entry["name"]
        if not entry["inbound_nodes"]:
            define((name, 0, 0), operations[name].output)
        elif _is_model(operations[name]):
            subgraphs[name] = _traced(operations[name], f"{prefix}{name}/", inference)
        for i, data in enumerate(entry["inbound_nodes"]):
            kwargs = _taken(operations[name], data["kwargs"])
            calls.append(_Call.decoded(name, i, {**data, "kwargs": kwargs}))
    nodes: list[Node] = []
    while calls:
        waiting = []
        for call in calls:
            if any(key not in ids for key in call.inputs):
                waiting.append(call)
                continue
            arguments = _fill(call.arguments, specs)
            results = inference.results(operations[call.name], prefix + call.name, *arguments)
            outputs = tuple(define((call.name, call.number, i), r) for i, r in enumerate(results))
            nodes.append(
                Node(
                    path=prefix + call.name,
                    call=call.number,
                    layer=operations[call.name],
                    inputs=tuple(ids[key] for key in call.inputs),
                    outputs=outputs,
                    arguments=_Arguments(call.arguments, ids),
                    subgraph=subgraphs.get(call.name),
                )
            )
        if len(waiting) == len(calls):
            raise ValueError(
                f"The calls of model {model.name!r} cannot be put in order: the layers "
                f"{sorted({call.name for call in calls})} wait for each other's outputs. Build the "
                "model again with the functional API, keras.Model(inputs, outputs)."
            )
        calls = waiting

    def tensor_of(key: _Key) -> int:
        name, call, index = key
        # Keras counts the calls of a nested functional model from 1 in this part of its config.
        shift = is_own and name in subgraphs and not isinstance(operations[name], keras.Sequential)
        return ids[(name, call - shift, index)]

    names = {tensor: name for (name, _, _), tensor in ids.items()}
    input_structure = _map_keys(config["input_layers"], tensor_of)
    output_structure = _map_keys(config["output_layers"], tensor_of)
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


def _config(functional: keras.Model) -> tuple[dict[str, Any], bool]:
    """Returns the config of a model, and whether its layers have a config.

    A layer of the user's own may have none, and a lambda may hold what cannot be serialized. As only
    the calls matter here, such layers are replaced by stand-ins.
    """
    with lambdas_allowed():
        try:
            return functional.get_config(), True
        except Exception:
            # The clone would name its inputs by the tensors.
            inputs = keras.tree.map_structure(
                lambda x: keras.Input(
                    batch_shape=x.shape, dtype=x.dtype, name=x._keras_history.operation.name
                ),
                functional.input,
            )
            stand_ins = keras.models.clone_model(
                functional, input_tensors=inputs, clone_function=_StandIn
            )
            return stand_ins.get_config(), False


def takes_mode(layer: keras.layers.Layer) -> bool:
    """Returns whether the `call` of a layer takes the mode of training."""
    return "training" in inspect.signature(layer.call).parameters


def _taken(operation: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns arguments of a call without the mode of training, if the layer does not take it.

    Keras allows it in any call.
    """
    if not isinstance(operation, keras.layers.Layer) or takes_mode(operation):
        return kwargs
    return {key: value for key, value in kwargs.items() if key != "training"}


class _StandIn(keras.Operation):
    """Takes the place of a layer: it has its name and its outputs, and a config."""

    def __init__(self, layer: Any) -> None:
        super().__init__(name=layer.name)
        self._layer = layer

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self._layer.compute_output_spec(*args, **_taken(self._layer, kwargs))

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


@dataclasses.dataclass(frozen=True)
class _Reference:
    """Stands for a tensor among the arguments of a call."""

    key: _Key


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call as the config describes it.

    Attributes:
        name: The name of the operation.
        number: The number of the call.
        arguments: `(args, kwargs)` with `_Reference`s in place of tensors.
        inputs: The keys of these tensors, in order of appearance.
    """

    name: str
    number: int
    arguments: CallArguments
    inputs: list[_Key]

    @classmethod
    def decoded(cls, name: str, number: int, data: dict[str, Any]) -> "_Call":
        inputs: list[_Key] = []
        arguments = (tuple(_decode(data["args"], inputs)), _decode(data["kwargs"], inputs))
        return cls(name, number, arguments, inputs)


@dataclasses.dataclass(frozen=True)
class _Arguments:
    """`Node.arguments`: the arguments of a call, given the value of each tensor id."""

    arguments: CallArguments
    ids: dict[_Key, int]

    def __call__(self, values: Mapping[int, Any]) -> CallArguments:
        return _fill(self.arguments, {key: values[i] for key, i in self.ids.items() if i in values})


def _fill(arguments: CallArguments, values: Mapping[_Key, Any]) -> CallArguments:
    """Returns `(args, kwargs)` with each reference replaced by its value."""

    def fill(value: Any) -> Any:
        if isinstance(value, _Reference):
            return values[value.key]
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(fill(item) for item in value)
        return value

    args, kwargs = arguments
    return tuple(fill(item) for item in args), fill(kwargs)


def _decode(value: Any, inputs: list[_Key]) -> Any:
    """Returns serialized arguments with `_Reference`s for tensors, whose keys it adds to `inputs`."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            name, call, index = value["config"]["keras_history"]
            inputs.append((name, call, index))
            return _Reference(inputs[-1])
        if value.get("class_name") == "__tuple__":
            return tuple(_decode(item, inputs) for item in value["config"]["value"])
        if "class_name" in value and "config" in value:
            return keras.saving.deserialize_keras_object(value)
        return {key: _decode(item, inputs) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_decode(item, inputs) for item in value)
    return value


def _map_keys(value: Any, function: Callable[[_Key], int]) -> Any:
    """Applies a function to each key in a structure of keys."""
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        return function((value[0], value[1], value[2]))
    if isinstance(value, dict):
        return {key: _map_keys(item, function) for key, item in value.items()}
    return [_map_keys(item, function) for item in value]


def _is_model(operation: Any) -> bool:
    """Whether an operation is a model with a graph of its own, which a subclassed model is not."""
    return isinstance(operation, keras.Model) and bool(getattr(operation, "inputs", None))


@deep_graphs()
def _functional(model: keras.Model) -> keras.Model:
    """Returns a functional model with the inputs and outputs of a model."""
    if not isinstance(model, keras.Model):
        advice = "Models of tf_keras or TFMOT must be rebuilt with Keras 3 layers (import keras)."
        if isinstance(model, (str, os.PathLike)):
            advice = "Load the file first, with keras.models.load_model(path)."
        elif isinstance(model, keras.layers.Layer):
            advice = "Put the layer into a model, keras.Sequential([keras.Input(shape), layer])."
        raise ValueError(
            f"Expected a Keras 3 model, found {type(model).__module__}.{type(model).__name__}. "
            f"{advice}"
        )
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            f"Sequential model {model.name!r} has no input shape yet. Give it a keras.Input as the "
            "first layer, or call model.build(input_shape)."
        )
    try:
        inputs, outputs = model.inputs, model.outputs
    except AttributeError:
        inputs = None
    if not inputs and isinstance(model, keras.Sequential):
        raise ValueError(
            f"Sequential model {model.name!r} has no outputs: one of its layers cannot be called "
            "on its input shape. Call the model on a batch of data to see why."
        )
    if not inputs:
        raise ValueError(
            f"Model {model.name!r} is subclassed ({type(model).__name__}), so its layers cannot be "
            "seen. Build it as keras.Sequential or with the functional API, "
            "keras.Model(inputs, outputs)."
        )
    if overridden(model, ("call",)):
        raise ValueError(
            f"Model {model.name!r} is of class {type(model).__name__}, which overrides `call`, so its "
            "layers do not say what it computes. Move what `call` does into layers, and build the "
            "model as keras.Sequential or with the functional API, keras.Model(inputs, outputs)."
        )
    if isinstance(model, keras.Sequential):
        return keras.Model(inputs[0], outputs[0], name=model.name)
    return keras.Model(model.input, model.output, name=model.name)
