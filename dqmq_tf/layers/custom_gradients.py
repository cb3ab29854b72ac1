"""Frees the traced graphs of a model together with the model.

In a graph, TensorFlow registers a gradient function under a new name for each call of a
`tf.custom_gradient` function, and never removes it. The gradient function holds tensors of the
graph, so one such call keeps the whole graph. A search over many models would run out of memory.

Graphs that all models share, those of `graph_functions`, keep their gradient functions.
"""

import contextlib
import weakref
from collections.abc import Iterator, MutableMapping
from typing import Any

import tensorflow as tf

_PREFIX = "CustomGradient-"
# The gradient functions of graphs that outlive the model for which they were traced.
_shared: set[str] = set()


class CustomGradients:
    """Removes the gradient functions that were registered for an object once the object is gone.

    Args:
        owner: The object whose methods trace graphs, such as a model.
    """

    def __init__(self, owner: Any) -> None:
        self._names: set[str] = set()
        weakref.finalize(owner, _remove, self._names).atexit = False

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Records the gradient functions that are registered within the context.

        The graphs that are traced there can be differentiated for as long as the owner exists.
        """
        if tf.executing_eagerly():
            yield
            return
        before = _registered_names()
        try:
            yield
        finally:
            self._names |= _registered_names() - before


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Keeps the gradient functions that are registered within the context, whoever owns them."""
    before = _registered_names()
    try:
        yield
    finally:
        _shared.update(_registered_names() - before)


def _registry() -> MutableMapping[str, Any]:
    """Returns TensorFlow's registry of gradient functions, which has no public name.

    Returns:
        The registry. An empty dictionary if a version of TensorFlow keeps it elsewhere: graphs then
        stay in memory, as they do for any Keras model.
    """
    try:
        from tensorflow.python.framework.ops import gradient_registry

        return gradient_registry._registry
    except (ImportError, AttributeError):
        return {}


def _registered_names() -> set[str]:
    return {name for name in list(_registry()) if name.startswith(_PREFIX)}


def _remove(names: set[str]) -> None:
    registry = _registry()
    for name in names - _shared:
        registry.pop(name, None)
