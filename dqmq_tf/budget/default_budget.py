"""The default budget of a model, and the check of a budget that the user gives."""

import math

from dqmq_tf.budget.costs import CostModel
from dqmq_tf.config import VELA_KINDS, Budget
from dqmq_tf.targets import VELA, Target

_DEFAULT_MEAN_BITS = 4.0
# What rounding may add to a cost, relative to it.
_ROUNDING = 1e-6
# The weight bits that determine a default budget in bytes.
_DEFAULT_WEIGHT_BITS = 5


def budget_kind(budget: object, target: Target) -> str:
    """Returns the kind of the budget, or of the default one for the target.

    Args:
        budget: The user's `Budget`, or None.
        target: The `Target`.

    Raises:
        ValueError: If `budget` is neither a `Budget` nor None, or if Vela would have to measure it
            and does not compile for the target.
    """
    if budget is None:
        if not target.deployable:
            return "mean_bit_width"
        return "size_bytes" if target.size_varies else "download_bytes"
    if not isinstance(budget, Budget):
        raise ValueError(
            f"budget={budget!r} is not a budget: give a dqmq_tf.Budget, such as "
            "Budget(download_bytes=50_000)."
        )
    if budget.kind in VELA_KINDS and target.compiler != VELA:
        raise ValueError(
            f"Budget {budget.kind} is measured by Vela, which does not compile for target "
            f"{target.name!r}. Choose target 'ethos_u', or another kind of budget."
        )
    return budget.kind


def allowed_bit_ops(budget: Budget | None, costs: CostModel) -> float:
    """Returns the bit operations per input that a budget allows, or those of int8 if it is in bytes.

    Without a budget, they are those of int8 on a target with a runtime, and else those of the
    default mean bit-width.

    Args:
        budget: The user's `Budget`, or None.
        costs: The `CostModel`.
    """
    macs, deployable = max(costs.macs.sum(), 1.0), costs.target.deployable
    if budget is not None and budget.kind == "bit_ops":
        return budget.value
    if budget is not None and budget.kind == "mean_bit_width":
        return macs * budget.value**2
    return macs * (8.0 if deployable or budget is not None else _DEFAULT_MEAN_BITS) ** 2


def first_bits(budget: Budget | None, costs: CostModel) -> list[int]:
    """Returns the weight bits `[Pw]` of the first file that is written to measure its size.

    Without a budget, they are the bits that determine the default budget. Otherwise they are the
    fewest bits, which tell whether the budget can be met.

    Args:
        budget: The user's `Budget`, or None.
        costs: The `CostModel`.
    """
    wanted = _DEFAULT_WEIGHT_BITS if budget is None else 0
    return [min(point.bit_widths, key=lambda b: abs(b - wanted)) for point in costs.weights]


def checked_budget(budget: Budget | None, costs: CostModel) -> Budget:
    """Returns the user's budget, or the default one.

    Args:
        budget: The user's `Budget`, or None.
        costs: The `CostModel`, measured.

    Raises:
        ValueError: If the budget is below the smallest possible cost.
    """
    fewest = [min(point.bit_widths) for point in costs.weights]
    smallest = costs.of_file(fewest, []) if costs.in_bytes else costs.smallest()
    if budget is None:
        return _default_budget(costs, smallest)
    if budget.value < smallest:
        # Encoder and policy, which choose the bits for each input, count as operations too.
        hint = (
            " The cost includes the choice of the bits for each input, which "
            "DQMQConfig(quality_aware=False) removes."
        )
        raise ValueError(
            f"Budget {costs.kind}={budget.value:,g} is below the smallest possible cost: with every "
            f"decision point at its fewest bits on target {costs.target.name!r} the cost is "
            f"{_rounded_up(math.ceil(smallest) if costs.in_bytes else smallest)}. Raise the budget, use "
            "a smaller network, or choose another target."
            + (hint if costs.overhead and not costs.in_bytes else "")
        )
    return budget


def _rounded_up(cost: float) -> str:
    """Returns a cost with at most three decimals, as a budget that is no smaller."""
    return f"{math.ceil(cost * 1000) / 1000:,.3f}".rstrip("0").rstrip(".")


def _default_budget(costs: CostModel, smallest: float) -> Budget:
    """Returns the budget of a model that was given none."""
    if not costs.in_bytes:
        # The operations of encoder and policy are added, because they are many compared with those
        # of a tiny network.
        overhead = costs.overhead / max(costs.macs.sum(), 1.0)
        mean_bits = (_DEFAULT_MEAN_BITS**2 + overhead) ** 0.5
        # Rules, or quantizers of the user's own, may fix more bits than that.
        return Budget(mean_bit_width=max(mean_bits, smallest * (1.0 + _ROUNDING)))
    default_size = costs.of_file(first_bits(None, costs), [])
    return Budget(**{costs.kind: max(default_size, smallest) * 1.01})
