"""Runs data through a model: a score for each input, and the bits that each input gets."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf import inputs
from dqmq_tf.budget.costs import CostModel
from dqmq_tf.model import DQMQModel
from dqmq_tf.quality.degradations import KINDS
from dqmq_tf.report.rows import Distribution, QualityRow
from dqmq_tf.terminal import with_progress
from dqmq_tf.training.objective import per_sample_losses

# Embeddings that the policy sees at once.
_CHUNK = 1024
_BATCH_SIZE = 256
_ELEMENT = '(image, label) or (image, label, {"kind": index, "severity": int})'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of a run over data with N inputs.

    Attributes:
        embeddings: The quality embeddings, shape `[N, d]`.
        metric: What `scores` holds: `"accuracy"`, `"loss"` or None.
        scores: The accuracy or loss of each input, shape `[N]`. None without a metric.
        kinds: The kind and the severity of each input, shape `[N, 2]`. None if they are unknown.
    """

    embeddings: np.ndarray
    metric: Literal["accuracy", "loss"] | None = None
    scores: np.ndarray | None = None
    kinds: np.ndarray | None = None

    def kind_names(self) -> np.ndarray | None:
        """Returns the name of the kind of each input, or None if the kinds are unknown."""
        return None if self.kinds is None else np.array(["clean", *KINDS])[self.kinds[:, 0]]


def evaluate(qmodel: DQMQModel, data: Any) -> Evaluation:
    """Runs the model once over data.

    Args:
        qmodel: The model that takes the inputs.
        data: What the user passed to `summary`.

    Raises:
        ValueError: If the model has not seen data, or if the data is empty, endless, of another form,
            or contains an unknown kind of degradation.
    """
    if not qmodel._training.is_calibrated:
        raise ValueError(
            "`data` cannot be evaluated because the model has not seen data. Call fit or "
            "calibrate(images) first, or omit `data`."
        )
    metric: Literal["accuracy", "loss"] | None = None
    embeddings: list[np.ndarray] = []
    scores: list[np.ndarray] = []
    kinds: list[np.ndarray] = []
    batches = inputs.labeled_batches(data, qmodel, batch_size=_BATCH_SIZE)
    for x, rest in with_progress(batches, "Evaluating", _batch_count(qmodel, data)):
        labels, quality = _labels_and_quality(qmodel, rest)
        prediction = qmodel.predict_on_batch(inputs.structured(x, qmodel))
        if not embeddings and labels is not None:
            if _classes(labels, prediction) is not None:
                metric = "accuracy"
            elif getattr(qmodel, "loss", None) is not None:
                metric = "loss"
        embeddings.append(ops.convert_to_numpy(qmodel._parts.encoder(x[0])))
        if metric == "accuracy":
            correct = _classes(labels, prediction) == prediction.argmax(axis=-1)
            scores.append(correct.reshape(len(correct), -1).mean(axis=1))
        elif metric == "loss":
            labels = keras.tree.map_structure(ops.convert_to_tensor, labels)
            scores.append(ops.convert_to_numpy(per_sample_losses(qmodel.loss, labels, prediction)))
        if quality is not None:
            columns = [np.asarray(quality[key]).reshape(-1) for key in ("kind", "severity")]
            kinds.append(np.stack(columns, axis=1).astype("int64"))
    return Evaluation(
        embeddings=np.concatenate(embeddings),
        metric=metric,
        scores=np.concatenate(scores) if scores else None,
        kinds=_checked_kinds(np.concatenate(kinds)) if kinds else None,
    )


def _labels_and_quality(
    qmodel: DQMQModel, rest: tuple[Any, ...]
) -> tuple[Any, dict[str, Any] | None]:
    """Returns the labels and the quality of a batch, each None if it is not there.

    Args:
        qmodel: The model.
        rest: What follows the inputs in an element: nothing, or labels, sample weights and quality, of
            which the last ones may be missing. `quality.mixed_quality` appends the quality to
            elements without labels as well.
    """
    quality = None
    if rest and isinstance(rest[-1], dict) and not set(rest[-1]) <= set(qmodel.output_names):
        *others, quality = rest
        rest = tuple(others)
    if len(rest) > 2 or not (quality is None or {"kind", "severity"} <= set(quality)):
        kinds = [type(value).__name__ for value in rest]
        keys = "" if quality is None else f", and a dictionary with the keys {sorted(quality)}"
        raise ValueError(
            f"`data` must have elements {_ELEMENT}. Found elements with {kinds} after the inputs{keys}. "
            "Use `data.map`."
        )
    return rest[0] if rest else None, quality


