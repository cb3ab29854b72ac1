"""The leads of DQMQ over other methods, and whether they reach their targets."""

import dataclasses

from study import results

# Targets for DQMQ's lead in percentage points of accuracy: on test (a) by budget, or by test.
_UNIFORM_TARGETS = {
    "resnet8": {2.5: 1.0, 3.0: 0.5, 4.0: 0.0},
    "mobilenet_v2": {3.0: 2.0, 4.0: 1.0},
}
_HAWQ_TARGETS = {2.5: 0.5, 3.0: 0.5, 4.0: 0.0}
_STATIC_TARGETS = {"a": 0.3, "d": 0.5}
# Rival methods and how they are trained. Among several, the rival is the one with the best mean on (a).
RIVALS = {
    "uniform": (results.UNIFORM, (None, results.SAME_TRAINING)),
    "hawq": (results.HAWQ, (None,)),
    "hawq_alike": (("hawq",), (results.SAME_TRAINING,)),
    "static": (("static",), (None,)),
}


@dataclasses.dataclass(frozen=True)
class Lead:
    """The lead of DQMQ over a rival at one budget.

    Attributes:
        network, budget: Network and budget.
        rival: `Cell` of the rival, the best one if there are several; None if none has runs.
        against: A key of `RIVALS`.
        points: `{test: Estimate or None}`: percentage points, over the seeds that both have.
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
        """`{test: "reached", "short" or "open"}` for the tests that have a target."""
        return {test: verdict(self.points[test], aim) for test, aim in self.targets.items()}


def verdict(lead, target):
    """Returns whether a target is "reached" or DQMQ is "short" of it; "open" while seeds are missing.

    To reach a target above 0, the lead must also be clear of its error. A target of 0 means that DQMQ must
    not be behind.
    """
    if lead is None or lead.count < results.SEEDS:
        return "open"
    # Means of accuracies have rounding errors.
    far = lead.mean >= target - 1e-9
    return "reached" if far and (target == 0 or lead.clear) else "short"


def targets(network, budget, against):
    """Returns the targets for DQMQ's lead, `{test: percentage points}`."""
    if against == "static":
        return _STATIC_TARGETS
    if against == "hawq_alike":
        return {}
    aims = _HAWQ_TARGETS if against == "hawq" else _UNIFORM_TARGETS[network]
    # DQMQ must not be behind on kinds that training does not have, nor on clean images.
    return {"a": aims[budget], "b": 0.0, "c": 0.0} if budget in aims else {}


def leads(found):
    """Yields a `Lead` for each network, budget and rival.

    Args:
        found: The `Results`.
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
