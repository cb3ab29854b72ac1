"""Which activation function a layer or an output has."""

import keras


def last_activation(output):
    """Returns the name of the function that a model's output comes from.

    Args:
        output: One of `model.outputs`; of nested models the innermost is looked at.

    Returns:
        `"softmax"`, `"sigmoid"`, `"relu"` and so on; `"linear"` where the last layer has an
        activation but none was chosen, and the name of its class where it has none.

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


# Layers and operations by class name: Keras has two classes for one thing (layers.Add, ops.add).
_RELUS = {"ReLU", "Relu", "Relu6"}


def is_relu(layer):
    """Whether a layer is relu or relu6, which int8 kernels fuse into the op before."""
    if isinstance(layer, keras.layers.Activation):
        return layer.activation in (keras.activations.relu, keras.activations.relu6)
    if isinstance(layer, keras.layers.ReLU):
        plain = not layer.negative_slope and not layer.threshold
        return plain and layer.max_value in (None, 6, 6.0)
    return type(layer).__name__ in _RELUS


def relu_ceiling(layer):
    """Returns the largest value that a relu or relu6 lets pass: infinity or 6."""
    if isinstance(layer, keras.layers.ReLU):
        return float("inf") if layer.max_value is None else 6.0
    activation = getattr(layer, "activation", None)
    is_six = activation is keras.activations.relu6 or type(layer).__name__ == "Relu6"
    return 6.0 if is_six else float("inf")


def fixed_range(layer):
    """The range that the kernel of a lone activation fixes."""
    activation = layer.activation if isinstance(layer, keras.layers.Activation) else None
    if activation in (keras.activations.softmax, keras.activations.sigmoid):
        return "unit"
    if type(layer).__name__ in ("Softmax", "Sigmoid"):
        return "unit"
    if activation is keras.activations.tanh or type(layer).__name__ == "Tanh":
        return "tanh"
    return "affine"
