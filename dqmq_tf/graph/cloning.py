"""Copies living layers with their state, whether or not a saved model could hold them.

A layer is built anew from its config, as `keras.models.clone_model` does, so no custom class has to
be registered. Functions and inner layers in the config are passed on as the objects that they are:
nothing was loaded from a file, so nothing has to be trusted or found by name. The state is then
copied as Keras's loading does it, so that a layer can compute what it derives from its variables.
"""

import contextlib
import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

Config = dict[str, Any]
Change = Callable[[Config], Config]
# What `Layer.get_config` returns, and a class without `**kwargs` does not accept.
_COMMON = ("name", "trainable", "dtype")
# Where Keras looks up functions by name.
_NAMESPACES = (keras.activations, keras.initializers, keras.losses, keras.metrics, keras.ops)


def clone_layer(layer: Any, change: Change | None = None, name: str | None = None) -> Any:
    """Returns a new layer with the config of a layer, built for the same input shapes.

    Args:
        layer: A `keras.layers.Layer` or `keras.Operation`.
        change: `change(config)` returns the config to use in place of a config, for the layer and
            for each layer inside it.
        name: The name of the new layer. None for the name of the old one.

    Returns:
        The new layer, without the state of the old one (see `copy_state`). If the old one has no
        weights and cannot be built from its config, an object with the same attributes.

    Raises:
        ValueError: If a layer with weights cannot be built from its config.

    Example:

    >>> clone = clone_layer(layer)
    >>> copy_state(layer, clone)
    """
    name = layer.name if name is None else name
    if type(layer) is keras.layers.Identity:
        # It has no config if its dtype is a policy, as inside of layers that hand theirs on.
        return keras.layers.Identity(name=name, dtype=layer.dtype_policy.name)
    try:
        return _from_config(layer, change, name, built=True)
    except Exception:
        pass
    try:
        # A layer whose `build` builds the layers inside may not expect them to be built.
        return _from_config(layer, change, name, built=False)
    except Exception as error:
        if not getattr(layer, "weights", ()):
            return _without_calls(layer, name)
        kind, reason = type(layer).__name__, str(error).strip().rpartition("\n")[2]
        raise ValueError(
            f"Layer {layer.name!r} ({kind}) cannot be copied ({reason}). Implement get_config and "
            f"from_config so that {kind}.from_config(layer.get_config()) returns a layer like it."
        ) from error


def copy_state(source: keras.layers.Layer, target: keras.layers.Layer) -> None:
    """Copies the state of a layer into its clone, as saving and loading a model does.

    Variables are copied first. Then `load_own_variables` and `load_assets` run for every layer
    inside that defines them: there `Normalization`, for one, computes what its `call` uses.

    Args:
        source: The layer to copy from.
        target: A layer of the same class and config.
    """
    has_same_weights = _shapes(source) == _shapes(target)
    if has_same_weights:
        target.set_weights(source.get_weights())
    for original, copy in _pairs(source, target, set()):
        defines_loading = type(copy).load_own_variables is not keras.layers.Layer.load_own_variables
        if defines_loading or not has_same_weights:
            store: dict[str, Any] = {}
            original.save_own_variables(store)
            copy.load_own_variables({key: _array(value) for key, value in store.items()})
        if hasattr(original, "save_assets") and hasattr(copy, "load_assets"):
            with tempfile.TemporaryDirectory() as folder:
                original.save_assets(folder)
                copy.load_assets(folder)


def has_variables(source: keras.layers.Layer, clone: keras.layers.Layer) -> bool:
    """Returns whether a clone has its variables already, so that it can get the state of its layer.

    Layers without a `build` of their own create variables, or those of layers inside, when called.

    Args:
        source: The layer.
        clone: Its clone.
    """
    pairs = _pairs(source, clone, set())
    return clone.built and all(copy.built or not original.weights for original, copy in pairs)


