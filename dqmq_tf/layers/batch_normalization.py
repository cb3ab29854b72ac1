"""Batch normalization by TensorFlow's fused operation."""

import keras
import tensorflow as tf
from keras import ops

# That of the operation on a GPU.
_SMALLEST_EPSILON = 1.001e-5


@keras.saving.register_keras_serializable(package="dqmq_tf")
class FusedBatchNormalization(keras.layers.Layer):
    """Runs a batch normalization with one operation each way, and bears its name.

    Keras makes it of some fifteen operations, each of which reads and writes a whole activation: a
    third of the training step of a small convolutional network on a CPU. Values, gradients and moving
    statistics are Keras's, but for rounding; inference is Keras's own.

    Args:
        layer: A built `BatchNormalization` that `is_fusible`.

    Input shape: `[batch, height, width, channels]`. Output shape: the same.
    """

    def __init__(self, layer, **kwargs):
        kwargs = {"name": layer.name, "trainable": layer.trainable, **kwargs, "autocast": False}
        super().__init__(**kwargs)
        self.layer = layer
        self.supports_masking = True
        self.built = True

    def build(self, input_shape=None):
        """The layer was built before it was wrapped."""

    def call(self, x, training=None, mask=None):
        layer = self.layer
        if mask is not None or not training or not layer.trainable:
            return layer(x, training=training, mask=mask)
        channels = x.shape[-1]
        found = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=ops.convert_to_tensor(layer.gamma) if layer.scale else tf.ones([channels]),
            offset=ops.convert_to_tensor(layer.beta) if layer.center else tf.zeros([channels]),
            mean=[],
            variance=[],
            epsilon=layer.epsilon,
            is_training=True,
        )
        count = tf.cast(tf.size(x) // channels, "float32")
        # The operation divides by one less than the count, Keras by the count.
        variance = found.batch_variance * (count - 1.0) / count
        for moving, value in (
            (layer.moving_mean, found.batch_mean),
            (layer.moving_variance, variance),
        ):
            value = tf.stop_gradient(value)
            moving.assign(moving * layer.momentum + value * (1.0 - layer.momentum))
        return found.y

    def compute_output_spec(self, x, training=None, mask=None):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
        }

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


def is_fusible(layer, shape, dtype):
    """Returns whether a layer is a batch normalization that the fused operation can run.

    Args:
        layer: Any layer.
        shape, dtype: Of its input.
    """
    return (
        type(layer) is keras.layers.BatchNormalization
        and len(shape) == 4
        and layer.axis in (3, -1)
        and shape[-1] is not None
        and dtype == layer.compute_dtype == layer.variable_dtype == "float32"
        and layer.epsilon >= _SMALLEST_EPSILON
        and layer.activity_regularizer is None
        and not layer.synchronized
        and not getattr(layer, "renorm", False)
    )
