"""Precision profiles: the integers, steps and bit-widths of one deployable network.

This is data, which the converter and the reports read, and how a kernel rounds where it does so
otherwise. With it stands what the package's own layers do under `keras.mixed_precision`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

# The bit-width of a TFLite tensor of int8, the most that a weight may have.
INT8_BITS = 8
# The one bit-width above 8 that an activation may have: a TFLite tensor of int16. Its grid is
# symmetric, as the kernels require: the zero point is in the middle.
INT16_BITS = 16
# Arguments of the package's own layers: inputs and variables keep their types. `autocast` alone is not
# enough. In a call from outside of a model, Keras rounds the variables of a layer of a mixed policy.
KEEPS_PRECISION: Mapping[str, Any] = {"autocast": False, "dtype": "float32"}
# The distance in steps from which a mean counts as a tie: more than the errors of float arithmetic,
# and less than the distance of any other mean of up to 1,023 integers. At 16 bits, ratios of 4,096
# and more have no room for it in float32: they round to even, as before.
_TIE = 2.0**-11


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightPrecision:
    """One quantized variable: `real = step * integers`, symmetric, in the narrow range.

    Attributes:
        integers: An int32 array, shape that of the variable, `|q| <= 2**(bit_width - 1) - 1`.
        step: A float32 array that broadcasts against `integers`, one value per output channel.
        bit_width: Bits per weight.
    """

    integers: np.ndarray
    step: np.ndarray
    bit_width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationPrecision:
    """One quantized tensor: `real = step * (q - zero_point)`, `q` in `[0, 2**bit_width - 1]`.

    Attributes:
        step: The step size.
        zero_point: The integer that represents 0.0. TFLite's int8 zero point is this minus 128, see
            `tflite_zero_point`. At 16 bits it is always 32,768.
        bit_width: Bits per value.
    """

    step: float
    zero_point: int
    bit_width: int

    @property
    def is_int16(self) -> bool:
        """Whether a file stores the tensor as int16, and not as int8."""
        return self.bit_width == INT16_BITS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """One complete assignment of bit-widths, as it is deployed.

    Attributes:
        weights: `{path: {variable name: WeightPrecision}}`, with the path of a layer in the graph.
        activations: `{tensor id: ActivationPrecision}`, with the ids of `dqmq_tf.graph.trace` on
            the float model. A tensor that is fused away, such as the output of a convolution
            before its batch norm or relu, has no entry.
    """

    weights: Mapping[str, Mapping[str, WeightPrecision]]
    activations: Mapping[int, ActivationPrecision]


def tflite_zero_point(precision: ActivationPrecision) -> int:
    """Returns TFLite's zero point of an activation of 8 bits (int8) or 16 bits (int16, always 0)."""
    return precision.zero_point - (2**15 if precision.is_int16 else 128)


def round_means(ratio: Any, q_min: Any, q_max: Any) -> Any:
    """Rounds means of integers as the kernels of average pools do.

    They round ties away from the 0 of int8 (or int16), which is the upper one of the two integers in
    the middle of the range.

    Args:
        ratio: The means.
        q_min: The smallest integers.
        q_max: The largest integers.

    Example:

    >>> round_means(tf.constant([0.5, 128.5]), 0.0, 255.0)         # [0, 129]
    """
    return ops.round(ratio + _TIE * ops.sign(ratio - (q_min + q_max + 1.0) / 2.0))
