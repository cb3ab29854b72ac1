"""Folds batch normalization into integer weights exactly.

A per-channel step commutes with the per-channel affine of the batch normalization behind it:

    gamma / sqrt(var + eps) * (step * q * x + b - mean) + beta
        = (|gamma| * step / sqrt(var + eps)) * (sign(gamma) * q) * x
          + (b - mean) * gamma / sqrt(var + eps) + beta

so the fold rescales steps, flips signs, and leaves every integer's magnitude alone.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from dqmq_tf.errors import ConversionError
from dqmq_tf.precision import WeightPrecision

CONVOLUTION = "CONV_2D"
DEPTHWISE = "DEPTHWISE_CONV_2D"
FULLY_CONNECTED = "FULLY_CONNECTED"
TRANSPOSED = "TRANSPOSE_CONV"
KINDS = (CONVOLUTION, DEPTHWISE, FULLY_CONNECTED, TRANSPOSED)
# Where an operator takes its weights and its bias.
OPERANDS = {
    CONVOLUTION: (1, 2),
    DEPTHWISE: (1, 2),
    FULLY_CONNECTED: (1, 2),
    TRANSPOSED: (1, 3),
}

# An int32 bias may take this much of the accumulator.
_LARGEST_BIAS = 2.0**30
# A channel's scale may lie this far below the largest of its tensor; runtimes refuse more.
_SMALLEST_RELATIVE_SCALE = 2.0**-24
_SMALLEST_SCALE = 1e-10


def data_operand(kind: str) -> int:
    """Returns the position of the data input; `TRANSPOSE_CONV` takes its output shape first."""
    return 2 if kind == TRANSPOSED else 0


@dataclasses.dataclass(frozen=True, eq=False)
class Affine:
    """A per-channel map `y = multiplier * x + offset`, in float64, shape `(channels,)`."""

    multiplier: np.ndarray
    offset: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class FoldedWeights:
    """Weights of one operator, as the file must hold them.

    Attributes:
        path: Graph path of the layer.
        variable: Name of the layer's variable, such as `"kernel"`.
        kind: One of `KINDS`.
        integers: int8, in TFLite's layout (OHWI, 1HWC or OI).
        scales: float32, one per output channel.
        bias: float32, one per output channel, in real units.
        bit_width: Bits that the integers were trained for.
        coarsened: Channels whose scale was raised so that the bias fits into int32.
    """

    path: str
    variable: str
    kind: str
    integers: np.ndarray
    scales: np.ndarray
    bias: np.ndarray
    bit_width: int
    coarsened: int = 0

    @property
    def channel_axis(self) -> int:
        """Axis of `integers` that runs over output channels."""
        return self.integers.ndim - 1 if self.kind == DEPTHWISE else 0

    @property
    def values(self) -> np.ndarray:
        """float32 values `scale * integer`, in TFLite's layout."""
        return (self.integers * self.broadcast_scales()).astype(np.float32)

    def broadcast_scales(self) -> np.ndarray:
        """Scales shaped to broadcast against `integers`, float32."""
        shape = [1] * self.integers.ndim
        shape[self.channel_axis] = -1
        return self.scales.reshape(shape)

    def bias_integers(self, input_step: float) -> np.ndarray:
        """int32 bias at scale `input_step * scales`.

        Args:
            input_step: Step of the operator's input tensor.

        Returns:
            int32 array of shape `(channels,)`.
        """
        bias_scales = np.float64(np.float32(input_step)) * self.scales.astype(np.float64)
        return np.rint(self.bias / bias_scales).astype(np.int32)


def batch_norm_affine(layer: Any) -> Affine:
    """The inference-time map of a `BatchNormalization` layer.

    Args:
        layer: A built `keras.layers.BatchNormalization`.

    Returns:
        `Affine` over the layer's channels.
    """
    mean = _numpy(layer.moving_mean)
    variance = _numpy(layer.moving_variance)
    multiplier = 1.0 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        multiplier = multiplier * _numpy(layer.gamma)
    offset = -mean * multiplier
    if layer.center:
        offset = offset + _numpy(layer.beta)
    return Affine(multiplier, offset)


def following_affine(layer: Any, channels: int) -> Affine:
    """The map of what folds into the layer before it.

    Args:
        layer: A built `BatchNormalization`, or a `Rescaling`.
        channels: Output channels of the layer before.

    Returns:
        `Affine` over the channels.
    """
    if isinstance(layer, keras.layers.BatchNormalization):
        return batch_norm_affine(layer)
    scale, offset = (np.asarray(value, np.float64) for value in (layer.scale, layer.offset))
    return Affine(np.broadcast_to(scale, (channels,)), np.broadcast_to(offset, (channels,)))


