"""A precision profile: the integers, steps and bit-widths of one deployable network.

Pure data, read by the converter and the reports.
"""

import dataclasses

import numpy as np


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
        weights: `{site: {variable name: WeightPrecision}}`; a site is a layer's path in the graph.
        activations: `{tensor id: ActivationPrecision}`, ids as in `dqmq_tf.graph.trace` of the
            float model. A tensor that is fused away (a convolution's output before its batch
            norm or relu) has no entry.
    """

    weights: dict
    activations: dict

    @classmethod
    def of(cls, parts, assigned):
        """Returns the precision of a model at assigned bit-widths.

        Args:
            parts: The model's `Parts`.
            assigned: Bit-widths `[points]`, activations first.
        """
        costs = parts.costs
        bits = [int(b) for b in assigned]
        weights, activations = {}, {}
        for point, b in zip(costs.weights, bits[len(costs.decided) :]):
            wrapper = parts.wrappers[point.site]
            weights.setdefault(point.site, {})[point.variable] = WeightPrecision(
                integers=wrapper.integers(point.variable, b),
                step=wrapper.step(point.variable, b),
                bit_width=b,
            )
        decided = dict(zip(costs.decided, bits))
        for i, (point, quantizer) in enumerate(zip(costs.activations, parts.quantizers)):
            b = decided.get(i, point.bit_widths[-1])
            step, zero_point = quantizer.values(b)
            entry = ActivationPrecision(step=step, zero_point=zero_point, bit_width=b)
            activations |= dict.fromkeys(point.tensors, entry)
        return cls(weights=weights, activations=activations)