@contextlib.contextmanager
def lambdas_allowed() -> Iterator[None]:
    """Silences Keras's warning that a lambda in a config cannot be loaded: nothing is saved here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`")
        yield


def _without_calls(layer: Any, name: str) -> Any:
    """Returns an object with the attributes of a layer that knows of no calls of the layer."""
    kind: Any = type(layer)
    copy = kind.__new__(kind)
    # `Layer.__new__` binds methods to the new object. All else is that of the layer.
    bound = {key: value for key, value in vars(copy).items() if callable(value)}
    vars(copy).update(vars(layer) | bound)
    copy._inbound_nodes, copy._outbound_nodes = [], []
    copy.name = name
    return copy


class _Living:
    """Stands for a class in a config, and "builds" an object that exists already."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def from_config(self, config: Config) -> Any:
        return self._value


def _from_config(layer: Any, change: Change | None, name: str, built: bool) -> Any:
    """Builds a layer from its config, with living objects in place of what the config describes."""
    scope = _custom_objects(layer)
    cloned: dict[int, Any] = {}

    def clone_inner(inner: keras.layers.Layer) -> Any:
        if id(inner) not in cloned:
            cloned[id(inner)] = _from_config(inner, change, inner.name, built)
        return cloned[id(inner)]

    config = {}
    takes_objects = _default(type(layer).from_config)
    with lambdas_allowed():
        living_config = layer.get_config()
    for key, value in living_config.items():
        if isinstance(value, keras.layers.Layer) and takes_objects:
            config[key] = clone_inner(value)
        else:
            config[key] = _by_reference(value, _attribute(layer, key), scope, clone_inner)
    config = config if change is None else change(config)
    if "name" in config:
        config["name"] = name
    config, dropped = _accepted(type(layer), config) if takes_objects else (config, set())
    serialized = {**_reference(type(layer), scope), "config": config}
    clone = keras.saving.deserialize_keras_object(serialized, custom_objects=scope, safe_mode=False)
    # The names of variables need the name of the layer, so it comes before they are built.
    clone.name = name
    if "dtype" in dropped:
        clone.dtype_policy = layer.dtype_policy
    if "trainable" in dropped:
        clone.trainable = layer.trainable
    if built and isinstance(layer, keras.layers.Layer) and _can_build(clone):
        build_config = layer.get_build_config()
        if build_config:
            with keras.saving.custom_object_scope(scope):
                clone.build_from_config(build_config)
            clone.built = True
    return clone


def _can_build(layer: keras.layers.Layer) -> bool:
    """Whether a layer has yet to be built, and its `build` would create all its variables.

    That of Keras only marks the layer as built. Layers inside are then built by the first call.
    """
    is_default = type(layer).build is keras.layers.Layer.build
    return not layer.built and not (
        is_default and any(not x.built for x in layers_inside(layer)[1:])
    )


def _by_reference(
    value: Any, living: Any, scope: dict[str, Any], clone_inner: Callable[[Any], Any]
) -> Any:
    """Returns a value of a config with references to living functions and to clones of layers.

    Args:
        value: The value.
        living: The attribute of the layer that the value describes.
        scope: The custom objects. The referenced objects are added.
        clone_inner: Returns the clone of a layer inside the layer.
    """
    if isinstance(value, (list, tuple)) and isinstance(living, (list, tuple)):
        if len(value) == len(living):
            items = [_by_reference(v, own, scope, clone_inner) for v, own in zip(value, living)]
            return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, keras.layers.Layer):
        return _reference(_Living(clone_inner(value)), scope)
    if isinstance(living, keras.layers.Layer) and isinstance(value, dict):
        if value.get("class_name") == type(living).__name__:
            return _reference(_Living(clone_inner(living)), scope)
    if _is_custom_function(living):
        is_its_name = isinstance(value, str) and value == getattr(living, "__name__", None)
        if isinstance(value, dict) or is_its_name:
            reference = _reference(living, scope)
            return {**reference, "class_name": "function", "config": reference["class_name"]}
    return value


def _accepted(kind: type, config: Config) -> tuple[Config, set[str]]:
    """Returns the part of a config that `__init__` accepts, and the common keys that it does not."""
    parameters = inspect.signature(kind).parameters
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        return config, set()
    dropped = {key for key in _COMMON if key in config and key not in parameters}
    return {key: value for key, value in config.items() if key not in dropped}, dropped


