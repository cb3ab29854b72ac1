"""Batch normalization whose scale and shift follow the quality of the input."""

import functools

import keras
import tensorflow as tf
from keras import ops

from dqmq_tf.layers.graph_functions import graph_function, worth_compiling
from dqmq_tf.policy.int8_arithmetic import DECIDER_BITS, fake_int8

_LARGEST = 1.5


@keras.saving.register_keras_serializable(package="dqmq_tf")
class QualityAffine(keras.layers.Layer):
    """Scales and shifts each channel of a batch normalization by the quality embedding.

    `y = x * exp(<u_c, z>) + <v_c, z>`: a dark or flat image spans a fraction of the range that one
    scale for all would give it, and few bits leave it a handful of levels. An integer kernel has
    a multiplier and a bias per channel in any case, so what it costs is to compute these from `z`:
    two products per channel and entry of `z`, which are trained at 8 bits. With a constant `z`, as
    for a frozen precision profile, it folds into the batch normalization exactly.

    After conditional batch normalization (de Vries et al. 2017, "Modulating early visual processing
    by language", arXiv 1707.00683), the condition being the quality.

    Args:
        axis: Of the channels.

    Input: tensor `[batch, ...]` and embedding `[batch, d]` in (-1, 1). Output: like the tensor.
    """

    def __init__(self, axis=-1, **kwargs):
        super().__init__(**{**kwargs, "autocast": False})
        self.axis = axis

    def build(self, x_shape, z_shape):
        def weight(name):
            return self.add_weight(
                name=name, shape=(z_shape[-1], x_shape[self.axis]), initializer="zeros",
                dtype="float32",
            )  # fmt: skip

        self.scale_direction, self.shift_direction = weight("scale"), weight("shift")

    def call(self, x, z):
        shape = [1] * len(x.shape)
        shape[0], shape[self.axis] = -1, x.shape[self.axis]
        scale, shift = (ops.cast(ops.reshape(v, shape), x.dtype) for v in self.factors(z))
        axes = tuple(i for i in range(1, len(shape)) if shape[i] == 1)
        y = scale_and_shift(x.dtype, len(shape), axes, worth_compiling(x))(x, scale, shift)
        y.set_shape(x.shape)
        return y

    def factors(self, z):
        """Returns scale and shift of each channel, `[batch, channels]`, at embeddings."""
        scale, shift = (
            ops.matmul(z, fake_int8(u)) for u in (self.scale_direction, self.shift_direction)
        )
        return ops.exp(ops.clip(scale, -_LARGEST, _LARGEST)), shift

    def compute_output_spec(self, x, z):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    @staticmethod
    def bit_operations(embedding_size, channels):
        """Returns the bit operations per input of such a layer."""
        return DECIDER_BITS**2 * 2 * embedding_size * channels

    def get_config(self):
        return {**super().get_config(), "axis": self.axis}


@functools.cache
def scale_and_shift(dtype, rank, axes, compiled):
    """A function of a tensor, and its scale and shift, which are 1 long on some axes.

    XLA makes one loop of it forwards, and one of the product backwards. Sums over positions are the
    one thing that it does more slowly than TensorFlow, so that they are taken apart.

    Args:
        dtype, rank: Of the tensor.
        axes: Along which scale and shift are the same, the batch not being one.
        compiled: Whether XLA is used.
    """
    tensor, each = tf.TensorSpec([None] * rank, dtype), [None] * rank
    for axis in axes:
        each[axis] = 1
    each = tf.TensorSpec(each, dtype)
    forward = graph_function(lambda x, u, v: x * u + v, [tensor, each, each], compiled)
    product = graph_function(lambda x, u: x * u, [tensor, each], compiled)

    @tf.custom_gradient
    def apply(x, scale, shift):
        def gradient(upstream):
            sums = (tf.reduce_sum(y, axes, keepdims=True) for y in (upstream * x, upstream))
            return product(upstream, scale), *sums

        return forward(x, scale, shift), gradient

    return apply
