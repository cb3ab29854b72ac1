"""The budget of a model that was given none, and the check of one that was given."""

from dqmq_tf.config import Budget

_DEFAULT_MEAN_BITS = 4.0


_SPARED = " What decides the bits for each input is counted too: DQMQConfig(quality_aware=False) spares it."


def budget_kind(budget, target):
    if budget is None:
        if not target.deployable:
            return "mean_bit_width"
        return "size_bytes" if target.size_varies else "download_bytes"
    if not isinstance(budget, Budget):
        raise ValueError(
            f"budget={budget!r}: give a dqmq_tf.Budget, such as Budget(download_bytes=50_000)."
        )
    return budget.kind


def allowed_bit_ops(budget, costs):
    """The bit operations per input that a budget allows, or those of int8."""
    macs, deployable = max(costs.macs.sum(), 1.0), costs.target.deployable
    if budget is not None and budget.kind == "bit_ops":
        return budget.value
    if budget is not None and budget.kind == "mean_bit_width":
        return macs * budget.value**2
    return macs * (8.0 if deployable or budget is not None else _DEFAULT_MEAN_BITS) ** 2


def first_bits(budget, costs):
    """Returns the weight bits `[Pw]` at which a file is first written.

    Those of the default budget, or the fewest, which tell whether a budget can be met.
    """
    wanted = 5 if budget is None else 0
    return [min(point.bit_widths, key=lambda b: abs(b - wanted)) for point in costs.weights]


def checked_budget(budget, costs):
    """Returns the budget, or the default one; raises if it cannot be met."""
    fewest = [min(point.bit_widths) for point in costs.weights]
    smallest = costs.of_file(fewest, []) if costs.in_bytes else costs.smallest()
    if budget is None:
        if not costs.in_bytes:
            # What decides the bits comes on top, which is much for a tiny network.
            beside = costs.overhead / max(costs.macs.sum(), 1.0)
            return Budget(mean_bit_width=(_DEFAULT_MEAN_BITS**2 + beside) ** 0.5)
        found = costs.of_file(first_bits(None, costs), [])
        return Budget(**{costs.kind: max(found, smallest) * 1.01})
    if budget.value < smallest:
        raise ValueError(
            f"Budget {costs.kind}={budget.value:,g} is below the smallest possible: with every "
            f"decision point at its fewest bits on target {costs.target.name!r} the cost is "
            f"{smallest:,.6g}. Raise the budget, use a smaller network, or choose another target."
            + (_SPARED if costs.overhead and not costs.in_bytes else "")
        )
    return budget
