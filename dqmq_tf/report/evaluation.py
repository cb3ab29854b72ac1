"""Runs data through a model: scores per input, and the bits that each input gets."""

import math

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.progress import with_progress
from dqmq_tf.quality.degradations import KINDS
from dqmq_tf.report.rows import Distribution, QualityRow
from dqmq_tf.training.objective import per_sample_losses

_CHUNK = 1024
_BATCH_SIZE = 256


_ELEMENT = '(image, label) or (image, label, {"kind": index, "severity": int})'


def checked_dataset(qmodel, data):
    """Returns `data` in batches, its elements `(images, labels[, weights][, quality])`."""
    if not isinstance(data, tf.data.Dataset):
        raise ValueError(
            f"`data` must be a tf.data.Dataset. Found {type(data).__name__}; make one with "
            "`tf.data.Dataset.from_tensor_slices((images, labels))`."
        )
    if not qmodel.is_calibrated:
        raise ValueError(
            "`data` cannot be judged: the model has not seen data. Call fit, or "
            "calibrate(images), first, or leave `data` out."
        )
    if data.cardinality() in (0, tf.data.INFINITE_CARDINALITY):
        found = "an empty" if data.cardinality() == 0 else "an endless"
        raise ValueError(
            f"`data` must be finite and hold samples. Found {found} dataset; check its split, "
            "filters, `drop_remainder` and `repeat`."
        )
    spec = data.element_spec
    form = isinstance(spec, tuple) and 2 <= len(spec) <= 4
    if form and isinstance(spec[-1], dict) and len(spec) > 2:
        form = {"kind", "severity"} <= set(spec[-1])
    else:
        form = form and len(spec) < 4
    if not form:
        raise ValueError(f"`data` must have elements {_ELEMENT}. Found {spec!r}; use `data.map`.")
    found = [tf.TensorShape(image.shape) for image in keras.tree.flatten(spec[0])]
    wanted = [tf.TensorShape(x.shape) for x in qmodel.inputs]
    for shapes, batched in ((wanted, True), ([shape[1:] for shape in wanted], False)):
        same = len(found) == len(shapes) and all(
            f.rank is not None and f.is_compatible_with(s) for f, s in zip(found, shapes)
        )
        if same and batched:
            return data
        if same:
            return data.batch(_BATCH_SIZE if all(f.is_fully_defined() for f in found) else 1)
    raise ValueError(
        f"`data` must have images of shape {[tuple(s)[1:] for s in wanted]}, batched or not, as "
        f"{qmodel.name!r} takes them. Found {[str(f) for f in found]}; resize them with `data.map`."
    )


def evaluate(qmodel, data):
    """Runs the model once over batched data.

    Returns:
        Quality embeddings `[N, d]`; `(metric, values [N])`, where the metric is `"accuracy"`,
        `"loss"` or None; kind and severity `[N, 2]`, or None where they are not known.
    """
    embeddings, values, kinds, metric = [], [], [], None
    for x, y, *rest in with_progress(data):
        prediction = qmodel.predict_on_batch(x)
        if not embeddings:
            metric = "loss" if getattr(qmodel, "loss", None) is not None else None
            metric = "accuracy" if _classes(y, prediction) is not None else metric
        embeddings.append(ops.convert_to_numpy(qmodel.encoder(keras.tree.flatten(x)[0])))
        if metric == "accuracy":
            right = _classes(y, prediction) == prediction.argmax(axis=-1)
            values.append(right.reshape(len(right), -1).mean(axis=1))
        elif metric == "loss":
            values.append(ops.convert_to_numpy(per_sample_losses(qmodel.loss, y, prediction)))
        if rest and isinstance(rest[-1], dict):
            drawn = [np.asarray(rest[-1][key]).reshape(-1) for key in ("kind", "severity")]
            kinds.append(np.stack(drawn, axis=1).astype("int64"))
    if not embeddings:
        raise ValueError("`data` is empty: it gave no batch. Check its split and filters.")
    kinds = np.concatenate(kinds) if kinds else None
    if kinds is not None and not (0 <= kinds[:, 0].min() and kinds[:, 0].max() <= len(KINDS)):
        raise ValueError(
            f"`data` must have kinds from 0 (clean) to {len(KINDS)}, as quality.mixed_quality "
            f"gives them. Found {kinds[:, 0].min()} to {kinds[:, 0].max()}."
        )
    return np.concatenate(embeddings), (metric, np.concatenate(values) if values else None), kinds


