"""A precision profile: the integers, steps and bit-widths of one deployable network.

Pure data, read by the converter and the reports.
"""

import dataclasses

import numpy as np


def tflite_zero_point(precision):
    """int8 zero point of an 8-bit activation."""
    return precision.zero_point - 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightPrecision:
    """One quantized variable: `real = step * integers`, symmetric, narrow range.

    Attributes:
        integers: int32 array of the variable's shape, `|q| <= 2**(bit_width - 1) - 1`.
        step: float32 array that broadcasts against `integers`, one value per output channel.
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
        zero_point: The integer that stands for 0.0. TFLite's int8 zero point is this minus 128.
        bit_width: Bits per value.
    """

    step: float
    zero_point: int
    bit_width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """One full assignment of bit-widths, as deployed.

    Attributes:
        weights: `{path: {variable name: WeightPrecision}}`; a path is a layer's path in the graph.
        activations: `{tensor id: ActivationPrecision}`, ids as in `dqmq_tf.graph.trace` of the
            float model. A tensor that is fused away (a convolution's output before its batch
            norm or relu) has no entry.
    """

    weights: dict
    activations: dict
