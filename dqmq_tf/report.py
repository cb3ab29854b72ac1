"""`summary`: what was decided, what it costs, and what inputs of each quality get for it."""

import dataclasses
import json
import math
import os
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.costs import CostModel, quantized_integers
from dqmq_tf.layers.policy import FROZEN
from dqmq_tf.model import DQMQModel
from dqmq_tf.objective import per_sample_losses
from dqmq_tf.quality import KINDS

_CHUNK = 1024
_BATCH_SIZE = 256
_PATIENCE_SECONDS = 2.0
_PIPED_WIDTH = 110
_ELEMENT = '(image, label) or (image, label, {"kind": index, "severity": int})'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bits:
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
        name: Decision point, `"site:variable"`.
        distribution: A `Distribution`.
        bits: `Bits` of the weights.
        input: Name of the activation point that the layer reads; None where that is float.
        input_bits: `Bits` of the activation that the layer reads; 32 where that is float.
        weights: Number of weights.
        stored_bytes: Bytes of the weights in the target's containers.
        deflated_bytes: Bytes of these weights alone under deflate (zlib, level 9).
        macs: Multiply-accumulates.
        bit_ops: Multiply-accumulates x weight bits x input bits.
    """

    name: str
    distribution: Distribution
    bits: Bits
    input: str | None
    input_bits: Bits
    weights: int
    stored_bytes: float
    deflated_bytes: float
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
    bits: Bits


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


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Summary:
    """What `summary` found; printing it shows tables.

    Attributes:
        model, target: Names.
        deployable: Whether any runtime runs the target's bit-widths.
        phase: `"search"`, `"settled"` or `"frozen"`.
        per: What bits differ by: `"sample"`, `"profile"` or `"static"`.
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
    per: str
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
        from dqmq_tf import plots

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
        from dqmq_tf import plots

        yield from plots.tables(self, options.ascii_only)


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
        z, scores, kinds = _evaluate(qmodel, _checked(qmodel, data))
    else:
        z = qmodel.policy.observed()
        source = "training" if len(z) else "none"
        z = z if len(z) else np.zeros((1, qmodel.config.embedding_size), "float32")
    decided, costs = _Decided(qmodel, z), qmodel.costs
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
                deflated_bytes=float(np.mean([deflated.table[i][b] for b in bits])),
                macs=point.macs,
                bit_ops=float(np.mean(point.macs * bits * decided.inputs[:, i])),
            )
        )
    return Summary(
        model=qmodel.name,
        target=qmodel.target.name,
        deployable=qmodel.target.deployable,
        phase=qmodel.policy.phase,
        per=decided.per,
        profiles=decided.groups,
        source=source,
        samples=0 if source == "none" else len(z),
        layers=tuple(rows),
        activations=tuple(activations),
        qualities=tuple(_quality_rows(decided, costs, scores, kinds)) if data is not None else (),
        budget=qmodel.budget,
        cost=cost,
        other_bytes=in_budget.constant() if in_budget else None,
        other_parameters=qmodel.parts.body.count_params() - sum(row.weights for row in rows),
        encoder_macs=qmodel.encoder.multiply_accumulates(tuple(qmodel.inputs[0].shape)),
    )


class _Decided:
    """Decisions and distributions at quality embeddings `z` `[N, d]`.

    Attributes:
        weights, activations, inputs: int arrays `[N, points]`: bits of weights, of decided
            activations, and of what each layer with weights reads.
        group_weights: int array `[groups, points]`.
        groups, per: `profiles` and `per` of `Summary`.
    """

    def __init__(self, qmodel, z):
        policy, costs = qmodel.policy, qmodel.costs
        weights, activations, means, probabilities = [], [], 0.0, 0.0
        for start in range(0, len(z), _CHUNK):
            part = ops.convert_to_tensor(z[start : start + _CHUNK])
            found = {k: ops.convert_to_numpy(v) for k, v in policy(part, training=False).items()}
            self.group_weights = found["weights"][..., 0].astype("int64")
            weights.append(self.group_weights[found["group"]])
            rows = found["activations"][..., 0]
            activations.append(np.broadcast_to(rows, (len(part), rows.shape[1])))
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
        self.per = "profile" if self.groups > 1 else "static"
        if policy.activation_count and policy.phase != FROZEN:
            self.per = "sample"
        self._policy, self._means, self._probabilities = policy, means, probabilities
        self._sigma = ops.convert_to_numpy(policy.sigma())

    def distribution(self, point):
        """Returns the `Distribution` of a decision point, activations first."""
        allowed = self._policy.allowed[point] > 0
        return Distribution(
            mean=float(self._means[point]),
            sigma=float(self._sigma[point]),
            bit_widths=tuple(int(b) for b in self._policy.grid[allowed]),
            probabilities=tuple(self._probabilities[point][allowed].tolist()),
        )


def _bits(bits, names):
    kinds = [] if names is None else [k for k in ("clean", *KINDS) if (names == k).any()]
    return Bits(
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

    def integers(index, bit_width):
        point = points[index]
        wrapper = qmodel.parts.wrappers[point.site]
        position = [p["variable"] for p in wrapper.points].index(point.variable)
        weights = ops.convert_to_numpy(wrapper.kernel(point.variable)).astype("float32")
        return quantized_integers(weights, wrapper.step(position, bit_width), bit_width)

    costs.measure(integers)
    return costs


def _checked(qmodel, data):
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


def _evaluate(qmodel, data):
    """Runs the model once over batched data.

    Returns:
        Quality embeddings `[N, d]`; `(metric, values [N])`, where the metric is `"accuracy"`,
        `"loss"` or None; kind and severity `[N, 2]`, or None where they are not known.
    """
    embeddings, values, kinds, metric = [], [], [], None
    for x, y, *rest in _with_progress(data):
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


def _with_progress(data):
    """Yields from a dataset; a bar appears on a terminal once that has lasted two seconds."""
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    bar = rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal)
    count = int(data.cardinality())
    task = bar.add_task("Evaluating", total=count if count > 0 else None)
    begin, shown = time.monotonic(), False
    try:
        for element in data:
            yield element
            bar.advance(task)
            if not shown and time.monotonic() - begin > _PATIENCE_SECONDS:
                bar.start()
                shown = True
    finally:
        bar.stop()


def _quality_rows(decided, costs, scores, kinds):
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
