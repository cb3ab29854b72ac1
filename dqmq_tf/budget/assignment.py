"""Assigns bits to precision profiles, from the policy's means on embeddings and within a budget."""

from collections.abc import Callable

import numpy as np
from keras import ops

from dqmq_tf.budget import allocation, byte_allocation
from dqmq_tf.budget.byte_allocation import BYTES_MARGIN
from dqmq_tf.budget.costs import CostModel
from dqmq_tf.config import Budget
from dqmq_tf.policy.bit_width_policy import BitWidthPolicy
from dqmq_tf.policy.levels import candidate_levels, to_bits, to_levels
from dqmq_tf.policy.policy_state import FROZEN, SETTLED

# The share of the budget to aim at: on new inputs the mean differs by a few thousandths.
_MEAN_MARGIN = 0.998
# How many bits activations start above the weights that they meet, at the same price.
_ACTIVATIONS_AHEAD = 0.7


def settle(
    policy: BitWidthPolicy,
    costs: CostModel,
    budget: Budget,
    count: int,
    embeddings: np.ndarray,
    ceiling: np.ndarray | None = None,
    share: float = BYTES_MARGIN,
) -> None:
    """Assigns weight bits to each profile, and shifts the activation bits to meet the budget.

    It sets the policy's groups, assigned bits, shift and phase.

    Args:
        policy: The policy.
        costs: The `CostModel`, measured.
        budget: The budget.
        count: The number of profiles.
        embeddings: Quality embeddings of data, shape `[N, d]`.
        ceiling: For a budget in bytes, the largest bits of each profile, shape `[count, P]`. The
            assigned bits stay near them. None for bits near the policy's means, without a limit.
        share: The share of a budget in bytes that may be used.

    Raises:
        ValueError: If the budget is below the smallest possible cost.
    """
    means, group = _grouped_means(policy, count, embeddings)
    if costs.in_bytes:
        bits = byte_allocation.nearest_bits(policy, costs, budget, means, ceiling, share)
    else:
        bits = _bits_in_operations(policy, costs, budget, means, group, None)
    _store(policy, bits)
    policy.profiles = count
    policy.phase = SETTLED
    shift_to_budget(policy, costs, budget, embeddings, group)


def shift_to_budget(
    policy: BitWidthPolicy,
    costs: CostModel,
    budget: Budget,
    embeddings: np.ndarray,
    group: np.ndarray | None = None,
) -> None:
    """Shifts the activation bits of a settled policy, which vary per sample, to meet the budget.

    Args:
        policy: The policy, settled.
        costs: The `CostModel`, measured.
        budget: The budget.
        embeddings: Quality embeddings of data, shape `[N, d]`.
        group: The profile of each embedding, shape `[N]`. None for those that the policy assigns.
    """
    if not policy.activation_count or not policy.quality_aware or not policy.per_sample:
        return
    cost = _cost_of_shift(policy, costs, embeddings, group)
    policy.shift.assign(allocation.largest_shift(cost, _MEAN_MARGIN * budget.value))


def assigned_cost(policy: BitWidthPolicy, costs: CostModel, embeddings: np.ndarray) -> float:
    """Returns the mean cost of settled or frozen bits, in the unit of a budget in operations.

    Args:
        policy: The policy, settled or frozen.
        costs: The `CostModel`.
        embeddings: Quality embeddings of data, shape `[N, d]`, over which the cost is averaged.
    """
    if policy.phase == SETTLED and policy.bits_vary_by == "sample":
        shift = float(ops.convert_to_numpy(policy.shift))
        return _cost_of_shift(policy, costs, embeddings)(shift)
    group = ops.convert_to_numpy(policy.assign(embeddings, policy.profiles))
    bits, count = ops.convert_to_numpy(policy.assigned)[group], policy.activation_count
    return costs.exact(bits[:, count:], bits[:, :count])


