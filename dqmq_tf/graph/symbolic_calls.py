"""Calls a layer of the user's own on symbolic tensors, which tell what its `call` is made of."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf.graph.cloning import layers_inside
from dqmq_tf.graph.from_keras import takes_mode, trace_nested
from dqmq_tf.graph.graph import CallArguments, Graph, Node
from dqmq_tf.graph.kernels import is_float
from dqmq_tf.graph.plain_classes import keras_name
from dqmq_tf.graph.rebuild import rebuild
from dqmq_tf.graph.splitting import free_name
from dqmq_tf.graph.trial_runs import call_at_inference, random_inputs

_TOLERANCE = 1e-4
# A size of batches whose multiples are no sizes of anything else.
_BATCH = 7919


def model_of_call(graph: Graph, node: Node) -> keras.Model | None:
    """Returns a model of the layers and functions that the `call` of a layer calls.

    The model computes what the layer does, with the layers inside it, in any mode of training. Its
    name is that of the layer, and its inputs are the tensors of `tensors_of`.

    Args:
        graph: A graph.
        node: A call of the layer.

    Returns:
        The model. None if calling other layers and functions is not all that the layer does.
    """
    for batch in (None, _BATCH):
        try:
            found = _computed(graph, node, batch)
        except Exception:  # noqa: S112  A class of the user's own may do anything.
            continue
        if found is not None:
            # The public attribute would set that of the layers inside, which have their own. Keras
            # trains these layers of a class that was built with `trainable=False`.
            found._trainable = node.layer.trainable or any(
                v.trainable for v in node.layer.variables
            )
            return found
    return None


def without_training(arguments: CallArguments) -> CallArguments:
    """Returns `(args, kwargs)` of a call without the mode of training."""
    args, kwargs = arguments
    return args, {key: value for key, value in kwargs.items() if key != "training"}


def tensors_of(arguments: CallArguments) -> Any:
    """Returns the tensors among `(args, kwargs)`, each once: a list, or the tensor if there is one."""
    leaves = keras.tree.flatten(arguments)
    is_tensor = [keras.backend.is_keras_tensor(x) or keras.ops.is_tensor(x) for x in leaves]
    tensors = list({id(x): x for x, is_one in zip(leaves, is_tensor) if is_one}.values())
    return tensors[0] if len(tensors) == 1 else tensors


def in_full(structure: Any) -> str:
    """Returns a structure as a text that differs if any number of an array or tensor in it does."""

    def item(value: Any) -> Any:
        if not isinstance(value, np.ndarray) and not keras.ops.is_tensor(value):
            return value
        array = np.asarray(keras.ops.convert_to_numpy(value))
        return array.dtype.name, array.shape, hashlib.sha256(array.tobytes()).hexdigest()

    return repr(keras.tree.map_structure(item, structure))


def shared_layers(operations: Iterable[Any]) -> set[int]:
    """Returns the ids of operations that have a layer with variables inside which others have too.

    If one of them became a model of its own, Keras could not load the file of the whole model: it
    makes a layer for each model that has the layer.
    """
    owners: dict[int, set[int]] = collections.defaultdict(set)
    for operation in operations:
        for layer in layers_inside(operation):
            if layer.variables:
                owners[id(layer)].add(id(operation))
    return {owner for ids in owners.values() if len(ids) > 1 for owner in ids}


def _computed(graph: Graph, node: Node, batch: int | None) -> keras.Model | None:
    """Returns what `model_of_call` returns, found with a size of the batch, or None for any."""
    found, in_training = (_traced(graph, node, training, batch) for training in (False, True))
    if found is None or in_training is None:
        return None
    own = set(map(id, layers_inside(node.layer)))
    if _computation(found, own) != _computation(in_training, own):
        return None
    model = found if batch is None else _with_any_batch(found)
    values = random_inputs(graph, node)
    try:
        expected = call_at_inference(node, values)
    except Exception:  # Random inputs may not suit the layer, or may be too small for it.
        return model if batch is None else None
    # What a class does may depend on more, such as on whether its inputs are symbolic.
    outputs = model(tensors_of(node.arguments(values)), training=False)
    return model if _are_close(keras.tree.flatten(outputs), expected) else None


def _traced(graph: Graph, node: Node, training: bool, batch: int | None) -> keras.Model | None:
    """Returns a model of what the `call` of a layer does with symbolic tensors.

    Args:
        graph: The graph.
        node: A call of the layer.
        training: The mode in which the layer is called.
        batch: The size of the batch, None for any.

    Returns:
        The model. None if the `call` uses variables by itself, or does something that no model of
        layers does.
    """
    layer = node.layer
    values = {tensor: _new_input(layer, graph, tensor, batch) for tensor in node.inputs}
    args, kwargs = without_training(node.arguments(values))
    if takes_mode(layer):
        kwargs = {**kwargs, "training": training}
    with _Reads(collect_losses=True) as reads:
        outputs = _InMode(layer, args, kwargs).outputs(training)
    results = keras.tree.flatten(outputs)
    if reads.variables or reads.losses or not all(map(keras.backend.is_keras_tensor, results)):
        return None
    # Keras does not see these, so they may be read anywhere.
    if any(isinstance(value, tf.Variable) for value in vars(layer).values()):
        return None
    calls = _calls_behind(results)
    operations = [call.operation for call in calls]
    if _has_hidden_weights(layer, operations) or shared_layers(operations):
        return None
    for call in calls:
        own = call.arguments
        leaves = keras.tree.flatten((own.args, own.kwargs))
        if any(isinstance(x, (keras.Variable, tf.Variable)) for x in leaves):
            return None
        # Keras records the mode. If it is another one, the `call` asks for it in any mode.
        if own.kwargs.get("training", training) is (not training):
            return None
    _give_names(layer.name, operations)
    return keras.Model(tensors_of((args, kwargs)), outputs, name=layer.name)


def _has_hidden_weights(layer: keras.layers.Layer, operations: Iterable[Any]) -> bool:
    """Returns whether a `call` uses weights that are not those of its layer, and not trained with it.

    Args:
        layer: The layer.
        operations: The layers and functions that it calls.
    """
    own = set(map(id, layer.variables))
    weights = [v for x in operations if isinstance(x, keras.layers.Layer) for v in x.weights]
    return any(id(variable) not in own for variable in weights)


class _InMode(keras.layers.Layer):
    """Calls the `call` of a layer as Keras does in a mode of training, but on symbolic tensors.

    Args:
        layer: The layer.
        args, kwargs: The arguments of its `call`.
    """

    def __init__(
        self, layer: keras.layers.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__(dtype=layer.dtype_policy)
        # Lists of layers are attributes that Keras looks at.
        self._run = lambda: layer.call(*args, **kwargs)
        self._found: Any = None

    def outputs(self, training: bool) -> Any:
        """Returns what the `call` returns."""
        self(keras.ops.zeros(()), training=training)
        return self._found()

    def call(self, x: Any, training: bool | None = None) -> Any:
        outputs = self._run()
        self._found = lambda: outputs
        return x


class _Reads(keras.StatelessScope):
    """Notes the variables that code uses itself, but not what layers use that it calls."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.variables: list[Any] = []

    def get_current_value(self, variable: Any) -> Any:
        self.variables.append(variable)
        return super().get_current_value(variable)

    def add_update(self, update: Any) -> None:
        self.variables.append(update[0])
        super().add_update(update)


