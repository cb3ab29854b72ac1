"""The scale on which a policy places bit-widths: candidates that are neighbors are about 1 apart.

Up to 8 bits, a level is a number of bits. The one bit-width above, 16, is level 9: there is nothing
between an int8 and an int16 tensor. A distribution, a mean and a learning rate then mean the same for
the choice between 8 and 16 bits as for the choice between 7 and 8.
"""

from typing import Any

import numpy as np

from dqmq_tf.precision import INT8_BITS, INT16_BITS


def to_levels(bits: Any) -> np.ndarray:
    """Returns the levels of bit-widths.

    Args:
        bits: Bit-widths, an array of any shape. Those between 8 and 16 are interpolated linearly.

    Returns:
        A float array of the same shape.

    Example:

    >>> to_levels([4, 8, 16])
    array([4., 8., 9.])
    """
    bits = np.asarray(bits, "float64")
    return np.minimum(bits, INT8_BITS) + np.maximum(bits - INT8_BITS, 0) / INT8_BITS


def to_bits(levels: Any) -> np.ndarray:
    """Returns the bit-widths of levels, the inverse of `to_levels`."""
    levels = np.asarray(levels, "float64")
    return np.minimum(levels, INT8_BITS) + np.maximum(levels - INT8_BITS, 0) * INT8_BITS


def candidate_levels(candidates: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the levels of candidate bit-widths, which are whole numbers."""
    return tuple(INT8_BITS + 1 if b == INT16_BITS else b for b in candidates)