def freeze(
    policy: BitWidthPolicy,
    costs: CostModel,
    budget: Budget,
    count: int,
    embeddings: np.ndarray,
) -> None:
    """Assigns all bits to each profile, activations too.

    Weight bits that were settled for the same number of profiles are kept.

    Args:
        policy: The policy.
        costs: The `CostModel`, measured.
        budget: The budget.
        count: The number of profiles.
        embeddings: Quality embeddings of data, shape `[N, d]`.

    Raises:
        ValueError: If the budget is below the smallest possible cost.
    """
    keeps_weights = policy.phase == SETTLED and policy.profiles == count
    if not costs.in_bytes:
        means_of = _settled_means if keeps_weights else _grouped_means
        means, group = means_of(policy, count, embeddings)
        is_weight = np.arange(policy.point_count) >= policy.activation_count
        fixed = is_weight if keeps_weights else None
        _store(policy, _bits_in_operations(policy, costs, budget, means, group, fixed))
    elif not keeps_weights:
        means, _ = _grouped_means(policy, count, embeddings)
        _store(
            policy, byte_allocation.nearest_bits(policy, costs, budget, means, None, BYTES_MARGIN)
        )
    policy.profiles = count
    policy.phase = FROZEN


def starting_means(policy: BitWidthPolicy, costs: CostModel, budget: Budget) -> np.ndarray:
    """Returns the means at which the policy starts, in levels. They meet the budget.

    One more bit divides the rounding error by four. At first nothing else is known, so all tensors
    count the same. Bits are then spent best if a point gets half a bit more for each halving of the
    price of its bits (reverse water-filling; Cover and Thomas 2006, "Elements of Information
    Theory", 10.3.3), so a cheap layer gets more bits.

    If activation bits are decided too, they start higher than weight bits. Training compensates for
    the rounding of a weight, which is the same for every input, but not for that of an activation.
    (On ResNet-8, LSQ at 2-bit weights and 3-bit activations is 0.9 points more accurate than at 3
    and 2, with the same operations.)

    Under a budget in bytes they are the bits of an actual file: the one that adds least to the loss
    by `policy.loss_table`.

    Args:
        policy: The policy.
        costs: The `CostModel`, measured.
        budget: The budget.

    Returns:
        An array of shape `[P]`, activations first.

    Raises:
        ValueError: If a budget in bytes is below the smallest possible cost.
    """
    if costs.in_bytes:
        return byte_allocation.starting_levels(policy, costs, budget)
    low, high = policy.lowest, policy.highest
    decided = policy.activation_count
    prices = costs.prices()
    ahead = -0.5 * np.log2(np.maximum(prices / prices.max(), 1e-4))
    ahead[:decided] += _ACTIVATIONS_AHEAD

    def means(level: float) -> np.ndarray:
        return np.clip(level + ahead, low, high)

    def cost(level: float) -> float:
        bits = to_bits(means(level))
        return costs.exact(bits[decided:], bits[:decided])

    return means(allocation.largest_shift(cost, budget.value, low=-8.0, high=8.0))


def _cost_of_shift(
    policy: BitWidthPolicy,
    costs: CostModel,
    embeddings: np.ndarray,
    group: np.ndarray | None = None,
) -> Callable[[float], float]:
    """Returns a function that maps a shift of settled activation bits to their mean cost."""
    count = policy.activation_count
    if group is None:
        group = ops.convert_to_numpy(policy.assign(embeddings, policy.profiles))
    weight_bits = ops.convert_to_numpy(policy.assigned)[group, count:]
    means = ops.convert_to_numpy(policy.means(embeddings))[:, :count]

    def cost(shift: float) -> float:
        return costs.exact(weight_bits, _nearest(policy, means + shift, slice(None, count)))

    return cost


