"""Batch normalization by TensorFlow's fused operation, and by quality in the same passes."""

import functools

import keras
import tensorflow as tf

from dqmq_tf.layers.graph_functions import BLOCK, graph_function, in_blocks, worth_compiling
from dqmq_tf.layers.quality_affine import scale_and_shift

# That of the operation on a GPU.
_SMALLEST_EPSILON = 1.001e-5


@keras.saving.register_keras_serializable(package="dqmq_tf")
class FusedBatchNormalization(keras.layers.Layer):
    """Runs a batch normalization with one operation each way, and bears its name.

    Keras makes it of some fifteen operations, each of which reads and writes a whole activation: a
    third of the training step of a small convolutional network on a CPU. Values, gradients and moving
    statistics are Keras's, but for rounding; inference is Keras's own.

    With a `QualityAffine` behind it, the gradient of both together takes no more passes over an
    activation than that of the normalization alone: both need the same two sums over positions.

    Args:
        layer: A built `BatchNormalization` that `is_fusible`.
        affine: `QualityAffine` that follows it, or None.

    Input: tensor `[batch, height, width, channels]`, and with an `affine` the quality embedding
    `[batch, d]`. Output: like the tensor.
    """

    def __init__(self, layer, affine=None, **kwargs):
        # Behind a frozen normalization the affine still learns.
        trainable = layer.trainable or affine is not None
        kwargs = {"name": layer.name, "trainable": trainable, **kwargs, "autocast": False}
        super().__init__(**kwargs)
        self.layer, self.affine = layer, affine
        self.supports_masking = True
        self.built = affine is None

    def build(self, x_shape, z_shape=None):
        """Builds the affine; the layer was built before it was wrapped."""
        if not self.affine.built:
            self.affine.build(x_shape, z_shape)

    def call(self, x, training=None, mask=None, z=None):
        layer = self.layer
        if mask is not None or not training or not layer.trainable:
            y = layer(x, training=training, mask=mask)
            return y if self.affine is None else self.affine(y, z)
        channels = [x.shape[-1]]
        gamma = tf.convert_to_tensor(layer.gamma) if layer.scale else tf.ones(channels)
        beta = tf.convert_to_tensor(layer.beta) if layer.center else tf.zeros(channels)
        if self.affine is None:
            y, *statistics = _normalized(x, gamma, beta, layer.epsilon)
        else:
            y, *statistics = _conditioned(x, gamma, beta, *self.affine.factors(z), layer.epsilon)
        for moving, value in zip((layer.moving_mean, layer.moving_variance), statistics):
            value = tf.stop_gradient(value)
            moving.assign(moving * layer.momentum + value * (1.0 - layer.momentum))
        return y

    def compute_output_spec(self, x, training=None, mask=None, z=None):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self):
        parts = {"layer": self.layer, "affine": self.affine}
        parts = {k: v and keras.saving.serialize_keras_object(v) for k, v in parts.items()}
        return {**super().get_config(), **parts}

    @classmethod
    def from_config(cls, config):
        parts = [config.pop(name) for name in ("layer", "affine")]
        return cls(*[v and keras.saving.deserialize_keras_object(v) for v in parts], **config)


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


def _normalized(x, gamma, beta, epsilon):
    """Returns the normalized tensor, and mean and variance of the batch, `[channels]`."""
    found = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    count = tf.cast(tf.size(x) // x.shape[-1], "float32")
    # The operation divides by one less than the count, Keras by the count.
    return found.y, found.batch_mean, found.batch_variance * (count - 1.0) / count


def _conditioned(x, gamma, beta, scale, shift, epsilon):
    """`scale * normalized + shift`, with scale and shift `[batch, channels]`; see `_normalized`.

    Of the gradient `g` to the output, all sums that are needed follow from those over the positions of
    a sample, `sum(g)` and `sum(g * (x - mean))`: those to scale and shift, and, weighed by the scale
    and added up over the batch, those to gamma and beta, by which the gradient to `x` is that of a
    batch normalization (Ioffe and Szegedy 2015, arXiv 1502.03167, section 3).
    """
    compiled = worth_compiling(x)

    @tf.custom_gradient
    def apply(x, gamma, beta, scale, shift):
        normalized, mean, variance = _normalized(x, gamma, beta, epsilon)

        def gradient(upstream, *_):
            inverse = tf.math.rsqrt(variance + epsilon)
            sums, products = _position_sums(upstream, x, mean, compiled)
            products *= inverse
            to_gamma, to_beta = (tf.reduce_sum(scale * v, axis=0) for v in (products, sums))
            count = tf.cast(tf.size(x) // x.shape[-1], "float32")
            slope = -gamma * tf.square(inverse) * to_gamma / count
            constant = -gamma * inverse * to_beta / count - slope * mean
            to_x = _gradient_loop(compiled)(
                upstream, x, _each(scale * gamma * inverse), _each(slope), _each(constant)
            )
            return to_x, to_gamma, to_beta, gamma * products + beta * sums, sums

        loop = scale_and_shift("float32", 4, (1, 2), compiled)
        y = loop(normalized, _each(scale), _each(shift))
        return (y, mean, variance), gradient

    y, mean, variance = apply(x, gamma, beta, scale, shift)
    y.set_shape(x.shape)
    return y, mean, variance


def _each(values):
    """Values `[channels]` or `[batch, channels]` as a tensor of rank 4."""
    return tf.reshape(values, (-1, 1, 1, values.shape[-1]))


def _position_sums(upstream, x, mean, compiled):
    """Sums of `upstream`, and of its product with `x - mean`, over positions: `[batch, channels]`."""
    channels = x.shape[-1]
    blocks = in_blocks(x)
    if not compiled or blocks is None or BLOCK % channels:
        return [tf.reduce_sum(v, (1, 2)) for v in (upstream, upstream * (x - mean))]
    centre = tf.reshape(tf.tile(mean, [BLOCK // channels]), (32, 32))
    found = _sums_loop()(tf.reshape(upstream, (-1, *blocks.shape[1:])), blocks, centre)
    return [tf.reduce_sum(tf.reshape(v, (-1, BLOCK // channels, channels)), 1) for v in found]


@functools.cache
def _gradient_loop(compiled):
    """A function of an upstream gradient, a tensor, and what weighs them in each channel."""
    tensor, each = tf.TensorSpec([None] * 4), tf.TensorSpec([None, 1, 1, None])
    return graph_function(
        lambda upstream, x, scale, slope, constant: upstream * scale + x * slope + constant,
        [tensor, tensor, each, each, each],
        compiled,
    )


@functools.cache
def _sums_loop():
    """A function of the blocks of an upstream gradient and a tensor, and of a block of its means."""
    blocks = tf.TensorSpec([None, None, 32, 32])
    return graph_function(
        lambda upstream, x, mean: [tf.reduce_sum(v, 1) for v in (upstream, upstream * (x - mean))],
        [blocks, blocks, tf.TensorSpec([32, 32])],
        compiled=True,
    )
