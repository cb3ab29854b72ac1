"""What the runs of the comparison found, gathered over seeds.

Nothing here needs TensorFlow, so that a look at the results is quick.
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
# A layer's weights and input have the same bits, or each its own.
HAWQ = ("hawq", "hawq_free")
# Shown where they have runs.
_OPTIONAL = ("hawq_free", "hgq2")
TESTS = ("a", "b", "c", "d")
MEAN_BITS = (2.5, 3.0, 4.0)
# Budgets of download bytes, and how many seeds they take: in the smaller file methods are near each
# other.
FILE_SEEDS = {40_000: 10, 55_000: 3}
FILE_METHODS = ("lsq", "hawq", "static", "dqmq")
# These also with all that helps DQMQ beside its bits: its labels and its batch statistics. They have
# trials of their own.
SAME_TRAINING, TRAINED_ALIKE = "same_training", ("lsq", "hawq")
# A baseline is worth its name that comes close to float with 4 bits between the ends.
CHECKED_BITS, CHECKED_AT = (4, 4), 4.25
SEEDS = 3
# Kinds of degradation, those of a family beside each other.
KINDS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise",
    "gaussian_blur", "defocus_blur", "motion_blur",
    "low_resolution", "pixelate", "jpeg",
    "low_light", "brightness", "contrast", "fog",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
# What has no budget has its bits by definition.
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
        """Returns the estimate from one value a seed, or None where there are none."""
        values = np.array(list(values), "float64")
        if not len(values):
            return None
        error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(float(values.mean()), None if error is None else float(error), len(values))

    @property
    def clear(self):
        """Returns whether the mean lies more than two standard errors above nought."""
        return self.error is not None and self.mean > 2 * self.error


@dataclasses.dataclass(frozen=True)
class Cell:
    """Runs that differ by their seed alone; the fields are those of `runs.Run`."""

    network: str
    method: str
    kind: str | None = None
    budget: float | None = None
    bits: tuple | None = None
    ablation: str | None = None

    @classmethod
    def of(cls, record):
        """Returns the cell that a record belongs to."""
        run = record["run"]
        fields = {field.name: run[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**fields, "bits": run["bits"] and tuple(run["bits"])})

    @property
    def label(self):
        """Returns the method's name, with its bits where they are given, and how it is trained."""
        bits = f" w{self.bits[0]}a{self.bits[1]}" if self.bits else ""
        alike = ", trained as DQMQ" if self.ablation == SAME_TRAINING else ""
        return f"{METHODS[self.method]}{bits}{alike}"


class Results:
    """Records by cell and seed. Trials of the learning rate are no results.

    Args:
        records: Dictionaries as `runs.Bench.execute` returns them.
        steps: Training steps of the runs that count.

    Attributes:
        steps: As given.
        left_out: Number of results with other steps.

    Raises:
        ValueError: If two records have the same cell and seed, and the trials did not choose the
            learning rate of just one of them.
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
                    f"{cell}, seed {seed}: several records, and it is not clear which counts. "
                    "Delete the lines of the others."
                )
            self._cells.setdefault(cell, {})[seed] = several[0]

    def cells(self, **fields):
        """Returns the cells that have records and these fields, in a fixed order."""
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
        """Returns `{seed: metric(record, *args)}`, without the seeds that have none."""
        found = sorted(self._cells.get(cell, {}).items())
        values = {seed: metric(record, *args) for seed, record in found}
        return {seed: value for seed, value in values.items() if value is not None}

    def estimate(self, cell, metric, *args):
        """Returns the `Estimate` of a metric over the seeds of a cell, or None."""
        return Estimate.of(self.values(cell, metric, *args).values())

    def rows(self, network, budget):
        """Returns the cells of all methods at a budget of mean bits, whether they have runs or not.

        The pairs of bits of uniform methods are those that any of them has runs with. HGQ2, which
        needs an environment of its own, and HAWQ's other way are there only where they have runs.
        """
        at = {"network": network, "kind": "mean_bit_width", "budget": budget}
        pairs = {c.bits for c in self.cells(**at, ablation=None) if c.method in UNIFORM}
        found = [Cell(method=m, bits=p, **at) for m in UNIFORM for p in sorted(pairs) or [None]]
        found += [Cell(method=method, **at) for method in (*HAWQ, "hgq2", "static", "dqmq")]
        found = [c for c in found if c.method not in _OPTIONAL or c in self._cells]
        return [variant for cell in found for variant in by_training(cell)]

    def compared(self, network):
        """Returns what has no budget, the check of the baselines, and `rows` at all budgets."""
        checked = Cell(network, "lsq", "mean_bit_width", CHECKED_AT, CHECKED_BITS)
        cells = [Cell(network, "float"), Cell(network, "tfmot"), *by_training(checked)]
        return cells + [cell for budget in MEAN_BITS for cell in self.rows(network, budget)]

    def best(self, network, budget, methods, ablations=(None, SAME_TRAINING)):
        """Returns the cell of some methods with the best mean accuracy on test (a), or None."""
        rows = self.rows(network, budget)
        rows = [cell for cell in rows if cell.method in methods and cell.ablation in ablations]
        means = {cell: self.estimate(cell, accuracy, "a") for cell in rows}
        known = {cell: mean.mean for cell, mean in means.items() if mean is not None}
        return max(known, key=known.get, default=None)

    def bits_by_kind(self, cell):
        """Returns DQMQ's mean bits of each decision point for each kind of degradation.

        Returns:
            `(kinds, points, bits [points, kinds], number of seeds)`; "clean" is the first kind. None
            if no run of the cell has them.
        """
        tables = list(self.values(cell, lambda record: record.get("bits_by_kind")).values())
        if not tables:
            return None
        kinds = [kind for kind in ("clean", *KINDS) if kind in tables[0]]
        points = list(tables[0]["clean"])
        bits = [[[table[k][point] for k in kinds] for point in points] for table in tables]
        return kinds, points, np.mean(bits, axis=0), len(tables)

    def reference(self, network, test):
        """Returns the float network's mean error in %, by kind: `{}` if it has no runs."""
        errors = self.values(Cell(network, "float"), kind_errors, test).values()
        kinds = next(iter(errors), {})
        return {kind: float(np.mean([found[kind] for found in errors])) for kind in kinds}


