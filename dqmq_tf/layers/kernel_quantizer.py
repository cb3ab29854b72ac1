"""Quantizes a kernel with the step sizes and the bits of a decision."""

import functools
from collections.abc import Callable

import tensorflow as tf

from dqmq_tf.layers import lsq
from dqmq_tf.layers.graph_functions import one_node
from dqmq_tf.policy import decision_tensor


@functools.cache
def kernel_quantizer(
    reduced_axes: tuple[int, ...], rank: int, candidates: tuple[int, ...], fields: int
) -> Callable[..., tf.Tensor]:
    """Returns a function of a kernel, its step sizes and a decision row. It is one node in a graph.

    Args:
        reduced_axes: The axes of the kernel that share a step.
        rank: The rank of the kernel.
        candidates: The K candidate bit-widths.
        fields: The number of fields in the decision row `[fields]`.

    Returns:
        A function `(weights, log_step, row) -> quantized weights`; `log_step` has shape `[K, ...]`.
    """
    scalar_shape = (1,) * rank
    step_shape = [1 if axis in reduced_axes else None for axis in range(rank)]

    def quantize(weights: tf.Tensor, log_step: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
        bits = decision_tensor.bit_widths_of(row)
        table = tf.reshape(log_step, (len(candidates), -1))
        steps = tf.unstack(tf.exp(decision_tensor.look_up(table, candidates, bits)))
        steps = [tf.reshape(step, tf.shape(log_step)[1:]) for step in steps]
        parameters = []
        for step, bit_width in zip(steps, tf.unstack(bits)):
            q_min, q_max = (tf.reshape(q, scalar_shape) for q in lsq.weight_limits(bit_width))
            parameters.append((tf.ensure_shape(step, step_shape), q_min, q_max))
        if fields == 1:
            return lsq.quantize(weights, *parameters[0])
        slope, mean = (
            tf.reshape(row[i], scalar_shape) for i in (decision_tensor.SLOPE, decision_tensor.MEAN)
        )
        executed, low, high = parameters
        return lsq.relaxed_quantize(weights, executed, low, high, mean, slope)

    signature = [
        tf.TensorSpec([None] * rank),
        tf.TensorSpec([len(candidates), *step_shape]),
        tf.TensorSpec([fields]),
    ]
    return one_node(quantize, signature)
