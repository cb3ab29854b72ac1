"""Folds batch normalization into integer weights, without rounding them again.

A linear layer with integer weights `q`, one step per output channel and bias `b`, followed by a
batch norm, computes

    gamma / sqrt(var + eps) * (step * q * x + b - mean) + beta
        = (|gamma| * step / sqrt(var + eps)) * (sign(gamma) * q) * x
          + (b - mean) * gamma / sqrt(var + eps) + beta

The second form is a linear layer without a batch norm. Its steps are multiplied by a factor per
channel, some of its integers change their sign, and no integer changes its magnitude.
`fold_weights` computes it.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from dqmq_tf.errors import ConversionError
from dqmq_tf.graph.constant_maps import Affine, of_channels
from dqmq_tf.precision import WeightPrecision

CONVOLUTION = "CONV_2D"
DEPTHWISE = "DEPTHWISE_CONV_2D"
FULLY_CONNECTED = "FULLY_CONNECTED"
TRANSPOSED = "TRANSPOSE_CONV"
KINDS = (CONVOLUTION, DEPTHWISE, FULLY_CONNECTED, TRANSPOSED)
# The positions of the weights and of the bias among the inputs of an operator.
OPERANDS = {
    CONVOLUTION: (1, 2),
    DEPTHWISE: (1, 2),
    FULLY_CONNECTED: (1, 2),
    TRANSPOSED: (1, 3),
}

# The largest absolute value of an int32 bias, which leaves half of the accumulator's range for the
# products, and of the int64 bias of an operator with int16 activations: Vela allows 40 bits.
_LARGEST_BIAS, _LARGEST_INT64_BIAS = 2.0**30, 2.0**38
# The smallest scale of a channel, relative to the largest scale of the tensor and absolute.
# Runtimes reject smaller ones.
_SMALLEST_RELATIVE_SCALE = 2.0**-24
_SMALLEST_SCALE = 1e-10


def data_operand(kind: str) -> int:
    """Returns the position of an operator's data among its inputs.

    It comes first, but the first input of `TRANSPOSE_CONV` is the shape of its output.

    Args:
        kind: One of `KINDS`.
    """
    return 2 if kind == TRANSPOSED else 0


@dataclasses.dataclass(frozen=True, eq=False)
class FoldedWeights:
    """The weights and bias of one operator, as the file holds them.

    Attributes:
        path: The path of the layer in the graph.
        variable: The name of the layer's variable, such as `"kernel"`.
        kind: One of `KINDS`.
        integers: An int8 array in TFLite's layout (OHWI, 1HWC or OI).
        scales: A float32 array, one value per output channel.
        bias: A float32 array of real values, one per output channel.
        bit_width: The bit-width that the integers were trained for.
        coarsened: The number of channels whose scale was raised (see `_raise_small_scales`).
        is_int16: Whether the operator computes activations of 16 bits. Its weights are then stored
            as int8 whatever their bit-width, because no runtime reads INT4 there.
    """

    path: str
    variable: str
    kind: str
    integers: np.ndarray
    scales: np.ndarray
    bias: np.ndarray
    bit_width: int
    coarsened: int = 0
    is_int16: bool = False

    @property
    def channel_axis(self) -> int:
        """The axis of `integers` that indexes output channels."""
        return self.integers.ndim - 1 if self.kind == DEPTHWISE else 0

    @property
    def values(self) -> np.ndarray:
        """The real values `scale * integer`, float32, in TFLite's layout."""
        return (self.integers * self.broadcast_scales()).astype(np.float32)

    def broadcast_scales(self) -> np.ndarray:
        """Returns the scales in a shape that broadcasts against `integers`, float32."""
        return _along_channels(self.kind, self.scales, self.integers.ndim)

    def bias_integers(self, input_step: float) -> np.ndarray:
        """Returns the bias in units of `input_step * scales`.

        Args:
            input_step: The step of the operator's input tensor.

        Returns:
            An int32 array, shape `(channels,)`. It is int64 if the operator `is_int16`.
        """
        bias_scales = np.float64(np.float32(input_step)) * self.scales.astype(np.float64)
        return np.rint(self.bias / bias_scales).astype(np.int64 if self.is_int16 else np.int32)


