"""The Keras class that a layer computes as, also if its own class only sets other defaults."""

from typing import Any

import keras

from dqmq_tf.graph.cloning import is_from_keras

# What is known of these classes goes into kernels before and behind them.
_KNOWN = (
    keras.layers.Activation,
    keras.layers.BatchNormalization,
    keras.layers.Normalization,
    keras.layers.ReLU,
    keras.layers.Rescaling,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
# What a class may define without computing something else.
_HARMLESS = {"get_config", "from_config"}


def keras_name(layer: Any) -> str:
    """Returns the name of the class of a layer or operation of Keras, `""` for any other class.

    Keras does not export the classes of its operations, so they are known by their names. A class of
    the user's own may have the same name.

    Args:
        layer: A layer or operation, or None.

    Example:

    >>> keras_name(keras.layers.Add())
    'Add'
    """
    kind = type(layer)
    return kind.__name__ if is_from_keras(kind) else ""


def plain_class(layer: Any) -> type:
    """Returns the class whose computation a layer or operation has.

    That is its own class. A subclass of `ReLU`, `BatchNormalization` and the like that defines only
    `__init__` and how it is saved has that of the Keras layer.

    Args:
        layer: A layer or operation, or None.

    Example:

    >>> class Capped(keras.layers.ReLU):
    ...     def __init__(self, **kwargs):
    ...         super().__init__(**{"max_value": 4.0, **kwargs})
    >>> plain_class(Capped()) is keras.layers.ReLU
    True
    """
    for kind in type(layer).__mro__:
        if kind in _KNOWN:
            return kind
        defined = {name for name in vars(kind) if not name.startswith("__")}
        if defined - _HARMLESS or "__call__" in vars(kind):
            break
    return type(layer)
