"""Reads a `Precision` from trained layers: integers, steps and zero points."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from dqmq_tf.graph.decision_points import ActivationPoint, WeightPoint
from dqmq_tf.layers.activation_quantizer import ActivationQuantizer
from dqmq_tf.layers.grid_search import bits_of
from dqmq_tf.layers.quantize_wrapper import QuantizeWrapper
from dqmq_tf.layers.user_activation_quantizer import UserActivationQuantizer
from dqmq_tf.precision import ActivationPrecision, Precision, WeightPrecision


class DecisionPoints(Protocol):
    """The decision points of a model, as `CostModel` lists them.

    Attributes:
        activations: The `ActivationPoint`s.
        weights: The `WeightPoint`s.
        decided: The indices of the activation points whose bits the policy chooses.
    """

    @property
    def activations(self) -> Sequence[ActivationPoint]: ...

    @property
    def weights(self) -> Sequence[WeightPoint]: ...

    @property
    def decided(self) -> Sequence[int]: ...


class QuantizedLayers(Protocol):
    """The layers of a model that quantize, as `ModelParts` lists them.

    Attributes:
        costs: The decision points.
        quantizers: The `ActivationQuantizer` of each activation point.
        wrappers: The `QuantizeWrapper` of each layer path.
    """

    @property
    def costs(self) -> DecisionPoints: ...

    @property
    def quantizers(self) -> Sequence[ActivationQuantizer]: ...

    @property
    def wrappers(self) -> Mapping[str, QuantizeWrapper]: ...


def precision_of(parts: QuantizedLayers, bits: Iterable[int]) -> Precision:
    """Returns the precision of a model at given bit-widths.

    Args:
        parts: The `ModelParts` of the model.
        bits: The bit-width of each point that is decided, activations first.

    Raises:
        ConversionError: If a quantizer of the user's own makes values that are on no grid.
    """
    costs, bits = parts.costs, [int(b) for b in bits]
    weights: dict[str, dict[str, WeightPrecision]] = {}
    for point, bit_width in zip(costs.weights, bits[len(costs.decided) :]):
        wrapper = parts.wrappers[point.path]
        integers, steps = wrapper.stored_integers_and_step(point.variable, bit_width, point.path)
        if point.variable in wrapper.user_quantizers:
            # Without symmetric=True, the integers of a quantizer take one bit more than it says.
            bit_width = max(bit_width, bits_of(integers))
        weights.setdefault(point.path, {})[point.variable] = WeightPrecision(
            integers=integers,
            step=steps,
            bit_width=bit_width,
        )
    decided_bits = dict(zip(costs.decided, bits))
    activations: dict[int, ActivationPrecision] = {}
    for i, (activation, quantizer) in enumerate(zip(costs.activations, parts.quantizers)):
        bit_width = decided_bits.get(i, activation.bit_widths[-1])
        step, zero_point = quantizer.values(bit_width)
        precision = ActivationPrecision(step=step, zero_point=zero_point, bit_width=bit_width)
        activations |= dict.fromkeys(activation.tensors, precision)
    return Precision(weights=weights, activations=activations)


def has_precision(parts: QuantizedLayers) -> bool:
    """Returns whether a file can hold what quantizers of the user's own make of a model's tensors.

    Args:
        parts: The `ModelParts` of the model.
    """
    users = [q for q in parts.quantizers if isinstance(q, UserActivationQuantizer)]
    return all(
        parts.wrappers[point.path].is_on_grid(point.variable) for point in parts.costs.weights
    ) and all(quantizer.is_on_grid() for quantizer in users)