def _batch_count(qmodel: DQMQModel, data: Any) -> int | None:
    """Returns the number of batches, or None if it is not known before they are read."""
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches
    if not isinstance(data, tf.data.Dataset) or int(data.cardinality()) < 0:
        return None
    rank = getattr(keras.tree.flatten(data.element_spec)[0].shape, "rank", None)
    is_batched = rank == len(qmodel.inputs[0].shape)
    return int(data.cardinality()) if is_batched else -(-int(data.cardinality()) // _BATCH_SIZE)


def _checked_kinds(kinds: np.ndarray) -> np.ndarray:
    lowest, highest = kinds[:, 0].min(), kinds[:, 0].max()
    if lowest < 0 or highest > len(KINDS):
        raise ValueError(
            f"`data` must have kinds from 0 (clean) to {len(KINDS)}, as quality.mixed_quality "
            f"produces them. Found {lowest} to {highest}."
        )
    return kinds


def _classes(y: Any, prediction: Any) -> Any:
    """Returns the indices of the true classes, or None if the task is not a classification."""
    if keras.tree.is_nested(y) or keras.tree.is_nested(prediction):
        return None
    y, shape = np.asarray(y), prediction.shape
    if len(shape) < 2 or shape[-1] < 2:
        return None
    if y.shape == (*shape[:-1], 1):
        y = y[..., 0]
    if y.shape == shape[:-1] and (y == np.round(y)).all():
        return y.astype("int64")
    is_one_hot = y.shape == shape and np.isin(y, (0, 1)).all() and (y.sum(axis=-1) == 1).all()
    return y.argmax(axis=-1) if is_one_hot else None


class DecisionStatistics:
    """The decisions of the policy, and its distributions, at N quality embeddings.

    Args:
        qmodel: The model.
        embeddings: The quality embeddings, shape `[N, d]`.

    Attributes:
        weights: The bits of the weights, int array `[N, weight points]`.
        activations: The bits of the activations that are decided, int array `[N, points]`.
        inputs: The bits of each layer's input, int array `[N, weight points]`.
        group_weights: The bits of the weights in each group, int array `[groups, weight points]`.
        groups: The number of groups (`profiles` of a `Summary`).
        bits_vary_by: See `Summary`.
    """

    def __init__(self, qmodel: DQMQModel, embeddings: np.ndarray) -> None:
        policy, costs = qmodel._parts.policy, qmodel._parts.costs
        count = len(embeddings)
        weights, activations, means, probabilities = [], [], [], []
        for start in range(0, count, _CHUNK):
            z = ops.convert_to_tensor(embeddings[start : start + _CHUNK])
            decision = {
                key: ops.convert_to_numpy(value) for key, value in policy(z, training=False).items()
            }
            self.group_weights = decision["weights"][..., 0].astype("int64")
            weights.append(self.group_weights[decision["group"]])
            activations.append(decision["activations"][..., 0])
            mean = policy.means(z)
            means.append(policy.bits_at(ops.convert_to_numpy(mean)).sum(axis=0) / count)
            p = np.exp(ops.convert_to_numpy(policy.log_probabilities(mean)))
            probabilities.append(p.sum(axis=0) / count)
        self.weights = np.concatenate(weights)
        self.activations = np.concatenate(activations).astype("int64")
        self.inputs = np.tile(costs.input_bits.astype("int64"), (count, 1))
        is_decided = costs.input_column >= 0
        self.inputs[:, is_decided] = self.activations[:, costs.input_column[is_decided]]
        self.groups = len(self.group_weights)
        self.bits_vary_by = policy.bits_vary_by
        self._policy = policy
        self._means, self._probabilities = np.sum(means, axis=0), np.sum(probabilities, axis=0)
        # A level above 8 bits stands for 8 bits.
        widths = policy.bits_at(policy.highest) - policy.bits_at(policy.highest - 1.0)
        self._sigma = ops.convert_to_numpy(policy.sigma()) * widths.astype("float32")

    def files(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns the weight bits and the activation bits of each file that the inputs would use."""
        count = self.weights.shape[1]
        if not self.activations.shape[1]:
            return [(bits, self.activations[:0]) for bits in self.group_weights]
        rows = np.unique(np.concatenate([self.weights, self.activations], axis=1), axis=0)
        return [(row[:count], row[count:]) for row in rows]

    def distribution(self, point: int) -> Distribution:
        """Returns the `Distribution` of a decision point. Activations come first."""
        is_allowed = self._policy.allowed[point] > 0
        return Distribution(
            mean=float(self._means[point]),
            sigma=float(self._sigma[point]),
            bit_widths=tuple(int(b) for b in self._policy.bit_widths[is_allowed]),
            probabilities=tuple(self._probabilities[point][is_allowed].tolist()),
        )


def quality_rows(
    statistics: DecisionStatistics, costs: CostModel, evaluation: Evaluation
) -> Iterator[QualityRow]:
    """Yields a row for each kind and severity, and one for all inputs.

    Args:
        statistics: The decisions at the embeddings of `evaluation`.
        costs: The cost model.
        evaluation: The result of the run over the data.
    """
    kinds, metric = evaluation.kinds, evaluation.metric
    sizes = np.array([math.prod(point.shape) for point in costs.weights], "float64")
    macs = costs.macs if costs.macs.sum() else np.ones_like(costs.macs)
    cases = [] if kinds is None else [tuple(case) for case in np.unique(kinds, axis=0).tolist()]
    for case in [*cases, None]:
        if case is None or kinds is None:
            kind, severity, is_in_case = "all", None, np.ones(len(statistics.weights), bool)
        else:
            kind, severity = ("clean", *KINDS)[case[0]], case[1]
            is_in_case = (kinds == case).all(axis=1)
        weights, inputs = statistics.weights[is_in_case], statistics.inputs[is_in_case]
        scores = evaluation.scores
        score = None if scores is None else float(scores[is_in_case].mean())
        yield QualityRow(
            kind=kind,
            severity=severity,
            samples=int(is_in_case.sum()),
            accuracy=score if metric == "accuracy" else None,
            loss=score if metric == "loss" else None,
            weight_bits=float(np.average(weights.mean(axis=0), weights=sizes)),
            activation_bits=float(np.average(inputs.mean(axis=0), weights=macs)),
            bit_ops=costs.bit_ops(weights, statistics.activations[is_in_case]),
        )
