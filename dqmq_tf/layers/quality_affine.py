"""A scale and a shift behind a batch normalization that depend on the quality of the input."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from dqmq_tf.layers.graph_functions import graph_function, worth_compiling
from dqmq_tf.policy.int8_arithmetic import DECIDER_BITS, fake_int8
from dqmq_tf.precision import KEEPS_PRECISION

# The largest absolute logarithm of a scale.
_MAX_LOG_SCALE = 1.5


@keras.saving.register_keras_serializable(package="dqmq_tf")
class QualityAffine(keras.layers.Layer):
    """Scales and shifts each channel of a batch normalization by the quality embedding.

    `y = x * exp(<u_c, z>) + <v_c, z>`. A dark or flat image covers a fraction of the range of other
    images, so that one scale for all images leaves it only a handful of levels at low bit-widths.
    Integer kernels apply a multiplier and a bias per channel anyway. The only cost is to compute
    them from `z`: two products per channel and embedding entry, trained at 8 bits. With a constant
    `z`, as in a frozen precision profile, the layer folds into the batch normalization exactly.

    The layer follows conditional batch normalization (de Vries et al. 2017, "Modulating early visual
    processing by language", arXiv 1707.00683), with the quality as the condition.

    Args:
        axis: The channel axis.

    Input: a tensor `[batch, ...]` and an embedding `[batch, d]` in (-1, 1). Output: like the tensor.
    """

    def __init__(self, axis: int = -1, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, **KEEPS_PRECISION})
        self.axis = axis

    def build(self, x_shape: Any, z_shape: Any) -> None:
        shape = (z_shape[-1], x_shape[self.axis])
        self.scale_direction = self.add_weight(
            name="scale", shape=shape, initializer="zeros", dtype="float32"
        )
        self.shift_direction = self.add_weight(
            name="shift", shape=shape, initializer="zeros", dtype="float32"
        )

    def call(self, x: tf.Tensor, z: tf.Tensor) -> tf.Tensor:
        shape = [1] * len(x.shape)
        shape[0], shape[self.axis] = -1, x.shape[self.axis]
        scale, shift = (ops.cast(ops.reshape(v, shape), x.dtype) for v in self.factors(z))
        axes = tuple(i for i in range(1, len(shape)) if shape[i] == 1)
        y = scale_and_shift(x.dtype, len(shape), axes, worth_compiling(x))(x, scale, shift)
        y.set_shape(x.shape)
        return y

    def factors(self, z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the scales and shifts for embeddings `[batch, d]`, each `[batch, channels]`."""
        log_scale = ops.matmul(z, fake_int8(self.scale_direction))
        shift = ops.matmul(z, fake_int8(self.shift_direction))
        return ops.exp(ops.clip(log_scale, -_MAX_LOG_SCALE, _MAX_LOG_SCALE)), shift

    def compute_output_spec(self, x: Any, z: Any) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    @staticmethod
    def bit_operations(embedding_size: int, channels: int) -> int:
        """Returns the bit operations that the layer takes for one input."""
        return DECIDER_BITS**2 * 2 * embedding_size * channels

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "axis": self.axis}


@functools.cache
def scale_and_shift(
    dtype: tf.DType | str, rank: int, axes: tuple[int, ...], compiled: bool
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function `(x, scale, shift) -> x * scale + shift`.

    XLA compiles it into one loop forward and one for the gradient of `x`. The sums over positions
    for the other gradients stay with TensorFlow, which computes them faster than XLA.

    Args:
        dtype: The type of all tensors.
        rank: The rank of all tensors.
        axes: The axes, other than the batch, on which `scale` and `shift` have size 1.
        compiled: Whether XLA is used.
    """
    factor_shape = [1 if axis in axes else None for axis in range(rank)]
    tensor, factor = tf.TensorSpec([None] * rank, dtype), tf.TensorSpec(factor_shape, dtype)
    forward = graph_function(lambda x, u, v: x * u + v, [tensor, factor, factor], compiled)
    product = graph_function(lambda x, u: x * u, [tensor, factor], compiled)

    @tf.custom_gradient
    def apply(
        x: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, ...]]]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            sums = (tf.reduce_sum(y, axes, keepdims=True) for y in (upstream * x, upstream))
            return product(upstream, scale), *sums

        return forward(x, scale, shift), gradient

    return apply
