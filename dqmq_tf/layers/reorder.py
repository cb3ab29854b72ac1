"""Sorts a batch by quality, and restores its order."""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from dqmq_tf.precision import KEEPS_PRECISION


@keras.saving.register_keras_serializable(package="dqmq_tf")
class Reorder(keras.layers.Layer):
    """Permutes a batch, or undoes the permutation.

    Args:
        inverse: Whether to undo the permutation.
    """

    def __init__(self, inverse: bool = False, **kwargs: Any) -> None:
        super().__init__(**{**kwargs, **KEEPS_PRECISION})
        self.inverse = inverse
        self.supports_masking = True

    def call(self, x: tf.Tensor, order: tf.Tensor, like: tf.Tensor | None = None) -> tf.Tensor:
        """Permutes the batch.

        Args:
            x: A tensor `[batch, ...]`.
            order: The permutation, an integer tensor `[batch]`. If it is empty, `x` is returned.
            like: Only with `inverse`: a tensor with as many samples as the output has, if the
                permutation contains samples more than once. None if it does not.
        """
        if order.shape[0] == 0:
            return x
        if self.inverse:
            order = ops.argsort(order if like is None else order[: ops.shape(like)[0]])
        return ops.take(x, order, axis=0)

    def compute_output_spec(self, x: Any, order: Any, like: Any = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "inverse": self.inverse}