def _grouped_means(
    policy: BitWidthPolicy, count: int, embeddings: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters embeddings into groups, which it sets in the policy.

    Returns:
        The mean bit-widths of each group, shape `[count, P]`, and the group of each embedding,
        shape `[N]`.
    """
    scores = ops.convert_to_numpy(policy.score(embeddings))
    thresholds, group = allocation.cluster(scores, count)

    def by_group(values: np.ndarray) -> np.ndarray:
        """Averages over each group. An empty group gets the mean over all."""
        overall = values.mean(axis=0)
        rows = [values[group == g] for g in range(count)]
        return np.stack([row.mean(axis=0) if len(row) else overall for row in rows])

    policy.set_groups(thresholds, by_group(embeddings))
    followed = policy.followed(ops.convert_to_tensor(embeddings), count)
    return by_group(ops.convert_to_numpy(policy.means(followed))), group


def _settled_means(
    policy: BitWidthPolicy, count: int, embeddings: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `_grouped_means` does for a settled policy, whose groups it does not change.

    The means are its assigned weight bits, and its activation means with their shift.
    """
    group = ops.convert_to_numpy(policy.assign(embeddings, count))
    means = to_levels(ops.convert_to_numpy(policy.assigned)[:count])
    decided = policy.activation_count
    shifted = ops.convert_to_numpy(policy.means(embeddings) + policy.shift)
    for g in range(count if policy.quality_aware and policy.per_sample else 0):
        if (group == g).any():
            means[g, :decided] = shifted[group == g, :decided].mean(axis=0)
    return means, group


def _bits_in_operations(
    policy: BitWidthPolicy,
    costs: CostModel,
    budget: Budget,
    means: np.ndarray,
    group: np.ndarray,
    fixed: np.ndarray | None,
) -> np.ndarray:
    """Returns bits near the means whose operations, averaged over profiles, meet the budget.

    Args:
        policy: The policy.
        costs: The `CostModel`.
        budget: The budget, in operations.
        means: The mean levels of each profile, shape `[count, P]`.
        group: The profile of each embedding, shape `[N]`. It gives the weights of the average.
        fixed: A mask of shape `[P]` of the points that stay at their mean. None fixes no point.

    Returns:
        An int array of shape `[count, P]`.
    """
    count, points = means.shape
    candidates = policy.activation_candidates + policy.weight_candidates
    decided = policy.activation_count
    profile_shares = np.bincount(group, minlength=count) / max(len(group), 1)

    def mean_cost(flat: np.ndarray) -> float:
        bits = to_bits(flat).reshape(count, points)
        bit_ops = [costs.bit_ops(row[decided:], row[:decided]) for row in bits]
        return costs.to_budget_unit(float(np.dot(profile_shares, bit_ops)))

    flat = allocation.allocate_greedily(
        means.ravel(),
        [candidate_levels(c) for c in candidates] * count,
        mean_cost,
        budget.value,
        None if fixed is None else np.tile(fixed, count),
    )
    return to_bits(flat).reshape(count, points)


def nearest(policy: BitWidthPolicy, means: np.ndarray) -> np.ndarray:
    """Returns the candidates nearest to the levels of all points `[P]`, the lower one at a tie."""
    return _nearest(policy, means[None], slice(None))[0]


def _store(policy: BitWidthPolicy, bits: np.ndarray) -> None:
    """Sets the assigned bits of a policy from an array `[count, P]`."""
    # The variable has a row for the largest number of profiles. `resize` repeats the rows.
    policy.assigned.assign(np.resize(bits.astype("float32"), policy.assigned.shape))


def _nearest(policy: BitWidthPolicy, means: np.ndarray, which: slice) -> np.ndarray:
    """Returns the candidates nearest to levels `[N, points]`, the lower one at a tie.

    This is `dqmq_tf.policy.discrete_gaussian.mode` for some of the points, in NumPy.
    """
    distance = np.abs(means[..., None] - policy.levels) + (1 - policy.allowed[which]) * 1e9
    return policy.bit_widths[distance.argmin(axis=-1)]
