"""A run of the comparison: trains and scores one method on one network at one budget."""

import dataclasses
import json
import pathlib
import pickle
import tempfile
import time
import zlib

import keras
import numpy as np

import dqmq_tf
from dqmq_tf import quality
from study import (
    assignments,
    datasets,
    external_methods,
    file_bits,
    fixed_precision,
    float_networks,
    fronts,
    hawq,
    oracle,
    results,
    scoring,
)

METHODS = tuple(results.METHODS)
# Ablations of DQMQ. Each removes one part.
ABLATIONS = (
    "no_pathwise", "no_curvature", "no_score_function", "no_model_cost", "no_entropy",
    "no_supervised", "random_encoder", "no_sample_bits", "no_normalization", "no_distillation",
    "no_pathwise_and_score_function",
    # From equal bits, to see what finds the bits that layers need; also with a faster search.
    "no_priced_start", "no_priced_start_and_pathwise", "no_priced_start_and_score_function",
    "no_priced_start_and_pathwise_and_score_function",
    "no_priced_start_and_slow_search", "no_priced_start_and_slow_search_and_pathwise",
    "no_priced_start_and_slow_search_and_score_function",
    "no_priced_start_and_slow_search_and_pathwise_and_score_function",
)  # fmt: skip
# The learning rate of the policy without the slow search: four times that of a training of 600 steps.
_FAST_SEARCH = 0.02
# The oracle instead of the encoder; see `study.oracle`.
TOLD = "told_quality"
_TARGETS = {"mean_bit_width": "simulation", "download_bytes": "android"}
_HESSIAN_STEPS = 4
_CALIBRATION_IMAGES = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The settings of a run.

    Attributes:
        network: One of `float_networks.NETWORKS`.
        method: One of `METHODS`.
        kind, budget: Kind and value of a `dqmq_tf.Budget`; None for `"float"` and `"tfmot"`, which have
            fixed bits.
        bits: Weight and activation bits of a uniform method; None for other methods.
        ablation: One of `ABLATIONS`, `TOLD`, `results.SAME_TRAINING`, or None.
        learning_rate: Initial learning rate of Adam.
        steps: Training steps of `datasets.BATCH` images.
        seed: Seed of the order and degradations of the data, and of all random numbers.
        tuning: Whether this is a trial, which scores only the validation images.
        front: What is in front of the network, one of `fronts.FRONTS`, or None.
    """

    network: str
    method: str
    kind: str | None = None
    budget: float | None = None
    bits: tuple | None = None
    ablation: str | None = None
    learning_rate: float = 0.001
    steps: int = 600
    seed: int = 0
    tuning: bool = False
    front: str | None = None

    @property
    def key(self):
        """The settings as text, which identifies the run."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def of(cls, key):
        """Returns the run with the settings in a `key`."""
        fields = json.loads(key)
        return cls(**{**fields, "bits": fields["bits"] and tuple(fields["bits"])})


class Bench:
    """Data and float networks that all runs share.

    Args:
        data_dir, cache: See `datasets.Mixtures`.
        resnet, folder: See `float_networks.float_start`.
    """

    def __init__(self, data_dir, cache, resnet, folder):
        self.mixtures = datasets.Mixtures(data_dir, cache)
        self.cache, self.resnet, self.folder = pathlib.Path(cache), resnet, folder

    def start(self, network, front=None):
        """Returns the float network that all methods start from behind the same front."""
        return float_networks.float_start(network, self.mixtures, self.resnet, self.folder, front)

    def sensitivities(self, network, model, front=None):
        """Returns `hawq.sensitivities` of a float network. They are computed once and then cached."""
        # The name of the cached file depends on the weights, because the sensitivities do.
        weights = b"".join(value.tobytes() for value in model.get_weights())
        path = self.cache / f"{network}_{zlib.crc32(weights):08x}_hessian.pickle"
        if not path.exists():
            images, labels = _behind(front, self.mixtures.training(0, _HESSIAN_STEPS)).first(None)
            found = hawq.Network(model, assignments.cost_model(model))
            path.write_bytes(pickle.dumps(hawq.sensitivities(found, images, labels)))
        return pickle.loads(path.read_bytes())

    def images(self, run):
        """Returns `{name: Images}`, the tests that score a run."""
        if run.tuning:
            split = float_networks.VALIDATION[run.network]
            return {"validation": _behind(run.front, self.mixtures.validation(split))}
        tests = {name: self.mixtures.test(name) for name in datasets.TESTS}
        return {name: _behind(run.front, test) for name, test in tests.items()}

    def training(self, run):
        """Returns the training `Images` of a run."""
        return _behind(run.front, self.mixtures.training(run.seed, run.steps))

    def execute(self, run):
        """Trains and scores a run.

        Returns:
            A record, which is a dictionary of the run, its scores by test, its cost, the seconds of
            training, and further results of the method.
        """
        keras.utils.set_random_seed(run.seed)
        model = self.start(run.network, run.front)
        macs = float(assignments.cost_model(model).macs.sum())
        if run.method in external_methods.METHODS:
            data = self.training(run)
            found = external_methods.trained(run, model, data, self.images(run))
        else:
            found = _trained(self, run, model)
        return {"run": dataclasses.asdict(run), "macs": macs, **found}


def _behind(front, images):
    """Returns the `Images` that a network behind a front gets. `Exposure` is part of the network."""
    if front != fronts.STANDARDIZATION:
        return images
    return dataclasses.replace(images, x=fronts.standardized_pixels(images.x))


