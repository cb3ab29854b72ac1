"""Rows of a summary: what is known of each layer, activation and input quality."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitStatistics:
    """Bit-widths that one decision point has on some inputs.

    Attributes:
        mean, least, most: Over the inputs.
        by_kind: `{kind: mean}` over the inputs of each kind of degradation; empty where the kinds
            are not known.
    """

    mean: float
    least: int
    most: int
    by_kind: dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distribution:
    """Discretised Gaussian over candidate bit-widths, as the search left it.

    Attributes:
        mean: Mean bit-width `m + <v, z>`, averaged over the inputs.
        sigma: Width in bits.
        bit_widths: Candidates.
        probabilities: Of each candidate, averaged over the inputs.
    """

    mean: float
    sigma: float
    bit_widths: tuple
    probabilities: tuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRow:
    """The decided weights of a layer; numbers are per input and averaged over the inputs.

    Attributes:
        name: Decision point, `"path:variable"`.
        distribution: A `Distribution`.
        bits: `Bits` of the weights.
        input: Name of the activation point that the layer reads; None where that is float.
        input_bits: `Bits` of the activation that the layer reads; 32 where that is float.
        weights: Number of weights.
        stored_bytes: Bytes of the weights in the target's containers.
        download_bytes: Bytes of these weights alone under deflate (zlib, level 9).
        macs: Multiply-accumulates.
        bit_ops: Multiply-accumulates x weight bits x input bits.
    """

    name: str
    distribution: Distribution
    bits: BitStatistics
    input: str | None
    input_bits: BitStatistics
    weights: int
    stored_bytes: float
    download_bytes: float
    macs: int
    bit_ops: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationRow:
    """An activation whose bits are decided.

    Attributes:
        name: Layer, or input of the model, that makes the tensor.
        distribution: A `Distribution`.
        bits: `Bits` of the activation.
    """

    name: str
    distribution: Distribution
    bits: BitStatistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityRow:
    """Inputs of one kind and severity.

    Attributes:
        kind: `"clean"`, one of `quality.KINDS`, or `"all"`.
        severity: 1 to 5; 0 for clean, None for all.
        samples: Number of inputs.
        accuracy: Share of inputs classified rightly; None if the task is no classification.
        loss: Mean of the compiled loss; None for a classification, or without a compiled loss.
        weight_bits: Bits of a weight, averaged over weights by their count.
        activation_bits: Bits of a layer's input, averaged over layers by multiply-accumulates.
        bit_ops: Bit operations per input.
    """

    kind: str
    severity: int | None
    samples: int
    accuracy: float | None
    loss: float | None
    weight_bits: float
    activation_bits: float
    bit_ops: float
