"""Batch normalization in few passes over an activation, optionally scaled by quality."""

from typing import Any

import keras
import tensorflow as tf

from dqmq_tf.layers.graph_functions import worth_compiling
from dqmq_tf.layers.normalization import Normalization
from dqmq_tf.layers.quality_affine import QualityAffine
from dqmq_tf.precision import KEEPS_PRECISION

# The smallest epsilon that the fused operation accepts on a GPU.
_SMALLEST_EPSILON = 1.001e-5


@keras.saving.register_keras_serializable(package="dqmq_tf")
class FusedBatchNormalization(keras.layers.Layer):
    """Runs a batch normalization in few passes over the activation. It has the layer's name.

    Keras builds a batch normalization from about fifteen operations, each of which reads and writes
    a whole activation. On a CPU that is a third of the training step of a small convolutional
    network. Here, XLA compiles its loops, together with the quantizer behind it (`Normalization`);
    other activations without an affine take TensorFlow's fused operation. Outputs, gradients and
    moving statistics agree with Keras up to rounding. Inference calls the Keras layer.

    With a `QualityAffine` behind it, the gradient of both layers takes no more passes over the
    activation than the gradient of the normalization alone, because both need the same two sums
    over positions.

    Args:
        layer: A built `BatchNormalization` for which `is_fusible` is true.
        affine: The `QualityAffine` that follows the layer, or None.
        compiled: Whether XLA compiles the loops (see `shapes_worth_compiling`). With an affine it
            does so from 4,096 values per sample.

    Input: a tensor `[batch, height, width, channels]` and, with an `affine`, the quality embedding
    `[batch, d]`. Output: like the tensor.
    """

    # Each shape of an activation costs three compilations, about two seconds of processor time in
    # all. That pays where a sample has this many values, and where the shape holds this share of the
    # values of all normalized activations in the network.
    COMPILED_VALUES, COMPILED_SHARE = 24_576, 0.08

    def __init__(
        self,
        layer: keras.layers.BatchNormalization,
        affine: QualityAffine | None = None,
        compiled: bool = False,
        **kwargs: Any,
    ) -> None:
        # The affine keeps learning if the normalization is frozen.
        trainable = layer.trainable or affine is not None
        kwargs = {"name": layer.name, "trainable": trainable, **kwargs, **KEEPS_PRECISION}
        super().__init__(**kwargs)
        self.layer, self.affine, self.compiled = layer, affine, compiled
        self.supports_masking = True
        self.built = affine is None

    def build(self, x_shape: Any, z_shape: Any = None) -> None:
        """Builds the affine. The layer was built before it was wrapped."""
        if self.affine is not None and not self.affine.built:
            self.affine.build(x_shape, z_shape)

    def call(
        self,
        x: tf.Tensor,
        training: bool | None = None,
        mask: tf.Tensor | None = None,
        z: tf.Tensor | None = None,
    ) -> tf.Tensor:
        layer = self.layer
        if mask is not None or not training or not layer.trainable:
            y = layer(x, training=training, mask=mask)
            return y if self.affine is None else self.affine(y, z)
        channels = [x.shape[-1]]
        gamma = tf.convert_to_tensor(layer.gamma) if layer.scale else tf.ones(channels)
        beta = tf.convert_to_tensor(layer.beta) if layer.center else tf.zeros(channels)
        pays = self.compiled or self.affine is not None and worth_compiling(x)
        # Calibration calls each layer once, outside of a graph. Compilation would take longer.
        compiled = pays and not tf.executing_eagerly()
        if compiled or self.affine is not None:
            factors = None if self.affine is None else self.affine.factors(z)
            normalization = Normalization(x, gamma, beta, layer.epsilon, factors, compiled)
            y = normalization.output()
            statistics = [normalization.mean, normalization.variance]
        else:
            y, *statistics = _normalize(x, gamma, beta, layer.epsilon)
        for moving, value in zip((layer.moving_mean, layer.moving_variance), statistics):
            value = tf.stop_gradient(value)
            moving.assign(moving * layer.momentum + value * (1.0 - layer.momentum))
        return y

    def compute_output_spec(
        self, x: Any, training: bool | None = None, mask: Any = None, z: Any = None
    ) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self) -> dict[str, Any]:
        layers = {"layer": self.layer, "affine": self.affine}
        return {
            **super().get_config(),
            **{k: v and keras.saving.serialize_keras_object(v) for k, v in layers.items()},
            "compiled": self.compiled,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FusedBatchNormalization":
        layer, affine = (
            saved and keras.saving.deserialize_keras_object(saved)
            for saved in (config.pop("layer"), config.pop("affine"))
        )
        return cls(layer, affine, **config)


def is_fusible(layer: keras.layers.Layer, shape: tuple[int | None, ...], dtype: str) -> bool:
    """Returns whether a `FusedBatchNormalization` can run a layer.

    Args:
        layer: Any layer.
        shape: The shape of its input.
        dtype: The type of its input.
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


def _normalize(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the normalized tensor, and the mean and variance of the batch, each `[channels]`.

    It is TensorFlow's fused operation.
    """
    fused = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    count = tf.cast(tf.size(x) // x.shape[-1], "float32")
    # The operation divides the variance by count - 1, Keras divides it by count.
    return fused.y, fused.batch_mean, fused.batch_variance * (count - 1.0) / count
