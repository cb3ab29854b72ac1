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
RIVALS = ("uniform", "hawq", "static")


@dataclasses.dataclass(frozen=True)
class Lead:
    """DQMQ less a rival, at one budget.

    Attributes:
        network, budget: Where.
        rival: `Cell` of the rival; None where no uniform method has runs.
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
    """Returns what has become of a target: "open" as long as seeds are missing."""
    if lead is None or lead.count < results.SEEDS:
        return "open"
    # Means of accuracies are off by a rounding error.
    return "reached" if lead.mean >= target - 1e-9 else "short"


def targets(network, budget, against):
    """Returns `{test: percentage points}` that DQMQ is to lead by."""
    if against == "static":
        return _STATIC_TARGETS
    aims = _HAWQ_TARGETS if against == "hawq" else _UNIFORM_TARGETS[network]
    return {"a": aims[budget]} if budget in aims else {}


def leads(found):
    """Yields the `Lead` for each network, budget and rival.

    Args:
        found: `Results`.
    """
    for network in results.NETWORKS:
        for budget in results.MEAN_BITS:
            at = {"network": network, "kind": "mean_bit_width", "budget": budget}
            for against in RIVALS:
                if against == "uniform":
                    rival = found.best_uniform(network, budget)
                else:
                    rival = results.Cell(method=against, **at)
                points = {
                    test: results.difference(
                        found.values(results.Cell(method="dqmq", **at), results.accuracy, test),
                        found.values(rival, results.accuracy, test),
                    )
                    for test in results.TESTS
                }
                aims = targets(network, budget, against)
                yield Lead(network, budget, rival, against, points, aims)