def batch_norm_affine(layer: Any) -> Affine:
    """Returns the map that a batch norm computes at inference.

    Args:
        layer: A built `keras.layers.BatchNormalization`.

    Returns:
        An `Affine` over the layer's channels.
    """
    mean = as_float64(layer.moving_mean)
    variance = as_float64(layer.moving_variance)
    multiplier = 1.0 / np.sqrt(variance + layer.epsilon)
    if layer.scale:
        multiplier = multiplier * as_float64(layer.gamma)
    offset = -mean * multiplier
    if layer.center:
        offset = offset + as_float64(layer.beta)
    return Affine(multiplier, offset)


def layer_affine(layer: Any, channels: int) -> Affine:
    """Returns the map that a batch norm or rescaling computes at inference.

    Args:
        layer: A built `BatchNormalization`, or a `Rescaling`.
        channels: The number of channels of its input.

    Returns:
        An `Affine` over the channels.
    """
    if isinstance(layer, keras.layers.BatchNormalization):
        return batch_norm_affine(layer)
    return Affine(of_channels(layer.scale, channels), of_channels(layer.offset, channels))


def fold_weights(
    path: str,
    variable: str,
    kind: str,
    precision: WeightPrecision,
    bias: np.ndarray | None = None,
    affine: Affine | None = None,
    input_step: float = 1.0,
    is_int16: bool = False,
) -> FoldedWeights:
    """Folds the batch norm or rescaling after a layer into its weights and bias.

    Args:
        path: The path of the layer in the graph, for error messages.
        variable: The name of the quantized variable.
        kind: One of `KINDS`.
        precision: The `WeightPrecision`, in Keras's layout.
        bias: The float bias of the layer, shape `(channels,)`. None for no bias.
        affine: The `Affine` that the batch norm or rescaling computes. None if nothing is folded.
        input_step: The step of the input tensor. The scales are raised where the bias would
            otherwise not fit into int32.
        is_int16: Whether the operator computes activations of 16 bits.

    Returns:
        The `FoldedWeights`.

    Raises:
        ConversionError: If an integer is out of range, the step varies within an output channel, or
            the result is not finite.

    Example:

    >>> affine = batch_norm_affine(batch_norm)
    >>> fold_weights("conv", "kernel", CONVOLUTION, precision, bias, affine, input_step=0.02)
    """
    integers = _tflite_layout(kind, np.asarray(precision.integers))
    limit = 2 ** (precision.bit_width - 1) - 1
    largest = np.abs(integers).max(initial=0)
    # Quantizers of the user's own may also use the lowest integer, such as -8 at 4 bits.
    if integers.max(initial=0) > limit or integers.min(initial=0) < -limit - 1 or largest > 127:
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
    integers, scales, coarsened = _raise_small_scales(
        kind, integers, scales, bias, float(input_step), is_int16
    )
    # A lowest integer whose sign a batch norm changes takes one bit more.
    is_too_wide = integers.max(initial=0) > limit
    return FoldedWeights(
        path,
        variable,
        kind,
        integers.astype(np.int8),
        scales.astype(np.float32),
        bias.astype(np.float32),
        precision.bit_width + int(is_too_wide),
        coarsened,
        is_int16,
    )


def affine_weights(
    path: str, variable: str, affine: Affine, input_step: float = 1.0, is_int16: bool = False
) -> FoldedWeights:
    """Returns the weights of a 1 x 1 depthwise convolution that computes a per-channel map.

    Every channel has one weight, which is exactly 127 or -127 steps (0 if the multiplier is 0), so
    nothing is rounded.

    Args:
        path: The path of the layer in the graph.
        variable: The name under which reports list the weights, such as `"gamma"`.
        affine: The map.
        input_step: The step of the input tensor.
        is_int16: Whether the operator computes activations of 16 bits.

    Returns:
        `FoldedWeights` of the kind `DEPTHWISE`, with integers of shape `(1, 1, 1, channels)`.

    Raises:
        ConversionError: If the map is not finite.
    """
    multiplier, offset = affine.multiplier, affine.offset
    integers = np.where(multiplier < 0, -127, np.where(multiplier > 0, 127, 0)).reshape(1, 1, 1, -1)
    scales = np.where(multiplier == 0, 1.0, np.abs(multiplier)) / 127.0
    _check_finite(path, variable, scales, offset)
    integers, scales, coarsened = _raise_small_scales(
        DEPTHWISE, integers, scales, offset, float(input_step), is_int16
    )
    return FoldedWeights(
        path,
        variable,
        DEPTHWISE,
        integers.astype(np.int8),
        scales.astype(np.float32),
        offset.astype(np.float32),
        8,
        coarsened,
        is_int16,
    )


