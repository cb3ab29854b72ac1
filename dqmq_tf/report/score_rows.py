"""What inputs of each kind and severity get, and what each fifth by a measure of quality gets."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from dqmq_tf.budget.costs import CostModel
from dqmq_tf.quality.degradations import NUMBERED_KINDS
from dqmq_tf.report.decision_statistics import DecisionStatistics
from dqmq_tf.report.evaluation import Evaluation
from dqmq_tf.report.rows import FifthRow, QualityRow

_FIFTHS = 5


def quality_rows(
    statistics: DecisionStatistics, costs: CostModel, evaluation: Evaluation
) -> Iterator[QualityRow]:
    """Yields a row for each kind and severity, and one for all inputs.

    Args:
        statistics: The decisions at the embeddings of `evaluation`.
        costs: The cost model.
        evaluation: The result of the run over the data.
    """
    if evaluation.kinds is not None:
        cases, case_of = np.unique(evaluation.kinds, axis=0, return_inverse=True)
        for index, (kind, severity) in enumerate(cases.tolist()):
            row = _score_row(statistics, costs, evaluation, case_of.ravel() == index)
            yield QualityRow(kind=NUMBERED_KINDS[kind], severity=severity, **row)
    everything = np.ones(len(evaluation.embeddings), bool)
    row = _score_row(statistics, costs, evaluation, everything)
    yield QualityRow(kind="all", severity=None, **row)


def fifth_rows(
    statistics: DecisionStatistics, costs: CostModel, evaluation: Evaluation
) -> Iterator[FifthRow]:
    """Yields a row for each fifth of the inputs by each measure of quality, lowest first.

    Fifths differ by one input at most. Inputs of equal quality go to fifths in their order. A measure
    that is the same for all inputs has no rows, and neither have fewer than five inputs.

    Args:
        statistics, costs, evaluation: See `quality_rows`.
    """
    for name, values in evaluation.measures.items():
        if len(values) < _FIFTHS or not values.min() < values.max():
            continue
        parts = np.array_split(np.argsort(values, kind="stable"), _FIFTHS)
        for number, members in enumerate(parts, start=1):
            yield FifthRow(
                measure=name,
                fifth=number,
                least=float(values[members].min()),
                most=float(values[members].max()),
                **_score_row(statistics, costs, evaluation, members),
            )


def _score_row(
    statistics: DecisionStatistics, costs: CostModel, evaluation: Evaluation, members: np.ndarray
) -> dict[str, Any]:
    """Returns the fields of a `ScoreRow` of some inputs, given by a mask or by their indices."""
    sizes = np.array([math.prod(point.shape) for point in costs.weights], "float64")
    macs = costs.macs if costs.macs.sum() else np.ones_like(costs.macs)
    weights, inputs = statistics.weights[members], statistics.inputs[members]

    metric = evaluation.metric

    def mean(scores: np.ndarray | None) -> float | None:
        if scores is None:
            return None
        values = scores[members]
        if metric == "accuracy":
            # An input without labels that count has no accuracy.
            values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else math.nan

    score = mean(evaluation.scores)
    return {
        "samples": len(weights),
        "accuracy": score if metric == "accuracy" else None,
        "loss": score if metric == "loss" else None,
        "shuffled": mean(evaluation.shuffled),
        "weight_bits": float(np.average(weights.mean(axis=0), weights=sizes)),
        "activation_bits": float(np.average(inputs.mean(axis=0), weights=macs)),
        "bit_ops": costs.bit_ops(weights, statistics.activations[members]),
    }
