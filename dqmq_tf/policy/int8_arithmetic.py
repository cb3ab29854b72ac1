"""The 8-bit arithmetic of everything that decides: encoder, policy and quality normalization.

Deciding is part of the cost of an input. In floating point, the few products of the policy of a
small network would take as much of the budget as a layer.
"""

import tensorflow as tf
from keras import ops

DECIDER_BITS = 8


def fake_int8(values: tf.Tensor, largest: float | None = None) -> tf.Tensor:
    """Rounds values to a symmetric 8-bit grid; the gradient passes straight through.

    Args:
        values: A tensor of any shape. Values beyond `largest` are not clipped.
        largest: The magnitude at which the grid ends. None takes the largest magnitude in `values`.

    Returns:
        A float tensor of the same shape.
    """
    if largest is None:
        largest = ops.stop_gradient(ops.max(ops.abs(values))) + 1e-8
    step = ops.cast(largest, "float32") / (2.0 ** (DECIDER_BITS - 1) - 1)
    return values + ops.stop_gradient(ops.round(values / step) * step - values)
