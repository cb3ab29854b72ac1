"""`from_tf_keras`: a model of Keras 2, rebuilt of Keras 3 layers with its weights."""

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from dqmq_tf.errors import UnsupportedLayerError
from dqmq_tf.tfmot import keras_2_layers

_PROBES = 4
# Differences that rounding in another order explains, relative to the largest value of a tensor.
_TOLERANCE = 1e-4
# `(name of the layer, number of the call, number of the output)` of a tensor, as in a config.
_Key = tuple[str, int, int]


def from_tf_keras(model: Any) -> keras.Model:
    """Rebuilds a `tf_keras` model as a Keras 3 model with the same names and weights.

    `tf_keras` is Keras 2, on which TFMOT is built. The new model is called on random inputs and
    compared with the old one, layer by layer.

    Args:
        model: A built Sequential or functional `tf_keras` model of common layers: dense,
            convolutions (also depthwise, separable and transposed), batch, layer and group
            normalization, activations, pooling, padding, cropping, reshapes, merges, dropout,
            embeddings and recurrent layers. Nested models and shared layers are allowed. It is not
            changed.

    Returns:
        A new, uncompiled model of the same kind, which predicts the same up to rounding.

    Raises:
        ImportError: If tf_keras is not installed.
        ValueError: If `model` is no built Sequential or functional `tf_keras` model.
        UnsupportedLayerError: If a layer or one of its options cannot be rebuilt.

    Example:

    >>> qmodel = dqmq_tf.quantize_model(dqmq_tf.from_tf_keras(old_model))
    """
    tf_keras = _tf_keras()
    if not isinstance(model, tf_keras.Model):
        raise ValueError(
            f"from_tf_keras takes a model of tf_keras. Found {model!r} of type "
            f"{type(model).__module__}.{type(model).__name__}. Models of Keras 3 need no rebuilding."
        )
    if not model.built or not getattr(model, "inputs", None):
        raise ValueError(
            f"tf_keras model {model.name!r} is subclassed or has no input shape yet, so its layers "
            "cannot be seen. Build it as Sequential with an InputLayer, or with the functional API."
        )
    pairs: list[tuple[str, Any, Any]] = []
    rebuilt = _rebuild(tf_keras, model, "", pairs)
    for path, old, new in pairs:
        if not isinstance(old, tf_keras.Model):
            _copy_weights(path, old, new)
    _check_outputs(tf_keras, model, rebuilt)
    return rebuilt


def _tf_keras() -> Any:
    try:
        return importlib.import_module("tf_keras")
    except ImportError as error:
        raise ImportError(
            "`from_tf_keras` needs the package tf_keras, which the model is made of: "
            "pip install tf_keras"
        ) from error


def _rebuild(
    tf_keras: Any, model: Any, prefix: str, pairs: list[tuple[str, Any, Any]]
) -> keras.Model:
    """Rebuilds a model without its weights.

    Args:
        tf_keras: The module.
        model: The `tf_keras` model.
        prefix: The beginning of the paths of its layers, such as `"backbone/"`.
        pairs: Gets `(path, old layer, new layer)` of each layer and each nested model.
    """
    if isinstance(model, tf_keras.Sequential):
        (source,) = model.inputs
        layers = [
            _layer(tf_keras, layer, prefix, pairs)
            for layer in model.layers
            if not isinstance(layer, tf_keras.layers.InputLayer)
        ]
        entry = keras.Input(batch_shape=tuple(source.shape), dtype=source.dtype.name)
        return keras.Sequential([entry, *layers], name=model.name)
    if not hasattr(model, "input_names") or "layers" not in (config := model.get_config()):
        raise UnsupportedLayerError(
            prefix.removesuffix("/") or model.name,
            f"{type(model).__name__}: a subclassed model",
            "Build it with the functional API of tf_keras.",
        )
    return _Functional(tf_keras, model, config, prefix, pairs).rebuilt()