def _classes(y, prediction):
    """Returns the index of the true class at each place, or None if this is no classification."""
    if keras.tree.is_nested(y) or keras.tree.is_nested(prediction):
        return None
    y, shape = np.asarray(y), prediction.shape
    if len(shape) < 2 or shape[-1] < 2:
        return None
    if y.shape == (*shape[:-1], 1):
        y = y[..., 0]
    if y.shape == shape[:-1] and (y == np.round(y)).all():
        return y.astype("int64")
    one_hot = y.shape == shape and np.isin(y, (0, 1)).all() and (y.sum(axis=-1) == 1).all()
    return y.argmax(axis=-1) if one_hot else None


class DecisionStatistics:
    """Decisions and distributions at quality embeddings `z` `[N, d]`.

    Attributes:
        weights, activations, inputs: int arrays `[N, points]`: bits of weights, of decided
            activations, and of what each layer with weights reads.
        group_weights: int array `[groups, points]`.
        groups, bits_vary_by: `profiles` and `bits_vary_by` of `Summary`.
    """

    def __init__(self, qmodel, z):
        policy, costs = qmodel.policy, qmodel.costs
        weights, activations, means, probabilities = [], [], 0.0, 0.0
        for start in range(0, len(z), _CHUNK):
            part = ops.convert_to_tensor(z[start : start + _CHUNK])
            found = {k: ops.convert_to_numpy(v) for k, v in policy(part, training=False).items()}
            self.group_weights = found["weights"][..., 0].astype("int64")
            weights.append(self.group_weights[found["group"]])
            activations.append(found["activations"][..., 0])
            mean = policy.means(part)
            means += ops.convert_to_numpy(mean).sum(axis=0) / len(z)
            p = np.exp(ops.convert_to_numpy(policy.log_probabilities(mean)))
            probabilities += p.sum(axis=0) / len(z)
        self.weights = np.concatenate(weights)
        self.activations = np.concatenate(activations).astype("int64")
        self.inputs = np.tile(costs.input_bits.astype("int64"), (len(z), 1))
        known = costs.input_column >= 0
        self.inputs[:, known] = self.activations[:, costs.input_column[known]]
        self.groups = len(self.group_weights)
        self.bits_vary_by = policy.bits_vary_by
        self._policy, self._means, self._probabilities = policy, means, probabilities
        self._sigma = ops.convert_to_numpy(policy.sigma())

    def distribution(self, point):
        """Returns the `Distribution` of a decision point, activations first."""
        allowed = self._policy.allowed[point] > 0
        return Distribution(
            mean=float(self._means[point]),
            sigma=float(self._sigma[point]),
            bit_widths=tuple(int(b) for b in self._policy.bit_widths[allowed]),
            probabilities=tuple(self._probabilities[point][allowed].tolist()),
        )


def quality_rows(decided, costs, scores, kinds):
    """Yields a `QualityRow` per kind and severity, and one for all."""
    metric, values = scores
    sizes = np.array([math.prod(point.shape) for point in costs.weights], "float64")
    macs = costs.macs if costs.macs.sum() else np.ones_like(costs.macs)
    everything = np.ones(len(decided.weights), bool)
    cases = [] if kinds is None else [(k, s) for k, s in np.unique(kinds, axis=0).tolist()]
    for case in [*cases, None]:
        which = everything if case is None else (kinds == case).all(axis=1)
        weights, inputs = decided.weights[which], decided.inputs[which]
        value = float(values[which].mean()) if metric else None
        yield QualityRow(
            kind="all" if case is None else ("clean", *KINDS)[case[0]],
            severity=None if case is None else case[1],
            samples=int(which.sum()),
            accuracy=value if metric == "accuracy" else None,
            loss=value if metric == "loss" else None,
            weight_bits=float(np.average(weights.mean(axis=0), weights=sizes)),
            activation_bits=float(np.average(inputs.mean(axis=0), weights=macs)),
            bit_ops=costs.bit_ops(weights, decided.activations[which]),
        )
