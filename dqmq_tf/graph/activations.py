"""Which activation function a layer or an output has."""

from typing import Any

import keras

from dqmq_tf.graph.plain_classes import keras_name, plain_class


def last_activation(output: Any) -> str:
    """Returns the name of the function that computes a model's output.

    Args:
        output: One of `model.outputs`. If it comes from a nested model, the innermost layer counts.

    Returns:
        `"softmax"`, `"sigmoid"`, `"relu"` and so on. `"linear"` if the last layer has an
        activation argument that was not set, and the name of its class if it has no such argument.

    Example:

    >>> last_activation(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).outputs[0])
    'linear'
    """
    history = output._keras_history
    while isinstance(history.operation, keras.Model):
        history = history.operation.outputs[history.tensor_index]._keras_history
    operation = history.operation
    activation = getattr(operation, "activation", None)
    return getattr(activation, "__name__", type(operation).__name__.lower())


# Keras does not export the classes of its operations.
_RELUS = {"Relu", "Relu6"}


def is_relu(layer: Any) -> bool:
    """Whether a layer is a relu, with or without a ceiling.

    Int8 kernels fuse a relu or relu6 into the operator before it. Any other ceiling is the end of
    the grid of the output, which clips there (see `fixed_range`).
    """
    if plain_class(layer) is keras.layers.Activation:
        return layer.activation in (keras.activations.relu, keras.activations.relu6)
    if _has_relu_arguments(layer):
        is_plain = not layer.negative_slope and not layer.threshold
        return is_plain and layer.max_value != 0
    return keras_name(layer) in _RELUS


def _has_relu_arguments(layer: Any) -> bool:
    """Whether a layer is `keras.layers.ReLU`, or a call of `keras.activations.relu`."""
    return plain_class(layer) is keras.layers.ReLU or keras_name(layer) == "ReLU"


def is_silu(layer: Any) -> bool:
    """Whether a layer or function computes `x * sigmoid(x)`, and nothing beside it."""
    if plain_class(layer) is keras.layers.Activation:
        return layer.activation is keras.activations.silu and layer.activity_regularizer is None
    return keras_name(layer) == "Silu"


def relu_ceiling(layer: Any) -> float:
    """Returns the largest value that a relu can output, infinity without a ceiling."""
    if _has_relu_arguments(layer):
        return float("inf") if layer.max_value is None else float(layer.max_value)
    activation = getattr(layer, "activation", None)
    is_relu6 = activation is keras.activations.relu6 or keras_name(layer) == "Relu6"
    return 6.0 if is_relu6 else float("inf")


def grid_ceiling(layer: Any) -> float | None:
    """Returns the ceiling of a relu that no int8 kernel has, so that the grid has to end there.

    Returns None for a relu, a relu6 and any other layer.
    """
    is_special = is_relu(layer) and relu_ceiling(layer) not in (6.0, float("inf"))
    return relu_ceiling(layer) if is_special else None


def fixed_range(layer: Any) -> str:
    """Returns the range that the int8 kernel of an activation layer prescribes for its output.

    Args:
        layer: A layer or operation. None for a model input.

    Returns:
        `"unit"` for softmax and sigmoid, `"tanh"` for tanh, `"0..255.0"` for a relu that ends at
        255, and so on for other ceilings, `"affine"` if the range is free.
    """
    ceiling = grid_ceiling(layer)
    if ceiling is not None:
        return f"0..{ceiling}"
    activation = layer.activation if plain_class(layer) is keras.layers.Activation else None
    if activation in (keras.activations.softmax, keras.activations.sigmoid):
        return "unit"
    if keras_name(layer) in ("Softmax", "Sigmoid"):
        return "unit"
    if activation is keras.activations.tanh or keras_name(layer) == "Tanh":
        return "tanh"
    return "affine"
