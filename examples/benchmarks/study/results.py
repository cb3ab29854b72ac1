"""The results of the runs, collected over seeds.

This module does not import TensorFlow, so that the results can be shown quickly.
"""

import dataclasses
import math

import numpy as np

from study import learning_rates

NETWORKS = {"resnet8": "ResNet-8", "mobilenet_v2": "MobileNetV2"}
METHODS = {
    "float": "float", "tfmot": "TFMOT int8", "lsq": "LSQ", "pact": "PACT", "dorefa": "DoReFa",
    "hawq": "HAWQ", "hawq_free": "HAWQ, free", "hgq2": "HGQ2", "static": "static", "dqmq": "DQMQ",
}  # fmt: skip
UNIFORM = ("lsq", "pact", "dorefa")
# In "hawq" the weights and the input of a layer have the same bits, in "hawq_free" each has its own.
HAWQ = ("hawq", "hawq_free")
# Methods that are shown only if they have runs.
_OPTIONAL = ("hawq_free", "hgq2")
TESTS = ("a", "b", "c", "d")
MEAN_BITS = (2.5, 3.0, 4.0)
# Budgets in download bytes, and their number of seeds. At 40,000 bytes the methods are close to each
# other, so it needs more seeds.
FILE_SEEDS = {27_000: 3, 30_000: 3, 40_000: 10, 55_000: 3}
FILE_METHODS = ("lsq", "hawq", "static", "dqmq")
# These methods are also trained as DQMQ is: with its distilled labels and batch statistics. For this they
# have separate trials.
SAME_TRAINING, TRAINED_ALIKE = "same_training", ("lsq", "hawq")
# A check of the baseline: LSQ with 4 bits, except in the first and last layer, should be close to float.
CHECKED_BITS, CHECKED_AT = (4, 4), 4.25
SEEDS = 3
# What can be in front of the network, and the methods and ablations that run behind it.
_BEHIND_FRONTS = (("static", None), ("hawq", SAME_TRAINING), ("dqmq", None))
STANDARDIZATION, EXPOSURE = "standardization", "exposure"
FRONTS = {STANDARDIZATION: (*_BEHIND_FRONTS, ("dqmq", "told_quality")), EXPOSURE: _BEHIND_FRONTS}
FRONT_MEAN_BITS = (2.5, 3.0)
# Kinds of degradation, ordered by family.
KINDS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise",
    "gaussian_blur", "defocus_blur", "motion_blur",
    "low_resolution", "pixelate", "jpeg",
    "low_light", "brightness", "contrast", "fog",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
# Methods without a budget have fixed bits.
_DEFINED_BITS = {"float": 32.0, "tfmot": 8.0}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        error: Its standard error; None with a single seed.
        count: Number of seeds.
    """

    mean: float
    error: float | None
    count: int

    @classmethod
    def of(cls, values):
        """Returns the estimate from one value per seed, or None if there are no values."""
        values = np.array(list(values), "float64")
        if not len(values):
            return None
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(float(values.mean()), None if error is None else float(error), len(values))

    @property
    def clear(self):
        """Whether the mean is more than two standard errors above zero."""
        return self.error is not None and self.mean > 2 * self.error


@dataclasses.dataclass(frozen=True)
class Cell:
    """A group of runs that differ only in their seed. The fields are those of `runs.Run`."""

    network: str
    method: str
    kind: str | None = None
    budget: float | None = None
    bits: tuple | None = None
    ablation: str | None = None
    front: str | None = None

    @classmethod
    def of(cls, record):
        """Returns the cell that a record belongs to."""
        run = record["run"]
        # Records of earlier runs do not name a front, as there was none.
        names = [field.name for field in dataclasses.fields(cls)]
        fields = {name: run[name] for name in names if name in run}
        return cls(**{**fields, "bits": run["bits"] and tuple(run["bits"])})

    @property
    def label(self):
        """The method's name, its bits if they are given, and how it is trained."""
        bits = f" w{self.bits[0]}a{self.bits[1]}" if self.bits else ""
        alike = ", trained as DQMQ" if self.ablation == SAME_TRAINING else ""
        return f"{METHODS[self.method]}{bits}{alike}"