def _layer(tf_keras: Any, layer: Any, prefix: str, pairs: list[tuple[str, Any, Any]]) -> Any:
    """Rebuilds a layer or a nested model, without its weights.

    What a nested model shares with another model is rebuilt once.
    """
    for _, old, new in pairs:
        if old is layer:
            return new
    path = prefix + layer.name
    if isinstance(layer, tf_keras.Model):
        new = _rebuild(tf_keras, layer, f"{path}/", pairs)
    else:
        new = keras_2_layers.rebuilt(layer, path)
    pairs.append((path, layer, new))
    return new


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call of a layer, as the config of Keras 2 describes it.

    Attributes:
        layer: The name of the layer.
        number: The number of its call.
        arguments: The positional arguments: a `_Key`, or a list of them.
        keywords: The keyword arguments, with a `_Key` for each tensor.
    """

    layer: str
    number: int
    arguments: Any
    keywords: Mapping[str, Any]

    def keys(self) -> list[_Key]:
        """Returns the keys of all tensors among the arguments."""
        return list(_keys((self.arguments, tuple(self.keywords.values()))))


class _Functional:
    """Rebuilds a functional model call by call.

    Args:
        tf_keras: The module.
        model: The functional `tf_keras` model.
        config: Its config.
        prefix: See `_rebuild`.
        pairs: See `_rebuild`.
    """

    def __init__(
        self,
        tf_keras: Any,
        model: Any,
        config: dict[str, Any],
        prefix: str,
        pairs: list[tuple[str, Any, Any]],
    ) -> None:
        self._model, self._config, self._prefix = model, config, prefix
        self._tensors: dict[_Key, Any] = {}
        self._layers: dict[str, Any] = {}
        self._calls: list[_Call] = []
        for entry in config["layers"]:
            layer, name = model.get_layer(entry["name"]), entry["name"]
            if isinstance(layer, tf_keras.layers.InputLayer):
                self._tensors[name, 0, 0] = keras_2_layers.new_input(layer, prefix + name)
                continue
            self._layers[name] = _layer(tf_keras, layer, prefix, pairs)
            for number, node in enumerate(entry["inbound_nodes"]):
                self._calls.append(self._call(name, number, node))

        # Keras 2 counts the calls of a nested model from the one in which it was made.
        self._first_calls: dict[str, int] = {}
        for name, number, _ in (*self._read(), *_keys(self._ends_of_config())):
            self._first_calls[name] = min(number, self._first_calls.get(name, number))

    def _read(self) -> Iterator[_Key]:
        """Yields the keys of all tensors that calls take."""
        for call in self._calls:
            yield from call.keys()

    def _ends_of_config(self) -> list[Any]:
        """Returns the outputs of the model, with a `_Key` for each tensor."""
        return [_decoded(entry) for entry in _leaves(self._config["output_layers"])]

    def _call(self, name: str, number: int, node: Any) -> _Call:
        """Reads a call, `[[layer, call, output, keywords], ...]`, from a config."""
        path = self._prefix + name
        entries = [node] if node and isinstance(node[0], str) else node
        if not entries or not all(isinstance(entry[0], str) for entry in entries):
            raise UnsupportedLayerError(
                path,
                "called with nested arguments",
                "Call it with one tensor or with a list of tensors.",
            )
        keys: list[_Key] = [(entry[0], entry[1], entry[2]) for entry in entries]
        keywords = {
            key: _decoded(value)
            for entry in entries
            for key, value in (entry[3:] or [{}])[0].items()
        }
        takes_list = isinstance(self._model.get_layer(name).input, (list, tuple))
        return _Call(name, number, keys if takes_list or len(keys) > 1 else keys[0], keywords)

    def rebuilt(self) -> keras.Model:
        """Makes the calls as soon as their tensors exist, and returns the model."""
        calls = self._calls
        while calls:
            waiting = []
            for call in calls:
                if all(key in self._tensors for key in call.keys()):
                    self._make(call)
                else:
                    waiting.append(call)
            if len(waiting) == len(calls):
                names = sorted({call.layer for call in calls})
                raise UnsupportedLayerError(
                    self._prefix + names[0],
                    "its inputs are not outputs of layers of the model",
                    "Build the model again with the functional API of tf_keras.",
                )
            calls = waiting
        inputs, outputs = (
            self._ends(self._config[name]) for name in ("input_layers", "output_layers")
        )
        return keras.Model(inputs, outputs, name=self._model.name)

    def _make(self, call: _Call) -> None:
        layer, first = self._layers[call.layer], self._first_calls.get(call.layer, 0)
        arguments, keywords = _filled((call.arguments, call.keywords), self._tensors)
        try:
            outputs = layer(arguments, **keywords)
        except (TypeError, ValueError) as error:
            raise UnsupportedLayerError(
                self._prefix + call.layer,
                f"{type(layer).__name__}: Keras 3 refuses its call: {error}",
                "Replace the layer in the tf_keras model.",
            ) from error
        for index, tensor in enumerate(keras.tree.flatten(outputs)):
            self._tensors[call.layer, first + call.number, index] = tensor

    def _ends(self, entries: Any) -> Any:
        """Returns the tensors of inputs or outputs, in the structure that the model has."""
        if isinstance(entries, Mapping):
            return {key: self._ends(value) for key, value in entries.items()}
        if isinstance(entries[0], str):
            return self._tensors[tuple(entries)]
        tensors = [self._ends(entry) for entry in entries]
        return tensors if len(tensors) > 1 else tensors[0]


def _decoded(value: Any) -> Any:
    """Returns a keyword argument with a `_Key` for a tensor."""
    is_key = _is_key(tuple(value[:3])) if isinstance(value, (list, tuple)) else False
    return tuple(value[:3]) if is_key else value


def _keys(value: Any) -> Iterator[_Key]:
    """Yields the keys in a structure."""
    if _is_key(value):
        yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _keys(entry)


def _leaves(entries: Any) -> Iterator[Any]:
    """Yields the entries `[layer, call, output]` of a structure in a config."""
    if isinstance(entries, Mapping):
        for value in entries.values():
            yield from _leaves(value)
    elif entries and isinstance(entries[0], str):
        yield entries
    else:
        for entry in entries:
            yield from _leaves(entry)


def _is_key(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def _filled(value: Any, tensors: Mapping[_Key, Any]) -> Any:
    """Returns a structure with the tensors of its keys."""
    if _is_key(value):
        return tensors[value]
    if isinstance(value, Mapping):
        return {key: _filled(entry, tensors) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_filled(entry, tensors) for entry in value)
    return value


def _copy_weights(path: str, old: Any, new: Any) -> None:
    """Gives a layer the weights of the old one."""
    # Keras 3 counts the states of random generators among the weights, Keras 2 does not.
    variables = [v for v in new.weights if "seed_generator" not in v.path]
    values = old.get_weights()
    shapes = [tuple(variable.shape) for variable in variables]
    if shapes != [value.shape for value in values]:
        raise UnsupportedLayerError(
            path,
            f"{type(old).__name__}: weights of shapes {[value.shape for value in values]}, "
            f"{shapes} in Keras 3",
            "Replace the layer in the tf_keras model.",
        )
    for variable, value in zip(variables, values):
        variable.assign(value)
    new.trainable = old.trainable


def _check_outputs(tf_keras: Any, model: Any, rebuilt: keras.Model) -> None:
    """Compares the layers of both models on random inputs.

    Raises:
        UnsupportedLayerError: For the first layer whose output differs.
    """
    inputs = _random_inputs(model)
    names = [layer.name for layer in model.layers if _has_one_output(layer)]
    # The outputs of the model also tell what shared layers and nested models compute.
    ends = keras.tree.flatten(model.outputs), keras.tree.flatten(rebuilt.outputs)
    old = tf_keras.Model(model.inputs, [*(model.get_layer(n).output for n in names), *ends[0]])
    new = keras.Model(rebuilt.inputs, [*(rebuilt.get_layer(n).output for n in names), *ends[1]])
    places = [*names, *(f"{model.name} (output {i})" for i in range(len(ends[0])))]
    for place, before, after in zip(places, _called(old, inputs), _called(new, inputs)):
        limit = _TOLERANCE * max(float(np.abs(before).max(initial=0.0)), 1e-3)
        if before.shape != after.shape or not np.allclose(before, after, rtol=0, atol=limit):
            kind = type(model.get_layer(place)).__name__ if place in names else "Model"
            raise UnsupportedLayerError(
                place,
                f"{kind}: its output differs in Keras 3",
                "Replace the layer in the tf_keras model.",
            )


def _has_one_output(layer: Any) -> bool:
    """Whether something is a layer, no model, that is called once and returns one tensor."""
    try:
        output = layer.output
    except (AttributeError, ValueError):
        return False
    # The first of several calls may be one in another model.
    with contextlib.suppress(AttributeError, ValueError):
        layer.get_output_at(1)
        return False
    is_inner = type(layer).__name__ != "InputLayer" and not hasattr(layer, "layers")
    return is_inner and not isinstance(output, (list, tuple, dict))


def _called(model: Any, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    outputs = model(list(inputs), training=False)
    return [np.asarray(output) for output in keras.tree.flatten(outputs)]


def _random_inputs(model: Any) -> list[np.ndarray]:
    """Returns random inputs. Those of a model with an embedding are indices that it has."""
    generator = np.random.default_rng(0)
    sizes = [layer.input_dim for layer in _flat(model) if type(layer).__name__ == "Embedding"]
    draw: Callable[..., np.ndarray] = generator.normal
    arrays = []
    for tensor in model.inputs:
        shape = [_PROBES, *(n or 8 for n in tensor.shape[1:])]
        is_index = bool(sizes) and len(shape) == 2 or not tensor.dtype.is_floating
        values = generator.integers(0, min([*sizes, 2]), shape) if is_index else draw(size=shape)
        arrays.append(values.astype(tensor.dtype.as_numpy_dtype))
    return arrays


def _flat(model: Any) -> Iterator[Any]:
    """Yields the layers of a model and of the models in it."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _flat(layer)
        else:
            yield layer
