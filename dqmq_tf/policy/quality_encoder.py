"""The quality encoder: a short vector that describes the quality of an input, not its content."""

import math
from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.policy.int8_arithmetic import DECIDER_BITS, fake_int8
from dqmq_tf.precision import KEEPS_PRECISION

EPSILON = 1e-3
VARIANCE_FLOOR = 1e-4
FEATURE_LIMIT = 4.0
_HIDDEN = 16
_STRIDES = (1, 2, 3, 4, 6, 8, 12, 16)
# A mean over this many positions is accurate to a few percent. More would only cost time on a device.
_POSITIONS = 600
# Takes the place of an unknown height or width when costs are estimated.
_TYPICAL_SIZE = 32


@keras.saving.register_keras_serializable(package="dqmq_tf")
class QualityEncoder(keras.layers.Layer):
    """Maps the input of a model to the quality embedding `z`.

    A few 3 x 3 filters run over the input with a stride. They start as derivatives and are trained
    with the policy. The features are, for each filter, the logarithm of the mean magnitude of its
    response and the logarithm of the ratio of the root mean square to that magnitude; and the mean
    and the log standard deviation of the pixels at the same positions. Two small dense layers map
    the features to `z`. All features are means over the output of one convolution, so a device
    reads the input once.

    Noise raises the response of derivatives, blur and compression lower some of them, and darkness
    and low contrast show in the mean and the standard deviation. No-reference measures of image
    quality use statistics of this kind (Mittal et al. 2012, "No-Reference Image Quality Assessment
    in the Spatial Domain", BRISQUE).

    Args:
        size: The length d of the embedding.
        filters: The number of filters.
        stride: The stride of the filters along both image axes.
        seed: The seed of the initial weights of the dense layers.

    Input shape: `[batch, ...]` of rank 2 or higher; images have shape
    `[batch, height, width, channels]`. Output shape: `[batch, d]`, values in [-1, 1] on an 8-bit
    grid.

    Example:

    >>> encoder = QualityEncoder(size=8)
    >>> z = encoder(images)
    >>> encoder.calibrate(images)
    """

    def __init__(
        self, size: int = 8, filters: int = 8, stride: int = 1, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**{**kwargs, **KEEPS_PRECISION})
        self.size, self.filters, self.stride, self.seed = size, filters, stride, seed

    @classmethod
    def for_model(
        cls, input_shape: Sequence[int | None], model_bit_ops: float, size: int, **kwargs: Any
    ) -> Self:
        """Returns an encoder that costs at most 2 % of the bit operations of a model.

        Args:
            input_shape: The shape of the model's input, with the batch axis.
            model_bit_ops: The bit operations of the model per input.
            size: The length d of the embedding.
            **kwargs: Further arguments of the constructor.

        Returns:
            The most detailed encoder within 2 %, or the smallest one if none is.
        """
        for filters in (8, 4):
            for stride in _STRIDES:
                encoder = cls(size=size, filters=filters, stride=stride, **kwargs)
                has_few_positions = encoder.positions(input_shape) <= _POSITIONS
                if has_few_positions and (
                    encoder.bit_operations(input_shape) <= 0.02 * model_bit_ops
                ):
                    return encoder
        return encoder

    def build(self, input_shape: Sequence[int | None]) -> None:
        channels = as_image_shape(input_shape)[-1]

        def weight(
            name: str, shape: tuple[int, ...], initializer: Any, trainable: bool = True
        ) -> keras.Variable:
            return self.add_weight(
                name=name, shape=shape, initializer=initializer, trainable=trainable,
                dtype="float32", aggregation="mean",
            )  # fmt: skip

        features = 2 * self.filters + 2
        self.kernel = weight("kernel", (3, 3, channels, self.filters), _derivatives)
        self.hidden_kernel = weight("hidden_kernel", (features, _HIDDEN), self._glorot_uniform(0))
        self.hidden_bias = weight("hidden_bias", (_HIDDEN,), "zeros")
        self.output_kernel = weight("output_kernel", (_HIDDEN, self.size), self._glorot_uniform(1))
        self.input_scale = weight("input_scale", (), "ones", trainable=False)
        self.feature_mean = weight("feature_mean", (features,), "zeros", trainable=False)
        self.feature_variance = weight("feature_variance", (features,), "ones", trainable=False)

    def _glorot_uniform(self, layer: int) -> keras.initializers.Initializer:
        """Returns the initializer of a dense layer, with a seed of its own."""
        return keras.initializers.GlorotUniform(seed=2 * self.seed + layer)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        features = self._features(x)
        scale = ops.sqrt(self.feature_variance + VARIANCE_FLOOR)
        # Clip, so that a quality far outside the training data cannot push the policy just as far.
        features = (features - self.feature_mean) / scale
        features = ops.clip(features, -FEATURE_LIMIT, FEATURE_LIMIT)
        features = fake_int8(features, FEATURE_LIMIT)
        hidden = ops.matmul(features, fake_int8(self.hidden_kernel)) + self.hidden_bias
        hidden = fake_int8(ops.tanh(hidden), 1.0)
        return fake_int8(ops.tanh(ops.matmul(hidden, fake_int8(self.output_kernel))), 1.0)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, int]:
        return (input_shape[0], self.size)

    def calibrate(self, x: np.ndarray | tf.Tensor) -> None:
        """Sets the normalization of the input and of the features from a batch."""
        self.input_scale.assign(np.float32(np.std(np.asarray(_as_float32(x)))) + 1e-6)
        features = ops.convert_to_numpy(self._features(x))
        self.feature_mean.assign(features.mean(axis=0))
        self.feature_variance.assign(features.var(axis=0))

    def adapt(
        self, x: tf.Tensor, condition: bool | tf.Tensor = True, momentum: float = 0.99
    ) -> None:
        """Moves the normalization of the features towards the statistics of a batch.

        Args:
            x: The inputs.
            condition: Whether to do so, a bool or a scalar tensor.
            momentum: The weight of the present normalization.
        """
        features = ops.stop_gradient(self._features(x))
        for variable, value in (
            (self.feature_mean, ops.mean(features, axis=0)),
            (self.feature_variance, ops.var(features, axis=0)),
        ):
            moved = variable * momentum + value * (1.0 - momentum)
            variable.assign(ops.where(condition, moved, variable))

    def positions(self, input_shape: Sequence[int | None]) -> int:
        """Returns the number of positions of an input at which the filters are evaluated."""
        _, height, width, _ = as_image_shape(input_shape)
        rows = math.ceil((height or _TYPICAL_SIZE) / self.stride)
        return rows * math.ceil((width or _TYPICAL_SIZE) / self.stride)

    def multiply_accumulates(self, input_shape: Sequence[int | None]) -> int:
        """Returns the multiply-accumulates per input."""
        channels = as_image_shape(input_shape)[-1]
        dense = (2 * self.filters + 2) * _HIDDEN + _HIDDEN * self.size
        return self.positions(input_shape) * 9 * channels * self.filters + dense

    def bit_operations(self, input_shape: Sequence[int | None]) -> int:
        """Returns the bit operations per input."""
        return DECIDER_BITS**2 * self.multiply_accumulates(input_shape)

    def _features(self, x: np.ndarray | tf.Tensor) -> tf.Tensor:
        """Returns the features before normalization, shape `[batch, 2 * filters + 2]`."""
        x = _as_float32(x) / self.input_scale
        if len(x.shape) != 4:
            x = ops.reshape(x, as_image_shape(ops.shape(x)))
        kernel = ops.concatenate([self.kernel, pixel_taps(x.shape[-1])], axis=-1)
        response = ops.conv(
            x, kernel, strides=self.stride, padding="same", data_format="channels_last"
        )
        # Split once, because the gradient of each slice would pad a tensor of its own.
        edges, pixels = ops.split(response, [self.filters], axis=-1)
        magnitude = ops.mean(ops.abs(edges), axis=(1, 2)) + EPSILON
        root_mean_square = ops.sqrt(ops.mean(ops.square(edges), axis=(1, 2)) + EPSILON**2)
        mean = ops.mean(pixels, axis=(1, 2, 3))
        variance = ops.mean(ops.square(pixels), axis=(1, 2, 3)) - ops.square(mean)
        deviation = ops.sqrt(ops.maximum(variance, 0.0) + EPSILON**2)
        return ops.concatenate(
            [
                ops.log(magnitude),
                ops.log(root_mean_square / magnitude),
                ops.stack([mean, ops.log(deviation)], axis=1),
            ],
            axis=1,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "size": self.size,
            "filters": self.filters,
            "stride": self.stride,
            "seed": self.seed,
        }


