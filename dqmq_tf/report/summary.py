"""`summary`: the bit-widths of a model, their cost, and what inputs of each quality get."""

import dataclasses
import json
import math
import pathlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dqmq_tf.budget.costs import CostModel
from dqmq_tf.config import Budget
from dqmq_tf.errors import check_quantized
from dqmq_tf.model import DQMQModel
from dqmq_tf.quality.degradations import NUMBERED_KINDS
from dqmq_tf.report import evaluation, score_rows
from dqmq_tf.report.decision_statistics import DecisionStatistics
from dqmq_tf.report.following import followers
from dqmq_tf.report.rows import (
    ActivationRow,
    BitStatistics,
    FifthRow,
    LayerRow,
    QualityRow,
)
from dqmq_tf.terminal import as_json, output_console

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Summary:
    """The result of `summary`. Printing it shows tables.

    Attributes:
        model: The name of the model.
        target: The name of the target.
        deployable: Whether any runtime supports the bit-widths of the target.
        phase: `"search"`, `"settled"` or `"frozen"`.
        bits_vary_by: What the bits depend on: `"sample"`, `"profile"` or `"static"`.
        follows: Phrases for what follows the quality of each input. Empty if nothing does.
        profiles: The number of precision profiles. During the search, the number of groups of
            similar quality.
        source: The inputs that means are taken over. `"data"`: the data passed to `summary`.
            `"training"`: the last inputs that training saw. `"none"`: the model is not trained, and
            bits are those of an embedding of zeros.
        samples: The number of these inputs.
        layers: A `LayerRow` for each quantized variable, in the order of the network.
        activations: An `ActivationRow` for each activation whose bits the policy chooses.
        qualities: A `QualityRow` for each kind and severity in the data, and a last one for all
            inputs. Empty without data.
        fifths: A `FifthRow` for each fifth of the inputs by each measure of quality: those in the data
            or, for images without kinds, brightness, contrast and sharpness. Empty without data.
        budget: The `dqmq_tf.Budget`.
        cost: The cost in the budget's unit: the mean over the inputs or, for bytes, the cost of the
            largest profile.
        other_bytes: The estimated bytes of the file that are not quantized weights. None if the
            budget is not in bytes.
        decoder_bytes: The bytes of TFLite Micro's decoder, which `cost` includes. 0 if the largest
            profile does not use it, or the budget is not `size_bytes`.
        other_parameters: The number of parameters that are not quantized: biases, normalization,
            float layers. BitOPs and bytes do not include them.
        encoder_macs: The multiply-accumulates of the quality encoder per input.
    """

    model: str
    target: str
    deployable: bool
    phase: str
    bits_vary_by: str
    follows: tuple[str, ...]
    profiles: int
    source: Literal["data", "training", "none"]
    samples: int
    layers: tuple[LayerRow, ...]
    activations: tuple[ActivationRow, ...]
    qualities: tuple[QualityRow, ...]
    fifths: tuple[FifthRow, ...]
    budget: Budget
    cost: float
    other_bytes: float | None
    decoder_bytes: float
    other_parameters: int
    encoder_macs: int

    def total(self, column: str) -> float:
        """Returns the sum of a number over the layers.

        Args:
            column: The name of the number: `"weights"`, `"macs"`, `"bit_ops"`, `"stored_bytes"` or
                `"download_bytes"`.
        """
        return sum(getattr(row, column) for row in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for `json.dumps`. The budget becomes `{kind: value}`, NaN becomes None."""
        data = dataclasses.asdict(self)
        data["budget"] = {self.budget.kind: self.budget.value}
        return json.loads(as_json(data))

    def to_json(self) -> str:
        """Returns the summary as a JSON string."""
        return as_json(self.to_dict())

    def plot(self, path: str | pathlib.Path | None = None, by: str | None = None) -> "Figure":
        """Draws the bits per layer and, if the summary has data, accuracy and cost by quality.

        Args:
            path: The file to write, such as `"bits.png"` or `"bits.pdf"`. None to write no file.
            by: `"layer"` for the bits per layer alone, `"quality"` for what inputs of each kind and
                severity, or of each fifth by quality, get: accuracy, bits and cost. None for both,
                without the bits by quality.

        Returns:
            A `matplotlib.figure.Figure`, which a notebook shows.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If `by` is not valid, or is `"quality"` and the quality of the data is unknown.

        Example:

        >>> dqmq_tf.summary(qmodel).plot("bits.png")
        >>> dqmq_tf.summary(qmodel, test).plot("quality.png", by="quality")
        """
        from dqmq_tf.report import plots

        return plots.plot_summary(self, path, by)

    def __str__(self) -> str:
        console = output_console()
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    __repr__ = __str__

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from dqmq_tf.report import tables

        yield from tables.tables(self, options.ascii_only)


def summary(qmodel: DQMQModel, data: Any = None) -> Summary:
    """Reports bits, bytes and bit operations per layer, and what inputs of each quality get.

    Args:
        qmodel: A `DQMQModel`.
        data: Arrays `(images, labels)`, or a dataset of any kind that `dqmq_tf.inputs` lists, batched
            or not, of `(image, label)`. Elements `(image, label, {"kind": index, "severity": int})`
            tell the kinds of degradation apart; `quality.mixed_quality(..., with_quality=True)`
            produces them. Other keys of this dictionary are measures of quality of your own, one
            number for each input. Without the dictionary, images are measured by `quality.measure`.
            Sample weights are ignored. The data is read once. Without labels, no accuracy is
            reported. None to report the bits of the last inputs that training saw.

    Returns:
        A `Summary`. Print it, read its attributes, or call its `plot`. Bits, bytes and BitOPs are
        those of inference with the model's current weights.

    Raises:
        ConversionError: If a layer has weights that are NaN or infinity.
        ValueError: If `qmodel` is not a `DQMQModel`, if `data` is empty, endless or of another
            form, or if there is `data` but the model has not seen any data yet.

    Example:

    >>> test = quality.mixed_quality(quality.digits("test").batch(64), with_quality=True)
    >>> report = dqmq_tf.summary(qmodel, test)
    >>> print(report)
    >>> report.plot("bits.png")
    """
    check_quantized(qmodel)
    qmodel._parts.check_finite()
    evaluated, source = _evaluate(qmodel, data)
    costs = qmodel._parts.costs
    statistics = DecisionStatistics(qmodel, evaluated.embeddings)
    stored = _measured_costs(qmodel, "size_bytes", statistics)
    download = _measured_costs(qmodel, "download_bytes", statistics)
    in_budget = {"size_bytes": stored, "download_bytes": download}.get(costs.kind)
    decoder_bytes = 0.0
    if costs.on_npu:
        qmodel._training.keeper.measure()
        cost = max(costs.of_file(*bits) for bits in statistics.files())
    elif in_budget is None:
        cost = costs.exact(statistics.weights, statistics.activations)
    else:
        largest = max(statistics.group_weights, key=lambda bits: in_budget.of_file(bits, []))
        cost = in_budget.of_file(largest, [])
        decoder_bytes = in_budget.bytes.decoder_bytes(largest)
    kind_names = evaluated.kind_names()
    layers = _layer_rows(statistics, costs, stored, download, kind_names)
    return Summary(
        model=qmodel.name,
        target=qmodel.target.name,
        deployable=qmodel.target.deployable,
        phase=qmodel._parts.policy.phase,
        bits_vary_by=statistics.bits_vary_by,
        follows=followers(qmodel),
        profiles=statistics.groups,
        source=source,
        samples=0 if source == "none" else len(evaluated.embeddings),
        layers=layers,
        activations=_activation_rows(statistics, costs, kind_names),
        qualities=(
            () if data is None else tuple(score_rows.quality_rows(statistics, costs, evaluated))
        ),
        fifths=tuple(score_rows.fifth_rows(statistics, costs, evaluated)),
        budget=qmodel.budget,
        cost=cost,
        other_bytes=None if in_budget is None else in_budget.constant(),
        decoder_bytes=decoder_bytes,
        other_parameters=qmodel._parts.body.count_params() - sum(row.weights for row in layers),
        encoder_macs=qmodel._parts.encoder.multiply_accumulates(tuple(qmodel.inputs[0].shape)),
    )


def _evaluate(
    qmodel: DQMQModel, data: Any
) -> tuple[evaluation.Evaluation, Literal["data", "training", "none"]]:
    """Returns the inputs to summarize, and the `source` of a `Summary` for them."""
    if data is not None:
        return evaluation.evaluate(qmodel, data), "data"
    embeddings = qmodel._parts.policy.seen.values()
    if len(embeddings):
        return evaluation.Evaluation(embeddings=embeddings), "training"
    neutral = np.zeros((1, qmodel.config.embedding_size), "float32")
    return evaluation.Evaluation(embeddings=neutral), "none"


def _layer_rows(
    statistics: DecisionStatistics,
    costs: CostModel,
    stored: CostModel,
    download: CostModel,
    kind_names: np.ndarray | None,
) -> tuple[LayerRow, ...]:
    """Returns a row for each weight point.

    Args:
        statistics: The decisions.
        costs: The cost model of the budget.
        stored: The measured cost model in stored bytes.
        download: The measured cost model in download bytes.
        kind_names: The name of the kind of each input, or None.
    """
    # The files of two profiles may store the same bits otherwise: only one of them may use a decoder.
    distinct, file = np.unique(statistics.weights, axis=0, return_inverse=True)
    tables = {
        costs: [costs.bytes.table_of(bits) for bits in distinct] for costs in (stored, download)
    }

    def mean_bytes(costs: CostModel, point: int) -> float:
        columns = zip(tables[costs], distinct[:, point])
        each = np.array([table[point][b] for table, b in columns])
        return float(each[file.ravel()].mean())

    rows = []
    for i, point in enumerate(costs.weights):
        bits, input_bits = statistics.weights[:, i], statistics.inputs[:, i]
        rows.append(
            LayerRow(
                name=point.name,
                distribution=statistics.distribution(len(costs.decided) + i),
                bits=_bit_statistics(bits, kind_names),
                input=None if point.input is None else costs.activations[point.input].name,
                input_bits=_bit_statistics(input_bits, kind_names),
                weights=math.prod(point.shape),
                stored_bytes=mean_bytes(stored, i),
                download_bytes=mean_bytes(download, i),
                macs=point.macs,
                bit_ops=float(np.mean(point.macs * bits * input_bits)),
            )
        )
    return tuple(rows)


def _activation_rows(
    statistics: DecisionStatistics, costs: CostModel, kind_names: np.ndarray | None
) -> tuple[ActivationRow, ...]:
    """Returns a row for each activation whose bits the policy chooses."""
    return tuple(
        ActivationRow(
            name=costs.activations[index].name,
            distribution=statistics.distribution(column),
            bits=_bit_statistics(statistics.activations[:, column], kind_names),
        )
        for column, index in enumerate(costs.decided)
    )


def _bit_statistics(bits: np.ndarray, kind_names: np.ndarray | None) -> BitStatistics:
    by_kind = {}
    if kind_names is not None:
        for kind in NUMBERED_KINDS:
            is_kind = kind_names == kind
            if is_kind.any():
                by_kind[kind] = float(bits[is_kind].mean())
    return BitStatistics(
        mean=float(bits.mean()), least=int(bits.min()), most=int(bits.max()), by_kind=by_kind
    )


def _measured_costs(qmodel: DQMQModel, kind: str, statistics: DecisionStatistics) -> CostModel:
    """Returns a cost model in bytes, measured at the bits in use with the current weights.

    The model's own cost model knows one kind of budget, and is measured when training needs it.
    """
    used = [tuple(np.unique(bits).tolist()) for bits in statistics.group_weights.T]
    points = [
        dataclasses.replace(point, bit_widths=bits)
        for point, bits in zip(qmodel._parts.costs.weights, used)
    ]
    costs = CostModel(
        kind,
        qmodel.target,
        qmodel._parts.costs.activations,
        points,
        qmodel._parts.costs.float_weights,
    )
    if kind == qmodel._parts.costs.kind:
        costs.file_constant = qmodel._parts.costs.file_constant
    wrappers = qmodel._parts.wrappers
    costs.measure(lambda i, bits: wrappers[points[i].path].integers(points[i].variable, bits))
    return costs
