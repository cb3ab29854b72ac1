"""Samples of like quality are brought together, and put back."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="dqmq_tf")
class Reorder(keras.layers.Layer):
    """Puts a batch in the order of a permutation, or back; an empty permutation changes nothing.

    Args:
        inverse: Whether to put it back; `like` is then a tensor of as many samples as come out,
            None where the permutation holds no sample twice.
    """

    def __init__(self, inverse=False, **kwargs):
        super().__init__(**{**kwargs, "autocast": False})
        self.inverse = inverse
        self.supports_masking = True

    def call(self, x, order, like=None):
        if order.shape[0] == 0:
            return x
        if self.inverse:
            order = ops.argsort(order if like is None else order[: ops.shape(like)[0]])
        return ops.take(x, order, axis=0)

    def compute_output_spec(self, x, order, like=None):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self):
        return {**super().get_config(), "inverse": self.inverse}