def _trained(bench, run, model):
    """Trains and scores a method that runs in this process."""
    data = bench.training(run)
    network, found = _network(bench, run, model, data)
    if run.ablation == "random_encoder":
        network.get_layer("quality_encoder").trainable = False
    if run.ablation == TOLD:
        tests = bench.images(run).values()
        told = oracle.by_kind_and_severity
        oracle.tell(network, told(data), [told(test) for test in tests])
    if run.ablation == "no_sample_bits":
        direction = network.get_layer("bit_width_policy").direction
        direction.assign(0.0 * direction)
        direction.trainable = False
    if "priced_start" in _removed(run.ablation):
        means = network.get_layer("bit_width_policy").mean
        means.assign(np.full(means.shape, run.budget))
    started = time.perf_counter()
    batches = datasets.batches(data)
    ours = run.method in ("static", "dqmq") and run.ablation != "no_distillation"
    if ours or run.ablation == results.SAME_TRAINING:
        batches = dqmq_tf.distill_labels(batches, bench.start(run.network, run.front))
    float_networks.train(network, batches, run.steps, run.learning_rate)
    found["train_seconds"] = round(time.perf_counter() - started, 1)
    images = bench.images(run)
    cost_of = None
    if run.method in ("static", "dqmq"):
        cost_of = scoring.per_image_bit_ops(network)
        found["mean_bits"] = network.decisions(data.first(2_000)[0]).mean()
    if run.kind == "download_bytes":
        found |= _file(network, data, images)
        return found
    found["scores"] = _scores(scoring.predictor(network), images, cost_of)
    if run.method == "dqmq" and not run.tuning:
        found["bits_by_kind"] = _bits_by_kind(network, images)
        for name, bits_alone in (("shuffled", False), ("shuffled_bits", True)):
            with scoring.shuffled(network, bits_alone):
                scores = _scores(scoring.predictor(network), images)
            found[name] = {test: row["accuracy"] for test, row in scores.items()}
    return found


def _network(bench, run, model, data):
    """Returns the network to train, and the results that are known before training."""
    if run.method == "float":
        return model, {}
    target = _TARGETS[run.kind]
    if run.method in ("static", "dqmq"):
        config = dqmq_tf.DQMQConfig(
            quality_aware=run.method == "dqmq",
            quality_normalization=run.ablation != "no_normalization",
            policy_learning_rate=_FAST_SEARCH if "slow_search" in _removed(run.ablation) else None,
            terms=_terms(run.ablation),
            seed=run.seed,
        )
        budget = dqmq_tf.Budget(**{run.kind: run.budget})
        return dqmq_tf.quantize_model(model, target=target, budget=budget, config=config), {}
    costs = assignments.cost_model(model, run.kind, target)
    images, _ = data.first(_CALIBRATION_IMAGES)
    file_bytes = file_bits.measure(model, target, images, run.seed)
    if run.method in results.HAWQ:
        added = bench.sensitivities(run.network, model, run.front)
        tied = run.method == "hawq"
        propose = hawq.proposals(hawq.Network(model, costs), costs, *added, tied=tied)
        in_file = (propose, file_bytes, run.budget)
        bits = file_bits.proposed(*in_file) if costs.in_bytes else propose(run.budget)
    elif costs.in_bytes:
        bits = file_bits.uniform(costs, file_bytes, run.budget)
    else:
        bits = assignments.uniform(costs, *run.bits)
    found = {"mean_bits": bits}
    if not costs.in_bytes:
        found["bit_ops"] = costs.bit_ops(*assignments.ordered(costs, bits))
    if run.method in fixed_precision.METHODS:
        return fixed_precision.quantized(model, costs, bits, run.method, images), found
    network = assignments.fixed(model, bits, target, run.seed)
    if run.ablation != results.SAME_TRAINING:
        # The published methods use moving averages as batch statistics.
        network._parts.norms.clear()
    return network, found


def _removed(ablation):
    """Returns the names of the parts that an ablation removes."""
    return (ablation or "").removeprefix("no_").split("_and_")


def _terms(ablation):
    known = {field.name for field in dataclasses.fields(dqmq_tf.ObjectiveTerms)}
    return dqmq_tf.ObjectiveTerms(**{name: False for name in _removed(ablation) if name in known})


def _scores(predict, images, cost_of=None):
    return {
        name: dataclasses.asdict(scoring.score(predict, part, cost_of))
        for name, part in images.items()
    }


def _file(network, data, images):
    """Returns the scores of the `.tflite` file in LiteRT, and its size."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        calibration, _ = data.first(_CALIBRATION_IMAGES)
        report = dqmq_tf.convert(network.freeze(profiles=1), path, data=calibration, verify=False)
        scores = _scores(scoring.litert_predictor(path), images)
    return {"scores": scores, "download_bytes": report.download_bytes}


def _bits_by_kind(network, images):
    """Returns the mean bits of each decision point for each kind of test (a) and for clean images."""
    found = {}
    for name in ("a", "c"):
        part = images[name]
        bits = network.decisions(part.first(len(part))[0]).bits
        for kind in np.unique(part.kind):
            label = "clean" if kind == 0 else quality.KINDS[kind - 1]
            mean = bits[part.kind == kind].mean(axis=0).round(3).tolist()
            found[label] = dict(zip(network.decision_points, mean))
    return found