def as_image_shape(
    shape: Sequence[int | None],
) -> tuple[int | None, int | None, int | None, int]:
    """Returns the shape `[batch, height, width, channels]` to which an input is reshaped.

    Args:
        shape: The shape of an input, with the batch axis first. From rank 3 on, the last axis is the
            channels.

    Returns:
        The shape as an image. The width is -1 if several axes become the width and the size of one
        of them is unknown.
    """
    if len(shape) < 3:
        return (shape[0], shape[1] if len(shape) == 2 else 1, 1, 1)
    channels = shape[-1]
    assert channels is not None, "no layer can be built for an unknown number of channels"
    if len(shape) == 3:
        return (shape[0], shape[1], 1, channels)
    if len(shape) == 4:
        return (shape[0], shape[1], shape[2], channels)
    sizes = [size for size in shape[2:-1] if size is not None]
    is_known = len(sizes) == len(shape) - 3
    return (shape[0], shape[1], math.prod(sizes) if is_known else -1, channels)


def _as_float32(x: np.ndarray | tf.Tensor) -> tf.Tensor:
    """Returns an input in floating point. Strings have no quality, so they become zeros."""
    x = tf.convert_to_tensor(x)
    return tf.zeros(tf.shape(x)) if x.dtype == tf.string else tf.cast(x, "float32")


def pixel_taps(channels: int) -> np.ndarray:
    """Returns filters of shape `[3, 3, channels, channels]` that copy the pixel in the middle."""
    taps = np.zeros((3, 3, channels, channels), "float32")
    taps[1, 1] = np.eye(channels)
    return taps


def _derivatives(shape: tuple[int, ...], dtype: str | None = None) -> tf.Tensor:
    """Returns filters for first and second derivatives and a checkerboard, averaged over channels.

    Args:
        shape: The shape `[3, 3, channels, filters]`.
        dtype: The type of the filters. None means float32.
    """
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
    # The weights of the channels differ a little, so that the filters respond to color noise too.
    tint = 1.0 + 0.5 * np.cos(np.arange(shape[2])[:, None] + np.arange(shape[3])[None, :])
    kernel = bank[:, :, None, :] * tint[None, None] / shape[2]
    return ops.convert_to_tensor(kernel, dtype or "float32")
