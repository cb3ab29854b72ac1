"""`summary`: what was decided, what it costs, and what inputs of each quality get for it."""

import dataclasses
import json
import math
import os
import sys

import numpy as np

from dqmq_tf.budget.costs import CostModel
from dqmq_tf.model import DQMQModel
from dqmq_tf.quality.degradations import KINDS
from dqmq_tf.report import evaluation
from dqmq_tf.report.rows import ActivationRow, BitStatistics, LayerRow

_PIPED_WIDTH = 110


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Summary:
    """What `summary` found; printing it shows tables.

    Attributes:
        model, target: Names.
        deployable: Whether any runtime runs the target's bit-widths.
        phase: `"search"`, `"settled"` or `"frozen"`.
        bits_vary_by: What bits differ by: `"sample"`, `"profile"` or `"static"`.
        profiles: Number of precision profiles; during the search, of groups of like quality.
        source: `"data"`; without, `"training"`: the inputs that training saw last; `"none"`: the
            model has not been trained and bits are those at an embedding of zeros.
        samples: Number of inputs that means are over.
        layers: `LayerRow`s in the order of the network.
        activations: `ActivationRow`s, one per decided activation.
        qualities: `QualityRow`s of the data, the last for all; empty without data.
        budget: The `dqmq_tf.Budget`.
        cost: Cost reached, in the budget's unit: mean over the inputs, or, for bytes, of the
            largest profile.
        other_bytes: Estimated bytes of the file beside quantized weights; None for budgets that
            are not in bytes.
        other_parameters: Parameters that are not quantized (biases, normalization, layers left in
            floating point); no BitOPs or bytes are counted for them.
        encoder_macs: Multiply-accumulates of the quality encoder, per input.
    """

    model: str
    target: str
    deployable: bool
    phase: str
    bits_vary_by: str
    profiles: int
    source: str
    samples: int
    layers: tuple
    activations: tuple
    qualities: tuple
    budget: object
    cost: float
    other_bytes: float | None
    other_parameters: int
    encoder_macs: int

    def total(self, column):
        """Returns the sum over the layers of `"weights"`, `"macs"`, `"bit_ops"` or bytes."""
        return sum(getattr(row, column) for row in self.layers)

    def to_dict(self):
        """Returns plain data for `json.dumps`; the budget becomes `{kind: value}`."""
        data = dataclasses.asdict(self)
        data["budget"] = {self.budget.kind: self.budget.value}
        return json.loads(json.dumps(data))

    def plot(self, path=None):
        """Draws bits per layer and, where there were data, accuracy and cost by quality.

        Args:
            path: File to write, such as `"bits.png"` or `"bits.pdf"`; None for none.

        Returns:
            A `matplotlib.figure.Figure`, which a notebook shows.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        from dqmq_tf.report import plots

        return plots.plot_summary(self, path)

    def __str__(self):
        import rich.console

        # `print` writes what this returns: the console says whether that may hold colours.
        console = rich.console.Console(file=sys.stdout, force_jupyter=False)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = _PIPED_WIDTH
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    __repr__ = __str__

    def __rich_console__(self, console, options):
        from dqmq_tf.report import tables

        yield from tables.tables(self, options.ascii_only)


def summary(qmodel, data=None):
    """Reports bits, bytes and bit operations per layer, and what inputs of each quality get.

    Args:
        qmodel: A `DQMQModel`.
        data: A finite `tf.data.Dataset`, batched or not, of `(image, label)`, or of
            `(image, label, {"kind": index, "severity": int})` as `quality.mixed_quality(...,
            with_quality=True)` makes them, which tells the kinds apart. Sample weights are
            ignored. It is read once. None for no figures on accuracy: bits are then those of the
            inputs that training saw last.

    Returns:
        A `Summary`; print it, read its attributes, or call its `plot`. Bits, bytes and BitOPs are
        those of inference as the model is now.

    Raises:
        ValueError: If `qmodel` is no `DQMQModel`, or if `data` is empty, endless, of another form
            than above, or given for a model that has not seen data.

    Example:

    >>> test = quality.mixed_quality(quality.digits("test").batch(64), with_quality=True)
    >>> report = dqmq_tf.summary(qmodel, test)
    >>> print(report)
    >>> report.plot("bits.png")
    """
    if not isinstance(qmodel, DQMQModel):
        raise ValueError(
            f"`qmodel` must be a DQMQModel. Found {type(qmodel).__name__}; make one with "
            "`dqmq_tf.quantize_model(model)`."
        )
    scores = kinds = None
    if data is not None:
        source = "data"
        z, scores, kinds = evaluation.evaluate(qmodel, evaluation.checked_dataset(qmodel, data))
    else:
        z = qmodel.policy.observed()
        source = "training" if len(z) else "none"
        z = z if len(z) else np.zeros((1, qmodel.config.embedding_size), "float32")
    decided, costs = evaluation.DecisionStatistics(qmodel, z), qmodel.costs
    names = None if kinds is None else np.array(["clean", *KINDS])[kinds[:, 0]]
    stored = _measured(qmodel, "size_bytes", decided)
    deflated = _measured(qmodel, "download_bytes", decided)
    in_budget = {"size_bytes": stored, "download_bytes": deflated}.get(costs.kind)
    if in_budget:
        cost = max(in_budget.of_file(row, []) for row in decided.group_weights)
    else:
        cost = costs.exact(decided.weights, decided.activations)
    rows, activations = [], []
    for column, index in enumerate(costs.decided):
        activations.append(
            ActivationRow(
                name=costs.activations[index].name,
                distribution=decided.distribution(column),
                bits=_bits(decided.activations[:, column], names),
            )
        )
    for i, point in enumerate(costs.weights):
        bits = decided.weights[:, i]
        rows.append(
            LayerRow(
                name=point.name,
                distribution=decided.distribution(len(costs.decided) + i),
                bits=_bits(bits, names),
                input=None if point.input is None else costs.activations[point.input].name,
                input_bits=_bits(decided.inputs[:, i], names),
                weights=math.prod(point.shape),
                stored_bytes=float(np.mean([stored.table[i][b] for b in bits])),
                download_bytes=float(np.mean([deflated.table[i][b] for b in bits])),
                macs=point.macs,
                bit_ops=float(np.mean(point.macs * bits * decided.inputs[:, i])),
            )
        )
    qualities = () if data is None else evaluation.quality_rows(decided, costs, scores, kinds)
    return Summary(
        model=qmodel.name,
        target=qmodel.target.name,
        deployable=qmodel.target.deployable,
        phase=qmodel.policy.phase,
        bits_vary_by=decided.bits_vary_by,
        profiles=decided.groups,
        source=source,
        samples=0 if source == "none" else len(z),
        layers=tuple(rows),
        activations=tuple(activations),
        qualities=tuple(qualities),
        budget=qmodel.budget,
        cost=cost,
        other_bytes=in_budget.constant() if in_budget else None,
        other_parameters=qmodel._parts.body.count_params() - sum(row.weights for row in rows),
        encoder_macs=qmodel.encoder.multiply_accumulates(tuple(qmodel.inputs[0].shape)),
    )


def _bits(bits, names):
    kinds = [] if names is None else [k for k in ("clean", *KINDS) if (names == k).any()]
    return BitStatistics(
        mean=float(bits.mean()),
        least=int(bits.min()),
        most=int(bits.max()),
        by_kind={kind: float(bits[names == kind].mean()) for kind in kinds},
    )


def _measured(qmodel, kind, decided):
    """Returns a `CostModel` in bytes that is measured at the bits in use and the present weights.

    The model's own is measured for one kind of budget, and at times that suit training.
    """
    used = [tuple(np.unique(bits).tolist()) for bits in decided.group_weights.T]
    points = [
        dataclasses.replace(point, bit_widths=bits)
        for point, bits in zip(qmodel.costs.weights, used)
    ]
    costs = CostModel(
        kind,
        qmodel.target,
        qmodel.costs.activations,
        points,
        qmodel.costs.float_weights,
    )
    if kind == qmodel.costs.kind:
        costs.file_constant = qmodel.costs.file_constant
    wrappers = qmodel._parts.wrappers
    costs.measure(lambda i, bits: wrappers[points[i].path].integers(points[i].variable, bits))
    return costs
