"""Batch normalization with TensorFlow's fused operation, optionally scaled by quality."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from dqmq_tf.layers.graph_functions import BLOCK, graph_function, in_blocks, worth_compiling
from dqmq_tf.layers.quality_affine import QualityAffine, scale_and_shift

# The smallest epsilon that the fused operation accepts on a GPU.
_SMALLEST_EPSILON = 1.001e-5


@keras.saving.register_keras_serializable(package="dqmq_tf")
class FusedBatchNormalization(keras.layers.Layer):
    """Runs a batch normalization with one operation for each direction. It has the layer's name.

    Keras builds a batch normalization from about fifteen operations, each of which reads and writes
    a whole activation. On a CPU that is a third of the training step of a small convolutional
    network. Outputs, gradients and moving statistics agree with Keras up to rounding. Inference
    calls the Keras layer.

    With a `QualityAffine` behind it, the gradient of both layers takes no more passes over the
    activation than the gradient of the normalization alone, because both need the same two sums
    over positions.

    Args:
        layer: A built `BatchNormalization` for which `is_fusible` is true.
        affine: The `QualityAffine` that follows the layer, or None.

    Input: a tensor `[batch, height, width, channels]` and, with an `affine`, the quality embedding
    `[batch, d]`. Output: like the tensor.
    """

    def __init__(
        self,
        layer: keras.layers.BatchNormalization,
        affine: QualityAffine | None = None,
        **kwargs: Any,
    ) -> None:
        # The affine keeps learning if the normalization is frozen.
        trainable = layer.trainable or affine is not None
        kwargs = {"name": layer.name, "trainable": trainable, **kwargs, "autocast": False}
        super().__init__(**kwargs)
        self.layer, self.affine = layer, affine
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
        if self.affine is None:
            y, *statistics = _normalize(x, gamma, beta, layer.epsilon)
        else:
            scale, shift = self.affine.factors(z)
            y, *statistics = _normalize_by_quality(x, gamma, beta, scale, shift, layer.epsilon)
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
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "FusedBatchNormalization":
        layer, affine = (
            saved and keras.saving.deserialize_keras_object(saved)
            for saved in (config.pop("layer"), config.pop("affine"))
        )
        return cls(layer, affine, **config)


def is_fusible(layer: keras.layers.Layer, shape: tuple[int | None, ...], dtype: str) -> bool:
    """Returns whether the fused operation can run a layer.

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
    """Returns the normalized tensor, and the mean and variance of the batch, each `[channels]`."""
    fused = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    count = tf.cast(tf.size(x) // x.shape[-1], "float32")
    # The operation divides the variance by count - 1, Keras divides it by count.
    return fused.y, fused.batch_mean, fused.batch_variance * (count - 1.0) / count


def _normalize_by_quality(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    scale: tf.Tensor,
    shift: tf.Tensor,
    epsilon: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns `scale * normalized + shift`, and the batch statistics as `_normalize` does.

    `scale` and `shift` have shape `[batch, channels]`.

    Let `g` be the gradient with respect to the output. All gradients follow from two sums over the
    positions of each sample, `sum(g)` and `sum(g * (x - mean))`. They give the gradients of `scale`
    and `shift` directly. Multiplied by `scale` and summed over the batch, they give those of `gamma`
    and `beta`, which in turn determine the gradient of `x` as in any batch normalization (Ioffe and
    Szegedy 2015, arXiv 1502.03167, section 3).
    """
    compiled = worth_compiling(x)

    @tf.custom_gradient
    def apply(
        x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor
    ) -> tuple[tuple[tf.Tensor, ...], Callable[..., tuple[tf.Tensor, ...]]]:
        normalized, mean, variance = _normalize(x, gamma, beta, epsilon)

        def gradient(upstream: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            inverse = tf.math.rsqrt(variance + epsilon)
            sums, products = _position_sums(upstream, x, mean, compiled)
            products *= inverse
            to_gamma, to_beta = (tf.reduce_sum(scale * v, axis=0) for v in (products, sums))
            count = tf.cast(tf.size(x) // x.shape[-1], "float32")
            slope = -gamma * tf.square(inverse) * to_gamma / count
            constant = -gamma * inverse * to_beta / count - slope * mean
            to_x = _gradient_loop(compiled)(
                upstream,
                x,
                _as_rank_4(scale * gamma * inverse),
                _as_rank_4(slope),
                _as_rank_4(constant),
            )
            return to_x, to_gamma, to_beta, gamma * products + beta * sums, sums

        loop = scale_and_shift("float32", 4, (1, 2), compiled)
        y = loop(normalized, _as_rank_4(scale), _as_rank_4(shift))
        return (y, mean, variance), gradient

    y, mean, variance = apply(x, gamma, beta, scale, shift)
    y.set_shape(x.shape)
    return y, mean, variance


def _as_rank_4(values: tf.Tensor) -> tf.Tensor:
    """Reshapes `[channels]` or `[batch, channels]` to broadcast against an activation."""
    return tf.reshape(values, (-1, 1, 1, values.shape[-1]))


def _position_sums(
    upstream: tf.Tensor, x: tf.Tensor, mean: tf.Tensor, compiled: bool
) -> list[tf.Tensor]:
    """Returns the sums of `upstream` and `upstream * (x - mean)` over positions.

    Both sums have shape `[batch, channels]`.
    """
    channels = x.shape[-1]
    blocks = in_blocks(x)
    if not compiled or blocks is None or BLOCK % channels:
        return [tf.reduce_sum(v, (1, 2)) for v in (upstream, upstream * (x - mean))]
    tiled_mean = tf.reshape(tf.tile(mean, [BLOCK // channels]), (32, 32))
    block_sums = _sums_loop()(tf.reshape(upstream, (-1, *blocks.shape[1:])), blocks, tiled_mean)
    shape = (-1, BLOCK // channels, channels)
    return [tf.reduce_sum(tf.reshape(v, shape), 1) for v in block_sums]


@functools.cache
def _gradient_loop(compiled: bool) -> Callable[..., tf.Tensor]:
    """Returns a function `(upstream, x, scale, slope, constant) -> gradient of x`.

    The last three arguments hold one value per channel, and `scale` one per sample as well.
    """
    activation, per_channel = tf.TensorSpec([None] * 4), tf.TensorSpec([None, 1, 1, None])
    return graph_function(
        lambda upstream, x, scale, slope, constant: upstream * scale + x * slope + constant,
        [activation, activation, per_channel, per_channel, per_channel],
        compiled,
    )


@functools.cache
def _sums_loop() -> Callable[..., list[tf.Tensor]]:
    """Returns a function `(upstream, x, mean) -> sums over blocks`; all arguments are in blocks."""
    blocks = tf.TensorSpec([None, None, 32, 32])
    return graph_function(
        lambda upstream, x, mean: [tf.reduce_sum(v, 1) for v in (upstream, upstream * (x - mean))],
        [blocks, blocks, tf.TensorSpec([32, 32])],
        compiled=True,
    )
