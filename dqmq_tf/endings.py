"""What the end of a network says of its outputs: probabilities, or something else."""

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
