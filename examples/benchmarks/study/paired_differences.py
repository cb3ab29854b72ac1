"""By how much DQMQ leads, and whether that is what was aimed at."""

import dataclasses

from study import results

# Percentage points of accuracy, by test, that DQMQ is to lead by.
_UNIFORM_TARGETS = {
    "resnet8": {2.5: 1.0, 3.0: 0.5, 4.0: 0.0},
    "mobilenet_v2": {3.0: 2.0, 4.0: 1.0},
}
_HAWQ_TARGETS = {2.5: 0.5, 3.0: 0.5, 4.0: 0.0}
_STATIC_TARGETS = {"a": 0.3, "d": 0.5}
# Methods, and how they are trained. Of several the one with the best mean on test (a) is the rival.
RIVALS = {
    "uniform": (results.UNIFORM, (None, results.SAME_TRAINING)),
    "hawq": (results.HAWQ, (None,)),
    "hawq_alike": (("hawq",), (results.SAME_TRAINING,)),
    "static": (("static",), (None,)),
}


@dataclasses.dataclass(frozen=True)
class Lead:
    """DQMQ less a rival, at one budget.

    Attributes:
        network, budget: Where.
        rival: `Cell` of the rival, the best where there are several; None if none has runs.
        against: One of `RIVALS`.
        points: `{test: Estimate or None}`, percentage points over the seeds that both have.
        targets: `{test: percentage points}`.
    """

    network: str
    budget: float
    rival: results.Cell | None
    against: str
    points: dict
    targets: dict

    @property
    def verdicts(self):
        """Returns `{test: "reached", "short" or "open"}` for the tests with a target."""
        return {test: verdict(self.points[test], aim) for test, aim in self.targets.items()}


def verdict(lead, target):
    """Returns what has become of a target: "open" as long as seeds are missing.

    A lead has to be clear of its error as well; 0 asks to be not behind.
    """
    if lead is None or lead.count < results.SEEDS:
        return "open"
    # Means of accuracies are off by a rounding error.
    far = lead.mean >= target - 1e-9
    return "reached" if far and (target == 0 or lead.clear) else "short"


def targets(network, budget, against):
    """Returns `{test: percentage points}` that DQMQ is to lead by."""
    if against == "static":
        return _STATIC_TARGETS
    if against == "hawq_alike":
        return {}
    aims = _HAWQ_TARGETS if against == "hawq" else _UNIFORM_TARGETS[network]
    # Nor behind on kinds that were never seen, and on clean images.
    return {"a": aims[budget], "b": 0.0, "c": 0.0} if budget in aims else {}


def leads(found):
    """Yields the `Lead` for each network, budget and rival.

    Args:
        found: `Results`.
    """
    for network in results.NETWORKS:
        for budget in results.MEAN_BITS:
            ours = results.Cell(network, "dqmq", "mean_bit_width", budget)
            for against, pool in RIVALS.items():
                rival = found.best(network, budget, *pool)
                points = {
                    test: results.difference(
                        found.values(ours, results.accuracy, test),
                        found.values(rival, results.accuracy, test),
                    )
                    for test in results.TESTS
                }
                aims = targets(network, budget, against)
                yield Lead(network, budget, rival, against, points, aims)