def _default(method: Any) -> bool:
    """Whether `from_config` is the one that all layers have: it hands the config to `__init__`."""
    return getattr(method, "__func__", None) is keras.Operation.from_config.__func__


def _reference(value: Any, scope: dict[str, Any]) -> Config:
    """Returns a serialized object whose class is found in `scope` by a name that is made up."""
    name = f"dqmq_tf_living_{len(scope)}"
    scope[name] = value
    return {"module": None, "class_name": name, "config": {}, "registered_name": name}


def _attribute(layer: Any, key: str) -> Any:
    """Returns the attribute of a layer that a key of its config describes. None without one."""
    for name in (key, f"_{key}"):
        try:
            return getattr(layer, name)
        except Exception:  # noqa: S112  A property may raise anything.
            continue
    return None


def _custom_objects(layer: Any) -> dict[str, Any]:
    """Returns `{name: class or function}` of all that a layer is made of and Keras does not have."""
    scope: dict[str, Any] = {}
    visited: set[int] = set()

    def visit(value: Any) -> None:
        if id(value) in visited:
            return
        visited.add(id(value))
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            for item in value:
                visit(item)
        elif _is_custom_function(value):
            name = keras.saving.get_registered_name(value)
            # In a config, the name of a function of Keras means that function.
            if not any(hasattr(namespace, str(name)) for namespace in _NAMESPACES):
                scope[name] = value
        elif hasattr(value, "get_config") and not isinstance(value, type):
            if not is_from_keras(type(value)):
                scope[keras.saving.get_registered_name(type(value))] = type(value)
            for attribute in getattr(value, "__dict__", {}).values():
                visit(attribute)

    visit(layer)
    return scope


def _is_custom_function(value: Any) -> bool:
    is_function = callable(value) and not isinstance(value, (type, keras.Operation))
    return is_function and not hasattr(value, "get_config") and not is_from_keras(value)


def is_from_keras(value: Any) -> bool:
    """Whether a class or function is one of Keras's own."""
    return (getattr(value, "__module__", None) or "").split(".")[0] == "keras"


def runs_custom_code(layer: Any) -> bool:
    """Whether a layer is of a class that Keras does not have, or calls such a function.

    Layers inside it are not looked at.
    """
    code = (type(layer), getattr(layer, "activation", None), getattr(layer, "function", None))
    return any(c is not None and not is_from_keras(c) for c in code) or hasattr(layer, "function")


def _pairs(
    source: keras.layers.Layer, target: keras.layers.Layer, visited: set[int]
) -> Iterator[tuple[Any, Any]]:
    """Yields a layer, and each layer inside it, with its counterpart in the clone."""
    if id(source) in visited:
        return
    visited.add(id(source))
    yield source, target
    copies = dict(_inner_layers(target))
    for name, inner in _inner_layers(source):
        if name in copies:
            yield from _pairs(inner, copies[name], visited)


def layers_inside(layer: Any) -> list[keras.layers.Layer]:
    """Returns a layer and all layers among its attributes, recursively. Operations have none."""
    if not isinstance(layer, keras.layers.Layer):
        return []
    return [source for source, _ in _pairs(layer, layer, set())]


def _inner_layers(layer: keras.layers.Layer) -> list[tuple[str, keras.layers.Layer]]:
    """Returns the layers among the attributes of a layer, named by attribute and position."""
    found: list[tuple[str, keras.layers.Layer]] = []

    def visit(name: str, value: Any) -> None:
        if isinstance(value, keras.layers.Layer):
            found.append((name, value))
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(f"{name}/{key}", item)
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                visit(f"{name}/{i}", item)

    # The list of all inner layers comes last: its order may depend on when they were created.
    for name, value in sorted(
        vars(layer).items(), key=lambda item: (item[0] == "_layers", item[0])
    ):
        visit(name, value)
    return found


def _shapes(layer: keras.layers.Layer) -> list[tuple[int, ...]]:
    return [tuple(variable.shape) for variable in layer.weights]


def _array(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value))
