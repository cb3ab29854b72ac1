"""The precision of what decides: encoder, policy and normalization compute with 8-bit numbers.

They are part of what an input costs. In floating point the few products of a small network's
policy took as much of its budget as a layer does.
"""

from keras import ops

DECIDER_BITS = 8


def fake_int8(values, largest=None):
    """Fake-quantizes to 8 bits, symmetric, with a straight-through round.

    Args:
        values: Tensor.
        largest: Magnitude that the grid ends at; None for the largest of the values.
    """
    if largest is None:
        largest = ops.stop_gradient(ops.max(ops.abs(values))) + 1e-8
    step = ops.cast(largest, "float32") / (2.0 ** (DECIDER_BITS - 1) - 1)
    return values + ops.stop_gradient(ops.round(values / step) * step - values)