def fold_weights(
    path: str,
    variable: str,
    kind: str,
    precision: WeightPrecision,
    bias: np.ndarray | None = None,
    affine: Affine | None = None,
    input_step: float = 1.0,
) -> FoldedWeights:
    """Folds bias and affine map into quantized weights.

    Args:
        path: Graph path of the layer, for messages.
        variable: Name of the quantized variable.
        kind: One of `KINDS`.
        precision: `WeightPrecision` in Keras's layout.
        bias: Float bias of the layer, shape `(channels,)`, or `None`.
        affine: `Affine` that follows the layer, or `None`.
        input_step: Step of the input tensor; it decides whether a bias fits into int32.

    Returns:
        `FoldedWeights`.

    Raises:
        ConversionError: If integers leave their range, or steps vary inside a channel.
    """
    integers = _tflite_layout(kind, np.asarray(precision.integers))
    limit = 2 ** (precision.bit_width - 1) - 1
    largest = np.abs(integers).max(initial=0)
    if largest > limit:
        raise ConversionError(
            f"{path}/{variable}: integers reach {largest}, but {precision.bit_width} bits allow "
            f"-{limit} to {limit}. Freeze the model again."
        )
    steps = np.broadcast_to(np.asarray(precision.step, np.float64), precision.integers.shape)
    scales = _per_channel(path, variable, kind, _tflite_layout(kind, steps))
    bias = np.zeros_like(scales) if bias is None else np.asarray(bias, np.float64)
    if affine is not None:
        multiplier = affine.multiplier
        bias = bias * multiplier + affine.offset
        signs = np.sign(multiplier)
        integers = integers * _along_channels(kind, signs, integers.ndim).astype(integers.dtype)
        scales = scales * np.where(multiplier == 0, 1.0, np.abs(multiplier))
    _check_finite(path, variable, scales, bias)
    integers, scales, coarsened = _fit_bias(kind, integers, scales, bias, float(input_step))
    return FoldedWeights(
        path,
        variable,
        kind,
        integers.astype(np.int8),
        scales.astype(np.float32),
        bias.astype(np.float32),
        precision.bit_width,
        coarsened,
    )


def affine_weights(
    path: str, variable: str, affine: Affine, input_step: float = 1.0
) -> FoldedWeights:
    """A lone per-channel affine map as a 1 x 1 depthwise convolution.

    Every channel has one weight, which is `+-127` steps exactly, so nothing is rounded.

    Args:
        path: Graph path of the layer.
        variable: Name to report, such as `"gamma"`.
        affine: The map.
        input_step: Step of the input tensor.

    Returns:
        `FoldedWeights` of kind `DEPTHWISE_CONV_2D` with integers of shape `(1, 1, 1, channels)`.
    """
    multiplier, offset = affine.multiplier, affine.offset
    integers = np.where(multiplier < 0, -127, np.where(multiplier > 0, 127, 0)).reshape(1, 1, 1, -1)
    scales = np.where(multiplier == 0, 1.0, np.abs(multiplier)) / 127.0
    _check_finite(path, variable, scales, offset)
    integers, scales, coarsened = _fit_bias(DEPTHWISE, integers, scales, offset, float(input_step))
    return FoldedWeights(
        path,
        variable,
        DEPTHWISE,
        integers.astype(np.int8),
        scales.astype(np.float32),
        offset.astype(np.float32),
        8,
        coarsened,
    )


def keras_kernel(weights: FoldedWeights, shape: tuple[int, ...]) -> np.ndarray:
    """Float kernel of folded weights in Keras's layout.

    Args:
        weights: `FoldedWeights`.
        shape: Shape of the Keras variable.

    Returns:
        float32 array of that shape.
    """
    values = weights.values
    if weights.kind == CONVOLUTION:
        values = values.transpose(1, 2, 3, 0)
    elif weights.kind == TRANSPOSED:
        values = values.transpose(1, 2, 0, 3)
    elif weights.kind == FULLY_CONNECTED:
        values = values.transpose(1, 0)
    return values.reshape(shape)


def _numpy(variable: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype(np.float64)


def _tflite_layout(kind: str, array: np.ndarray) -> np.ndarray:
    if kind == CONVOLUTION:
        return array.transpose(3, 0, 1, 2)
    if kind == TRANSPOSED:
        return array.transpose(2, 0, 1, 3)
    if kind == DEPTHWISE:
        return array.reshape(1, array.shape[0], array.shape[1], -1)
    return array.transpose(1, 0)


def _along_channels(kind: str, vector: np.ndarray, rank: int) -> np.ndarray:
    shape = [1] * rank
    shape[rank - 1 if kind == DEPTHWISE else 0] = -1
    return vector.reshape(shape)


def _per_channel(path: str, variable: str, kind: str, steps: np.ndarray) -> np.ndarray:
    channels_first = np.moveaxis(steps, -1 if kind == DEPTHWISE else 0, 0)
    channels_first = channels_first.reshape(channels_first.shape[0], -1)
    if np.ptp(channels_first, axis=1).any():
        raise ConversionError(
            f"{path}/{variable}: the step varies inside an output channel; a file holds one scale "
            "per output channel. Quantize this variable per output channel."
        )
    return channels_first[:, 0].copy()


def _check_finite(path: str, variable: str, scales: np.ndarray, bias: np.ndarray) -> None:
    if not (np.isfinite(scales).all() and (scales > 0).all() and np.isfinite(bias).all()):
        raise ConversionError(
            f"{path}/{variable}: scales or bias are not finite and positive after folding. Look "
            "for NaN in the weights, the step sizes or the batch normalization behind it."
        )


def _fit_bias(
    kind: str, integers: np.ndarray, scales: np.ndarray, bias: np.ndarray, input_step: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Raises scales of nearly dead channels until the bias fits into int32."""
    floor = np.maximum(scales.max() * _SMALLEST_RELATIVE_SCALE, _SMALLEST_SCALE)
    floor = np.maximum(floor, np.abs(bias) / (input_step * _LARGEST_BIAS))
    low = scales < floor
    if not low.any():
        return integers, scales, 0
    fitted = np.where(low, floor, scales)
    ratio = _along_channels(kind, scales / fitted, integers.ndim)
    return np.rint(integers * ratio).astype(integers.dtype), fitted, int(low.sum())