class Results:
    """The records by cell and seed, without the trials of the learning rate.

    Args:
        records: Dictionaries that `runs.Bench.execute` returned.
        steps: Training steps of the runs to use.

    Attributes:
        steps: Training steps of the runs.
        left_out: Number of runs with other numbers of steps.

    Raises:
        ValueError: If several records have the same cell and seed, unless exactly one of them has the
            learning rate that the trials chose.
    """

    def __init__(self, records, steps):
        runs = [record for record in records if not record["run"]["tuning"]]
        kept = [record for record in runs if record["run"]["steps"] == steps]
        self.steps, self.left_out = steps, len(runs) - len(kept)
        chosen, found = learning_rates.Rates(records), {}
        for record in kept:
            found.setdefault((Cell.of(record), record["run"]["seed"]), []).append(record)
        self._cells = {}
        for (cell, seed), several in found.items():
            if len(several) > 1:
                rate = chosen.of(cell)
                several = [r for r in several if r["run"]["learning_rate"] == rate]
            if len(several) != 1:
                raise ValueError(
                    f"{cell}, seed {seed}: there are several records, and it is unclear which one counts. "
                    "Delete the lines of the others."
                )
            self._cells.setdefault(cell, {})[seed] = several[0]

    def cells(self, **fields):
        """Returns the cells that have records and the given fields, in a fixed order."""
        matching = [
            cell
            for cell in self._cells
            if all(getattr(cell, name) == value for name, value in fields.items())
        ]
        methods = list(METHODS)
        return sorted(
            matching,
            key=lambda c: (c.budget or 0, methods.index(c.method), c.bits or (), c.ablation or ""),
        )

    def values(self, cell, metric, *args):
        """Returns `{seed: metric(record, *args)}`, without the seeds for which the metric is None."""
        found = sorted(self._cells.get(cell, {}).items())
        values = {seed: metric(record, *args) for seed, record in found}
        return {seed: value for seed, value in values.items() if value is not None}

    def estimate(self, cell, metric, *args):
        """Returns the `Estimate` of a metric over the seeds of a cell, or None."""
        return Estimate.of(self.values(cell, metric, *args).values())

    def rows(self, network, budget):
        """Returns the cells of all methods at a budget of mean bits, even if they have no runs.

        Each uniform method has the pairs of bits for which any uniform method has runs. HGQ2, which needs
        its own environment, and "hawq_free" are included only if they have runs.
        """
        at = {"network": network, "kind": "mean_bit_width", "budget": budget}
        pairs = {c.bits for c in self.cells(**at, ablation=None) if c.method in UNIFORM}
        found = [Cell(method=m, bits=p, **at) for m in UNIFORM for p in sorted(pairs) or [None]]
        found += [Cell(method=method, **at) for method in (*HAWQ, "hgq2", "static", "dqmq")]
        found = [c for c in found if c.method not in _OPTIONAL or c in self._cells]
        return [variant for cell in found for variant in by_training(cell)]

    def compared(self, network):
        """Returns the methods without a budget, the check of the baseline, and `rows` at all budgets."""
        checked = Cell(network, "lsq", "mean_bit_width", CHECKED_AT, CHECKED_BITS)
        cells = [Cell(network, "float"), Cell(network, "tfmot"), *by_training(checked)]
        return cells + [cell for budget in MEAN_BITS for cell in self.rows(network, budget)]

    def best(self, network, budget, methods, ablations=(None, SAME_TRAINING)):
        """Returns the cell with the best mean accuracy on test (a) among some methods, or None."""
        rows = self.rows(network, budget)
        rows = [cell for cell in rows if cell.method in methods and cell.ablation in ablations]
        means = {cell: self.estimate(cell, accuracy, "a") for cell in rows}
        known = {cell: mean.mean for cell, mean in means.items() if mean is not None}
        return max(known, key=known.get, default=None)

    def bits_by_kind(self, cell):
        """Returns DQMQ's mean bits of each decision point for each kind of degradation.

        Returns:
            `(kinds, points, bits [points, kinds], number of seeds)`, where "clean" is the first kind. None
            if the cell has no such record.
        """
        tables = list(self.values(cell, lambda record: record.get("bits_by_kind")).values())
        if not tables:
            return None
        kinds = [kind for kind in ("clean", *KINDS) if kind in tables[0]]
        points = list(tables[0]["clean"])
        bits = [[[table[k][point] for k in kinds] for point in points] for table in tables]
        return kinds, points, np.mean(bits, axis=0), len(tables)

    def reference(self, network, test):
        """Returns `{kind: mean error in %}` of the float network, or `{}` if it has no runs."""
        errors = self.values(Cell(network, "float"), kind_errors, test).values()
        kinds = next(iter(errors), {})
        return {kind: float(np.mean([found[kind] for found in errors])) for kind in kinds}


