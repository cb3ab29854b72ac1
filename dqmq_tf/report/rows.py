"""Rows of a summary: one per layer, activation and quality of the input."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class BitStatistics:
    """The bit-widths of one decision point on a set of inputs.

    Attributes:
        mean: The mean over the inputs.
        least: The smallest bit-width.
        most: The largest bit-width.
        by_kind: The mean over the inputs of each kind of degradation. Empty if the kinds are
            unknown.
    """

    mean: float
    least: int
    most: int
    by_kind: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distribution:
    """The discretized Gaussian over candidate bit-widths at the end of the search.

    Attributes:
        mean: The mean bit-width `m + <v, z>`, averaged over the inputs.
        sigma: The standard deviation in bits.
        bit_widths: The candidates.
        probabilities: The probability of each candidate, averaged over the inputs.
    """

    mean: float
    sigma: float
    bit_widths: tuple[int, ...]
    probabilities: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRow:
    """The quantized weights of a layer. Numbers are per input, averaged over the inputs.

    Attributes:
        name: The decision point, `"path:variable"`.
        distribution: The `Distribution` of the weight bits.
        bits: The `BitStatistics` of the weights.
        input: The name of the activation point that the layer reads. None if its input is float.
        input_bits: The `BitStatistics` of that activation. 32 bits if it is float.
        weights: The number of weights.
        stored_bytes: The size of the weights in the target's containers.
        download_bytes: The size of these weights alone, compressed with deflate (zlib, level 9).
        macs: The number of multiply-accumulates.
        bit_ops: Multiply-accumulates times weight bits times input bits.
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
    """An activation whose bit-width the policy chooses.

    Attributes:
        name: The layer, or input of the model, that produces the tensor.
        distribution: The `Distribution` of its bits.
        bits: The `BitStatistics` of the activation.
    """

    name: str
    distribution: Distribution
    bits: BitStatistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """What a group of inputs gets.

    Attributes:
        samples: The number of inputs.
        accuracy: The share of correctly classified inputs, without labels of the `ignore_class` of the
            loss. None if the task is not a classification.
        loss: The mean of the compiled loss. A loss that returns one value for a batch is computed for
            one input at a time. None for a classification or without a compiled loss.
        shuffled: The accuracy or the loss if each input has the quality of another input of its batch
            (see `following.ShuffledModel`). Batches of one are joined. None if nothing follows the
            quality, without a score, or if an input has no other of its shape beside it.
        weight_bits: The mean bits of a weight.
        activation_bits: The mean bits of a layer's input, weighted by multiply-accumulates.
        bit_ops: The bit operations per input.
    """

    samples: int
    accuracy: float | None
    loss: float | None
    shuffled: float | None
    weight_bits: float
    activation_bits: float
    bit_ops: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityRow(ScoreRow):
    """The inputs of one kind and severity of degradation.

    Attributes:
        kind: `"clean"`, one of `quality.KINDS`, or `"all"`.
        severity: 1 to 5. 0 for clean inputs, None for all inputs.
    """

    kind: str
    severity: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class FifthRow(ScoreRow):
    """A fifth of the inputs by a measure of their quality.

    Attributes:
        measure: The measure: `"brightness"`, `"contrast"` or `"sharpness"`, as `quality.measure`
            defines them, or a name from the data.
        fifth: 1 for the lowest values to 5 for the highest.
        least: The smallest value of the measure in this fifth.
        most: The largest one.
    """

    measure: str
    fifth: int
    least: float
    most: float
