"""Reads a `Precision` out of trained layers: integers, steps and zero points."""

from dqmq_tf.precision import ActivationPrecision, Precision, WeightPrecision


def precision_of(parts, bits):
    """Returns the precision of a model at given bit-widths.

    Args:
        parts: The model's `ModelParts`, for its wrappers, quantizers and decision points.
        bits: Bit-widths `[points]`, activations first.
    """
    costs, bits = parts.costs, [int(b) for b in bits]
    weights, activations = {}, {}
    for point, b in zip(costs.weights, bits[len(costs.decided) :]):
        wrapper = parts.wrappers[point.path]
        weights.setdefault(point.path, {})[point.variable] = WeightPrecision(
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
    return Precision(weights=weights, activations=activations)
