"""The quality encoder: a short vector that says how an input was taken, not what is on it."""

import math

import keras
import numpy as np
from keras import ops

from dqmq_tf.policy.int8_arithmetic import DECIDER_BITS, fake_int8

EPSILON = 1e-3
VARIANCE_FLOOR = 1e-4
FEATURE_LIMIT = 4.0
_HIDDEN = 16
_STRIDES = (1, 2, 3, 4, 6, 8, 12, 16)
# A mean over so many positions is known to a few percent; more cost a device time.
_POSITIONS = 600


@keras.saving.register_keras_serializable(package="dqmq_tf")
class QualityEncoder(keras.layers.Layer):
    """Maps the model's input to the quality embedding `z`.

    A few 3 x 3 filters, which start as derivatives, run over the input at a stride. Of each
    response the mean magnitude and its ratio to the root mean square are taken, and their
    logarithms, with the mean and the spread of the pixels at the stride, pass two small dense
    layers. All of it are means over the output of one convolution, which a device reads once.
    Noise raises the response of derivatives, blur and compression lower some of them, darkness
    and low contrast show in mean and spread: the statistics that no-reference image quality
    measures rest on (Mittal et al. 2012, BRISQUE), learned further with the policy.

    Args:
        size: Length d of the embedding.
        filters: Number of filters.
        stride: Of the filters over both image axes.
        seed: Of the dense layers' first weights.

    Input shape: `[batch, ...]`, any rank from 2; images are `[batch, height, width, channels]`.
    Output shape: `[batch, d]`, in [-1, 1], on a grid of 8 bits.
    """

    def __init__(self, size=8, filters=8, stride=1, seed=0, **kwargs):
        super().__init__(**{**kwargs, "autocast": False})
        self.size, self.filters, self.stride, self.seed = size, filters, stride, seed

    @classmethod
    def for_model(cls, input_shape, model_bit_ops, size, **kwargs):
        """Returns an encoder that costs under 2 % of a model's bit operations, if any can."""
        for filters in (8, 4):
            for stride in _STRIDES:
                encoder = cls(size=size, filters=filters, stride=stride, **kwargs)
                few = encoder.positions(input_shape) <= _POSITIONS
                if few and encoder.bit_operations(input_shape) <= 0.02 * model_bit_ops:
                    return encoder
        return encoder

    def build(self, input_shape):
        channels = as_image_shape(input_shape)[-1]

        def weight(name, shape, initializer, trainable=True):
            return self.add_weight(
                name=name, shape=shape, initializer=initializer, trainable=trainable,
                dtype="float32", aggregation="mean",
            )  # fmt: skip

        features = 2 * self.filters + 2
        self.kernel = weight("kernel", (3, 3, channels, self.filters), _derivatives)
        self.hidden_kernel = weight("hidden_kernel", (features, _HIDDEN), self._drawn(0))
        self.hidden_bias = weight("hidden_bias", (_HIDDEN,), "zeros")
        self.output_kernel = weight("output_kernel", (_HIDDEN, self.size), self._drawn(1))
        self.input_scale = weight("input_scale", (), "ones", trainable=False)
        self.feature_mean = weight("feature_mean", (features,), "zeros", trainable=False)
        self.feature_variance = weight("feature_variance", (features,), "ones", trainable=False)

    def _drawn(self, number):
        return keras.initializers.GlorotUniform(seed=2 * self.seed + number)

    def call(self, x):
        features = self._features(x)
        scale = ops.sqrt(self.feature_variance + VARIANCE_FLOOR)
        # A quality far outside what was seen must not push the policy far outside either.
        features = (features - self.feature_mean) / scale
        features = ops.clip(features, -FEATURE_LIMIT, FEATURE_LIMIT)
        features = fake_int8(features, FEATURE_LIMIT)
        hidden = ops.matmul(features, fake_int8(self.hidden_kernel)) + self.hidden_bias
        hidden = fake_int8(ops.tanh(hidden), 1.0)
        return fake_int8(ops.tanh(ops.matmul(hidden, fake_int8(self.output_kernel))), 1.0)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.size)

    def calibrate(self, x):
        """Sets the normalisation of input and features from a batch."""
        self.input_scale.assign(np.float32(np.std(np.asarray(x, "float32"))) + 1e-6)
        features = ops.convert_to_numpy(self._features(x))
        self.feature_mean.assign(features.mean(axis=0))
        self.feature_variance.assign(features.var(axis=0))

    def adapt(self, x, momentum=0.99):
        """Moves the normalisation of the features towards a batch's."""
        features = ops.stop_gradient(self._features(x))
        for variable, value in (
            (self.feature_mean, ops.mean(features, axis=0)),
            (self.feature_variance, ops.var(features, axis=0)),
        ):
            variable.assign(variable * momentum + value * (1.0 - momentum))

    def positions(self, input_shape):
        """Returns at how many positions of an input the filters look."""
        _, height, width, _ = as_image_shape(input_shape)
        return math.ceil((height or 32) / self.stride) * math.ceil((width or 32) / self.stride)

    def multiply_accumulates(self, input_shape):
        """Returns the multiply-accumulates per input."""
        channels = as_image_shape(input_shape)[-1]
        dense = (2 * self.filters + 2) * _HIDDEN + _HIDDEN * self.size
        return self.positions(input_shape) * 9 * channels * self.filters + dense

    def bit_operations(self, input_shape):
        """Returns the bit operations per input."""
        return DECIDER_BITS**2 * self.multiply_accumulates(input_shape)

    def _features(self, x):
        x = ops.cast(x, "float32") / self.input_scale
        if len(x.shape) != 4:
            x = ops.reshape(x, (-1, *[n if n else -1 for n in as_image_shape(x.shape)[1:]]))
        kernel = ops.concatenate([self.kernel, pixel_taps(x.shape[-1])], axis=-1)
        response = ops.conv(x, kernel, strides=self.stride, padding="same")
        # Split once: the gradient of a slice pads, for each slice anew.
        edges, pixels = ops.split(response, [self.filters], axis=-1)
        magnitude = ops.mean(ops.abs(edges), axis=(1, 2)) + EPSILON
        root = ops.sqrt(ops.mean(ops.square(edges), axis=(1, 2)) + EPSILON**2)
        mean = ops.mean(pixels, axis=(1, 2, 3))
        variance = ops.mean(ops.square(pixels), axis=(1, 2, 3)) - ops.square(mean)
        spread = ops.sqrt(ops.maximum(variance, 0.0) + EPSILON**2)
        return ops.concatenate(
            [
                ops.log(magnitude),
                ops.log(root / magnitude),
                ops.stack([mean, ops.log(spread)], axis=1),
            ],
            axis=1,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "size": self.size,
            "filters": self.filters,
            "stride": self.stride,
            "seed": self.seed,
        }