def _new_input(layer: keras.layers.Layer, graph: Graph, tensor: int, batch: int | None) -> Any:
    """Returns a new `keras.Input` like a tensor, in the dtype that a layer casts it to."""
    shape, dtype = graph.shapes[tensor], graph.dtypes[tensor]
    casts = layer.autocast and is_float(dtype) and is_float(layer.compute_dtype)
    return keras.Input(
        batch_shape=(shape[0] or batch, *shape[1:]), dtype=layer.compute_dtype if casts else dtype
    )


def _with_any_batch(model: keras.Model) -> keras.Model:
    """Returns a model for batches of any size that computes what one for `_BATCH` inputs does.

    A class that asks for the size of the batch puts it into the shapes that it reshapes to.
    """
    graph = trace_nested(model)
    sizes = {tensor: _any_batch(graph.shapes[tensor]) for tensor in graph.inputs}
    graph = dataclasses.replace(graph, shapes=graph.shapes | sizes)

    def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if keras_name(node.layer) == "Reshape" and not isinstance(node.layer, keras.layers.Layer):
            return keras.ops.reshape(args[0], _any_batch(graph.shapes[node.outputs[0]], -1))
        return node.layer(*args, **kwargs)

    return rebuild(graph, model.name, call)


def _any_batch(shape: Sequence[int | None], size: int | None = None) -> tuple[int | None, ...]:
    """Returns a shape whose first size, if it is one of `_BATCH` inputs, is replaced."""
    first, *rest = shape
    return (size if first and first % _BATCH == 0 else first, *rest)


def _calls_behind(tensors: Iterable[Any]) -> list[Any]:
    """Returns the calls (`Node`s of Keras) that symbolic tensors come from, in execution order."""
    found: dict[int, Any] = {}
    # A call comes after those of its inputs.
    waiting = [(tensor, False) for tensor in tensors]
    while waiting:
        tensor, has_inputs = waiting.pop()
        operation, index, _ = tensor._keras_history
        call = operation._inbound_nodes[index]
        if has_inputs:
            found.setdefault(id(call), call)
        elif id(call) not in found:
            waiting.append((tensor, True))
            waiting += [(x, False) for x in call.arguments.keras_tensors]
    return list(found.values())


def _give_names(prefix: str, operations: Iterable[Any]) -> None:
    """Gives functions and inputs names that do not depend on what was built before.

    Args:
        prefix: What the names of inputs begin with.
        operations: Layers and functions. Layers keep their names unless two have the same.
    """
    names: set[str] = set()
    operations = list({id(operation): operation for operation in operations}.values())
    for operation in operations:
        base = re.sub(r"_\d+$", "", operation.name)
        if isinstance(operation, keras.layers.InputLayer):
            base = f"{prefix}_input"
        elif isinstance(operation, keras.layers.Layer):
            base = operation.name
        operation.name = free_name(base, [names])


def _computation(model: keras.Model, own: set[int]) -> str:
    """Returns what two models have in common if they call the same layers in the same way.

    Args:
        model: The model.
        own: The ids of layers that are the same object in both. Others are made in the call.
    """
    calls = []
    for node in trace_nested(model).nodes:
        layer = node.layer
        key: Any = id(layer)
        if id(layer) not in own:
            config = layer.get_config()
            key = (type(layer), {name: config[name] for name in config if name != "name"})
        arguments = node.arguments({tensor: tensor for tensor in node.inputs})
        calls.append((key, without_training(arguments), node.outputs))
    return in_full(calls)


def _are_close(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Returns whether outputs are the same but for rounding."""
    pairs = [
        (keras.ops.convert_to_numpy(x), keras.ops.convert_to_numpy(y))
        for x, y in zip(found, expected, strict=True)
    ]
    return all(
        x.shape == y.shape
        and np.allclose(x, y, rtol=_TOLERANCE, atol=_TOLERANCE * np.abs(y).max(), equal_nan=True)
        for x, y in pairs
    )