def difference(values, others):
    """Returns the `Estimate` of the difference of two `{seed: value}` over the seeds of both.

    A seed fixes the data's order, so that differences vary less than the values do.
    """
    return Estimate.of(values[seed] - others[seed] for seed in values if seed in others)


def accuracy(record, test):
    """Returns the accuracy on a test, in %."""
    return 100 * record["scores"][test]["accuracy"]


def shuffled_accuracy(record, test, name="shuffled"):
    """Returns the accuracy in % with each image seen as another one, or None.

    Args:
        record: Of a run.
        test: Name of a test.
        name: `"shuffled"`, or `"shuffled_bits"` where another image decides the bits alone.
    """
    return 100 * record[name][test] if name in record else None


def mean_bits(record, test):
    """Returns the mean bit-width on a test, or None: the root of bit operations per MAC."""
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
    """Returns `{kind: mean bit-width}` in the same manner, `{}` where all images cost the same."""
    if record["scores"][test]["cost"] is None:
        return {}
    cells = _by_kind(record, test)
    return {k: math.sqrt(c[:, 2].mean() / record["macs"]) for k, c in cells.items()}


def severity_errors(record, test):
    """Returns `{(kind, severity): error in %}` of a test's degraded images."""
    return _by_severity(record, test, lambda c: 100 * (1 - c[:, 1] / c[:, 0]))


def severity_bits(record, test):
    """Returns `{(kind, severity): mean bit-width}`, `{}` where all images cost the same."""
    if record["scores"][test]["cost"] is None:
        return {}
    return _by_severity(record, test, lambda c: np.sqrt(c[:, 2] / record["macs"]))


def corruption_error(record, test, reference):
    """Returns the mean corruption error in %, or None without a reference.

    Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations", arXiv 1903.12261: errors are summed over the severities of each kind and
    divided by those of a reference; these ratios are averaged over kinds.
    """
    errors = kind_errors(record, test)
    if not reference:
        return None
    return 100 * float(np.mean([errors[kind] / reference[kind] for kind in errors]))


def _by_kind(record, test):
    """`{kind: [severities, (images, right, mean cost)]}`, in the order of `KINDS`."""
    cells = record["scores"][test]["cells"]
    found = {k: [cells[f"{k}:{s}"] for s in SEVERITIES if f"{k}:{s}" in cells] for k in KINDS}
    return {kind: np.array(rows, "float64") for kind, rows in found.items() if rows}


def _by_severity(record, test, value):
    """`{(kind, severity): value}` of tests that have every severity."""
    return {
        (kind, severity): float(each)
        for kind, cells in _by_kind(record, test).items()
        for severity, each in zip(SEVERITIES, value(cells), strict=True)
    }


def trainings(method):
    """Returns the ablations under which a method is compared: as it is, and trained as DQMQ."""
    return (None, SAME_TRAINING) if method in TRAINED_ALIKE else (None,)


def by_training(cell):
    """Returns a cell under each of the `trainings` of its method."""
    return [dataclasses.replace(cell, ablation=a) for a in trainings(cell.method)]