def difference(values, others):
    """Returns the `Estimate` of the difference of two `{seed: value}`, over the seeds that both have.

    A seed determines the order of the data, so the differences vary less than the values.
    """
    return Estimate.of(values[seed] - others[seed] for seed in values if seed in others)


def accuracy(record, test):
    """Returns the accuracy on a test, in %."""
    return 100 * record["scores"][test]["accuracy"]


def shuffled_accuracy(record, test, name="shuffled"):
    """Returns the accuracy in % when the quality of each image is taken from another image, or None.

    Args:
        record: The record of a run.
        test: Name of a test.
        name: `"shuffled"`, or `"shuffled_bits"` if another image decides only the bits.
    """
    return 100 * record[name][test] if name in record else None


def mean_bits(record, test):
    """Returns the mean bit-width on a test, the square root of bit operations per MAC, or None."""
    run = record["run"]
    if run["budget"] is None:
        return _DEFINED_BITS[run["method"]]
    cost = record["scores"][test]["cost"]
    cost = record.get("bit_ops") if cost is None else cost
    return None if cost is None else math.sqrt(cost / record["macs"])


def kind_errors(record, test):
    """Returns `{kind: error in %, averaged over severities}` of a test's degraded images."""
    cells = _by_kind(record, test)
    return {kind: 100 * float(np.mean(1 - c[:, 1] / c[:, 0])) for kind, c in cells.items()}


def kind_bits(record, test):
    """Returns `{kind: mean bit-width}` in the same way, or `{}` if all images cost the same."""
    if record["scores"][test]["cost"] is None:
        return {}
    cells = _by_kind(record, test)
    return {k: math.sqrt(c[:, 2].mean() / record["macs"]) for k, c in cells.items()}


def severity_errors(record, test):
    """Returns `{(kind, severity): error in %}` of a test's degraded images."""
    return _by_severity(record, test, lambda c: 100 * (1 - c[:, 1] / c[:, 0]))


def severity_bits(record, test):
    """Returns `{(kind, severity): mean bit-width}`, or `{}` if all images cost the same."""
    if record["scores"][test]["cost"] is None:
        return {}
    return _by_severity(record, test, lambda c: np.sqrt(c[:, 2] / record["macs"]))


def corruption_error(record, test, reference):
    """Returns the mean corruption error in %, or None without a reference.

    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", arXiv 1903.12261: the errors of each kind are summed over its severities and divided
    by the same sum of a reference. The ratios are averaged over kinds.
    """
    errors = kind_errors(record, test)
    if not reference:
        return None
    return 100 * float(np.mean([errors[kind] / reference[kind] for kind in errors]))


def _by_kind(record, test):
    """Returns `{kind: array [severities, (images, correct, mean cost)]}` in the order of `KINDS`."""
    cells = record["scores"][test]["cells"]
    found = {k: [cells[f"{k}:{s}"] for s in SEVERITIES if f"{k}:{s}" in cells] for k in KINDS}
    return {kind: np.array(rows, "float64") for kind, rows in found.items() if rows}


def _by_severity(record, test, value):
    """Returns `{(kind, severity): value}` for a test that has all severities."""
    return {
        (kind, severity): float(each)
        for kind, cells in _by_kind(record, test).items()
        for severity, each in zip(SEVERITIES, value(cells), strict=True)
    }


def trainings(method):
    """Returns the ways in which a method is trained, as ablations: its own way (None), and as DQMQ."""
    return (None, SAME_TRAINING) if method in TRAINED_ALIKE else (None,)


def by_training(cell):
    """Returns the cell for each of the `trainings` of its method."""
    return [dataclasses.replace(cell, ablation=a) for a in trainings(cell.method)]