def as_image_shape(shape):
    """`[batch, height, width, channels]` of an input of any rank."""
    if len(shape) == 2:
        return (shape[0], shape[1], 1, 1)
    if len(shape) == 3:
        return (shape[0], shape[1], 1, shape[2])
    if len(shape) == 4:
        return tuple(shape)
    return (shape[0], shape[1], -1 if None in shape[2:-1] else math.prod(shape[2:-1]), shape[-1])


def pixel_taps(channels):
    """Returns filters `[3, 3, channels, channels]` that hand on the pixel in the middle."""
    taps = np.zeros((3, 3, channels, channels), "float32")
    taps[1, 1] = np.eye(channels)
    return taps


def _derivatives(shape, dtype=None):
    """Second and first derivatives and a checkerboard over the mean of the channels."""
    bank = np.array(
        [
            [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
            [[1, -2, 1], [-2, 4, -2], [1, -2, 1]],
            [[0, 0, 0], [-1, 0, 1], [0, 0, 0]],
            [[0, -1, 0], [0, 0, 0], [0, 1, 0]],
            [[0, 0, 0], [0, -1, 1], [0, 0, 0]],
            [[0, 0, 0], [0, -1, 0], [0, 1, 0]],
            [[-1, 0, 0], [0, 0, 0], [0, 0, 1]],
            [[1, 0, -1], [0, 0, 0], [-1, 0, 1]],
        ],
        "float32",
    )
    bank = np.stack([bank[i % len(bank)] for i in range(shape[3])], axis=-1)
    bank = bank / np.abs(bank).sum(axis=(0, 1))
    # The channels differ a little, so that noise in the colours is seen as well.
    tint = 1.0 + 0.5 * np.cos(np.arange(shape[2])[:, None] + np.arange(shape[3])[None, :])
    kernel = bank[:, :, None, :] * tint[None, None] / shape[2]
    return ops.convert_to_tensor(kernel, dtype or "float32")
