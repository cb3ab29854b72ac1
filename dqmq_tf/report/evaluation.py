"""Runs data through a model: embeddings, scores and measures of quality of each input."""

import contextlib
import dataclasses
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf import inputs
from dqmq_tf.model import DQMQModel
from dqmq_tf.quality.degradations import NUMBERED_KINDS, check_kind_numbers
from dqmq_tf.quality.measures import is_measurable, measure
from dqmq_tf.report.following import in_company, is_alone, shuffled_model
from dqmq_tf.terminal import with_progress
from dqmq_tf.training.objective import per_sample_losses

_BATCH_SIZE = 256
_ELEMENT = (
    '(image, label) or (image, label, {"kind": index, "severity": int}), where measures of your own '
    "may take the place of kind and severity or stand beside them"
)
_KIND_KEYS = {"kind", "severity"}
_Metric = Literal["accuracy", "loss"]
_METRICS: tuple[_Metric, ...] = ("accuracy", "loss")
# The scores of the inputs of a batch, shape `[N]`, by each metric that applies to it.
_Scores = dict[_Metric, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of a run over data with N inputs.

    Attributes:
        embeddings: The quality embeddings, shape `[N, d]`.
        metric: What `scores` holds: `"accuracy"`, `"loss"` or None.
        scores: The accuracy or loss of each input, shape `[N]`. None without a metric. Labels of the
            `ignore_class` of the loss do not count. The accuracy of an input without others is NaN.
        shuffled: The same if each input has the quality of another input of its batch. None without a
            metric, if nothing follows the quality, or if an input has no other of its shape beside it.
        kinds: The kind and the severity of each input, shape `[N, 2]`. None if they are unknown.
        measures: `{name: values [N]}` of measures of quality: those in the data or, if the data has
            neither kinds nor measures and consists of images, those of `quality.measure`.
    """

    embeddings: np.ndarray
    metric: _Metric | None = None
    scores: np.ndarray | None = None
    shuffled: np.ndarray | None = None
    kinds: np.ndarray | None = None
    measures: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def kind_names(self) -> np.ndarray | None:
        """Returns the name of the kind of each input, or None if the kinds are unknown."""
        return None if self.kinds is None else np.array(NUMBERED_KINDS)[self.kinds[:, 0]]


def _predictions(qmodel: DQMQModel, x: list[np.ndarray]) -> Any:
    """Returns the outputs of a model for a batch.

    Args:
        qmodel: The model.
        x: The inputs of the model, one array `[N, ...]` each.
    """
    outputs = qmodel.predict_on_batch(inputs.structured(x, qmodel))
    # Under a distribution strategy, each replica has predicted the whole batch.
    return keras.tree.map_structure(lambda y: y[: len(x[0])], outputs)


def evaluate(qmodel: DQMQModel, data: Any) -> Evaluation:
    """Runs the model once over data, and once more with the quality shuffled if something follows it.

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
    embeddings: list[np.ndarray] = []
    scores: list[_Scores] = []
    shuffled: list[_Scores] = []
    qualities: list[dict[str, np.ndarray]] = []
    other = shuffled_model(qmodel)
    batches = inputs.labeled_batches(data, qmodel, batch_size=_BATCH_SIZE)
    batches = with_progress(batches, "Evaluating", _batch_count(qmodel, data))
    for x, rest in batches if other is None else in_company(batches):
        labels, quality = _labels_and_quality(qmodel, rest)
        prediction = _predictions(qmodel, x)
        embeddings.append(ops.convert_to_numpy(qmodel._parts.encoder(x[0])))
        if other is not None and is_alone((x, rest)):
            # It would keep its own quality, which says nothing about following it.
            other, shuffled = None, []
        scores.append(_scores(qmodel, labels, prediction))
        if other is not None:
            shuffled.append(_scores(qmodel, labels, other.predict_on_batch(x)))
        if quality is None and is_measurable(np.shape(x[0])):
            quality = measure(x[0])
        qualities.append(quality or {})
    columns = {
        name: np.concatenate([quality[name] for quality in qualities])
        for name in qualities[0]
        if all(name in quality for quality in qualities)
    }
    kinds = None
    if columns.keys() >= _KIND_KEYS:
        kind, severity = (columns.pop(name) for name in ("kind", "severity"))
        kinds = np.stack([kind, severity], axis=1).astype("int64")
        check_kind_numbers(kinds[:, 0])
    metric = next((name for name in _METRICS if all(name in batch for batch in scores)), None)
    return Evaluation(
        embeddings=np.concatenate(embeddings),
        metric=metric,
        scores=_joined(scores, metric),
        shuffled=_joined(shuffled, metric),
        kinds=kinds,
        measures=columns,
    )


def _joined(batches: list[_Scores], metric: _Metric | None) -> np.ndarray | None:
    """Returns the scores of all batches by one metric, shape `[N]`. None without scores."""
    return np.concatenate([batch[metric] for batch in batches]) if metric and batches else None


def _scores(qmodel: DQMQModel, labels: Any, prediction: Any) -> _Scores:
    """Returns the accuracy of each input of a batch, or the loss, or both.

    Several labels of one input may all happen to be one-hot in a batch, so that only all batches
    together tell which of the two counts.
    """
    scores: _Scores = {}
    if labels is None:
        return scores
    classes = _classes(labels, prediction)
    if classes is not None:
        scores["accuracy"] = _accuracies(classes, prediction, _ignored_class(qmodel))
    if getattr(qmodel, "loss", None) is None:
        return scores
    if classes is None:
        scores["loss"] = _losses(qmodel, labels, prediction)
    elif np.shape(labels) == np.shape(prediction):
        # One-hot labels may be of one class, for which the loss takes an index.
        with contextlib.suppress(Exception):
            scores["loss"] = _losses(qmodel, labels, prediction)
    return scores


def _accuracies(classes: np.ndarray, prediction: np.ndarray, ignored: int | None) -> np.ndarray:
    """Returns the share of the classes of each input that are predicted, shape `[N]`."""
    counts = classes != ignored
    is_right = (classes == prediction.argmax(axis=-1)) & counts
    right, counted = (x.reshape(len(x), -1).sum(axis=1) for x in (is_right, counts))
    return np.divide(right, counted, out=np.full(len(right), np.nan), where=counted > 0)


def _losses(qmodel: DQMQModel, labels: Any, prediction: Any) -> np.ndarray:
    """Returns the loss of each input, shape `[N]`."""
    labels = keras.tree.map_structure(ops.convert_to_tensor, labels)
    losses = per_sample_losses(
        qmodel.loss,
        labels,
        prediction,
        loss_weights=qmodel._loss_weights,
        names=qmodel.output_names,
        separately=True,
    )
    return ops.convert_to_numpy(losses)


def _ignored_class(qmodel: DQMQModel) -> int | None:
    """Returns the class that the loss of a model with one output leaves out, if there is one."""
    losses = keras.tree.flatten(getattr(qmodel, "loss", None))
    return next((getattr(loss, "ignore_class", None) for loss in losses), None)


def _labels_and_quality(
    qmodel: DQMQModel, rest: tuple[Any, ...]
) -> tuple[Any, dict[str, np.ndarray] | None]:
    """Returns the labels, and the kinds and measures `{name: values [N]}`, each None if not there.

    Args:
        qmodel: The model.
        rest: What follows the inputs in an element: nothing, or labels, sample weights and quality, of
            which the last ones may be missing. `quality.mixed_quality` appends the quality to
            elements without labels as well.
    """
    quality = None
    outputs = {*qmodel.output_names, *(qmodel.output if isinstance(qmodel.output, dict) else ())}
    if rest and isinstance(rest[-1], dict) and not set(rest[-1]) <= outputs:
        *others, last = rest
        rest = tuple(others)
        quality = {name: np.asarray(values) for name, values in last.items()}
    is_valid = quality is None or (
        all(values.dtype.kind in "biuf" for values in quality.values())
        and len({values.size for values in quality.values()}) == 1
        and len(_KIND_KEYS & quality.keys()) in (0, 2)
    )
    if len(rest) > 2 or not is_valid:
        kinds = [type(value).__name__ for value in rest]
        keys = "" if quality is None else f", and a dictionary with the keys {sorted(quality)}"
        raise ValueError(
            f"`data` must have elements {_ELEMENT}. Found elements with {kinds} after the inputs{keys}. "
            "Use `data.map`."
        )
    if quality is not None:
        quality = {name: values.reshape(-1) for name, values in quality.items()}
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
