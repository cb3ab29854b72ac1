"""Activations in slices, over which XLA sums as fast as it reads.

XLA on a CPU vectorizes element-wise loops, but not sums over a whole activation. The sum of eight
slices is element-wise, and an eighth of the values is left to sum up.
"""

import math
from collections.abc import Sequence

import tensorflow as tf

# The most slices of a sample.
_MOST = 8


def in_slices(x: tf.Tensor) -> tf.Tensor:
    """Returns a tensor `[batch, ...]` reshaped to `[batch, slices, n]`.

    `slices` is the largest number up to 8 that divides the size of a sample, 1 if that is unknown.
    """
    if None in x.shape[1:]:
        return tf.reshape(x, (tf.shape(x)[0], 1, -1))
    size = math.prod(x.shape[1:])
    count = _count(size)
    return tf.reshape(x, (-1, count, size // count))


def in_slices_of_positions(x: tf.Tensor) -> tf.Tensor:
    """Returns a tensor `[batch, ..., channels]` reshaped to `[batch, slices, n, channels]`."""
    channels = x.shape[-1]
    if None in x.shape[1:-1]:
        return tf.reshape(x, (tf.shape(x)[0], 1, -1, channels))
    positions = math.prod(x.shape[1:-1])
    count = _count(positions)
    return tf.reshape(x, (-1, count, positions // count, channels))


def restored(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Returns slices in the shape of the tensor that was cut."""
    if None in like.shape[1:]:
        values = tf.reshape(values, tf.shape(like))
    else:
        values = tf.reshape(values, (-1, *like.shape[1:]))
    values.set_shape(like.shape)
    return values


def sum_over(values: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    """Returns the sum over axes, which keep size 1. Axis 1 may hold the slices of a sample."""
    if 1 in axes and 1 < (values.shape[1] or 0) <= _MOST:
        values = tf.expand_dims(tf.add_n(tf.unstack(values, axis=1)), 1)
    return tf.reduce_sum(values, axes, keepdims=True)


def _count(size: int) -> int:
    """Returns the number of slices of equal size."""
    return max(count for count in range(1, _MOST + 1) if size % count == 0)