def keras_kernel(weights: FoldedWeights, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the real values of weights in Keras's layout.

    Args:
        weights: The `FoldedWeights`.
        shape: The shape of the Keras variable.

    Returns:
        A float32 array of that shape.
    """
    values = weights.values
    if weights.kind == CONVOLUTION:
        values = values.transpose(1, 2, 3, 0)
    elif weights.kind == TRANSPOSED:
        values = values.transpose(1, 2, 0, 3)
    elif weights.kind == FULLY_CONNECTED:
        values = values.transpose(1, 0)
    return values.reshape(shape)


def as_float64(variable: Any) -> np.ndarray:
    """Returns the value of a Keras variable as a float64 array."""
    return keras.ops.convert_to_numpy(variable).astype(np.float64)


def _tflite_layout(kind: str, array: np.ndarray) -> np.ndarray:
    """Transposes an array from Keras's layout of a kernel to TFLite's."""
    if kind == CONVOLUTION:
        return array.transpose(3, 0, 1, 2)
    if kind == TRANSPOSED:
        return array.transpose(2, 0, 1, 3)
    if kind == DEPTHWISE:
        return array.reshape(1, array.shape[0], array.shape[1], -1)
    return array.transpose(1, 0)


def _along_channels(kind: str, vector: np.ndarray, rank: int) -> np.ndarray:
    """Reshapes one value per output channel to broadcast against weights in TFLite's layout."""
    shape = [1] * rank
    shape[rank - 1 if kind == DEPTHWISE else 0] = -1
    return vector.reshape(shape)


def _per_channel(path: str, variable: str, kind: str, steps: np.ndarray) -> np.ndarray:
    """Returns the step of each output channel, from the step of each weight in TFLite's layout."""
    channels_first = np.moveaxis(steps, -1 if kind == DEPTHWISE else 0, 0)
    channels_first = channels_first.reshape(channels_first.shape[0], -1)
    if np.ptp(channels_first, axis=1).any():
        raise ConversionError(
            f"{path}/{variable}: the step varies within an output channel, but a file holds one "
            "scale per output channel. Quantize this variable per output channel."
        )
    return channels_first[:, 0].copy()


def _check_finite(path: str, variable: str, scales: np.ndarray, bias: np.ndarray) -> None:
    """Raises an error if folding resulted in a scale or bias that a file cannot hold."""
    if not (np.isfinite(scales).all() and (scales > 0).all() and np.isfinite(bias).all()):
        raise ConversionError(
            f"{path}/{variable}: after folding, a scale is not positive and finite, or the bias is "
            "not finite. Look for NaN in the weights, their step sizes and the batch norm after "
            "the layer."
        )


def _raise_small_scales(
    kind: str,
    integers: np.ndarray,
    scales: np.ndarray,
    bias: np.ndarray,
    input_step: float,
    is_int16: bool,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Raises the scales of channels that are too small for a file.

    These channels are almost constant: their weights are tiny compared with their bias or with the
    other channels. A larger scale makes the bias, in units of `input_step * scale`, fit into int32.

    Args:
        kind: One of `KINDS`.
        integers: The weights in TFLite's layout.
        scales: The scale of each output channel.
        bias: The bias of each output channel.
        input_step: The step of the input tensor.
        is_int16: Whether the bias is int64.

    Returns:
        `(integers, scales, count)`: the weights rounded to the new scales, the new scales, and the
        number of scales that were raised.
    """
    floor = np.maximum(scales.max() * _SMALLEST_RELATIVE_SCALE, _SMALLEST_SCALE)
    largest_bias = _LARGEST_INT64_BIAS if is_int16 else _LARGEST_BIAS
    floor = np.maximum(floor, np.abs(bias) / (input_step * largest_bias))
    is_small = scales < floor
    if not is_small.any():
        return integers, scales, 0
    raised = np.where(is_small, floor, scales)
    ratio = _along_channels(kind, scales / raised, integers.ndim)
    return np.rint(integers * ratio).astype(integers.dtype), raised, int(is_small.sum())
