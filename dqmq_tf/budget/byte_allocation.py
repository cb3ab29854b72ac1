"""Chooses the weight bits of files within a budget in bytes.

The policy's means start at the bits of the file that adds least to the loss, by the second-order
estimate of `dqmq_tf.budget.sensitivity`. They become bits again by rounding: the search moves a mean
by chance by less than half a bit, and the estimate is more reliable than that.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from keras import ops

from dqmq_tf.budget import activation_allocation, allocation
from dqmq_tf.budget.byte_tables import Table
from dqmq_tf.budget.costs import CostModel
from dqmq_tf.config import Budget
from dqmq_tf.policy.bit_width_policy import BitWidthPolicy
from dqmq_tf.policy.levels import to_bits

# The share of the budget that settled bits may use. The bytes drift a little during the fine-tuning.
BYTES_MARGIN = 0.99
# The same for the bits at which the search starts. The bytes drift more until they are settled.
_START_MARGIN = 0.985
# The share of a network's weights whose bits may differ between profiles. One file holds all
# profiles, and the weights that differ are stored once for each.
_DISTINCT_WEIGHTS = 0.5
# The limit for the sum of the table starts at this factor of its estimate and is lowered, each time
# by at least this share of the file's limit, until the file fits.
_FIRST_TRY, _SMALLEST_STEP = 1.02, 0.002


def starting_levels(policy: BitWidthPolicy, costs: CostModel, budget: Budget) -> np.ndarray:
    """Returns the levels of the file that adds least to the loss by `policy.loss_table`.

    Under a budget in cycles, activations of 8 or 16 bits start between the two, all at the same
    level: nothing is known yet about which of them needs 16. They get at least half of the cycles
    above the fewest, or all that weights cannot use.

    Args:
        policy: The policy.
        costs: A measured `CostModel` of a budget in bytes.
        budget: The budget.

    Returns:
        An array of shape `[P]`, activations first.

    Raises:
        ValueError: If the budget is below the smallest possible cost.
    """
    limit, decided = _limit(costs, budget, _START_MARGIN), policy.activation_count
    low, high = policy.lowest[:decided], policy.highest[:decided]
    share = 1.0
    if costs.activation_cycles is not None:
        fewest, most = ([end(c) for c in policy.weight_candidates] for end in (min, max))
        of_weights = costs.of_file(most, []) - costs.of_file(fewest, [])
        room = limit - costs.smallest()
        share = allocation.largest_shift(
            lambda s: costs.of_activations(to_bits(low + s * (high - low))),
            max(room - of_weights, 0.5 * room),
            low=0.0,
            high=1.0,
        )
    levels = low + share * (high - low)
    bits = _best_bits(costs, _losses(policy), limit, to_bits(levels))
    return np.concatenate([levels, bits])


def nearest_bits(
    policy: BitWidthPolicy,
    costs: CostModel,
    budget: Budget,
    means: np.ndarray,
    ceiling: np.ndarray | None,
    share: float,
) -> np.ndarray:
    """Returns the bits of each profile's file: the means rounded, and changed to fit the budget.

    Args:
        policy: The policy.
        costs: A measured `CostModel` of a budget in bytes.
        budget: The budget.
        means: The mean levels of each profile, shape `[count, P]`.
        ceiling: The largest bits of each profile, shape `[count, P]`, which replace the means. None
            sets no limit.
        share: The share of the budget that may be used.

    Returns:
        An int array of shape `[count, P]`, activations first.

    Raises:
        ValueError: If the budget is below the smallest possible cost.
    """
    limit, decided = _limit(costs, budget, share), policy.activation_count
    activation_bits = _activation_bits(policy, costs, means, ceiling, limit)
    means = (means if ceiling is None else ceiling)[:, decided:]
    static_means, losses = ops.convert_to_numpy(policy.mean)[decided:], _losses(policy)

    def bits_of(
        profile_means: np.ndarray, fixed: np.ndarray, activation_bits: np.ndarray
    ) -> np.ndarray:
        rounded = allocation.nearest(profile_means, policy.weight_candidates)
        is_too_large = costs.of_file(rounded, activation_bits) > limit
        if not is_too_large and ceiling is not None:
            return rounded
        # Trained bits only go down if the file is too large, and only up if there is room. A point
        # that wants one bit more than the mean over images counts four times as much.
        factors = 4.0 ** (profile_means - static_means)
        allowed = [
            {
                b: factor * loss
                for b, loss in row.items()
                if b == bits or not is_fixed and (b < bits) == is_too_large
            }
            for row, bits, is_fixed, factor in zip(losses, rounded, fixed, factors)
        ]
        return _best_bits(costs, allowed, limit, activation_bits)

    shared = np.zeros(means.shape[1], bool)
    if len(means) > 1:
        shared_bits = bits_of(means.mean(axis=0), shared, activation_bits.max(axis=0))
        shared = _shared(costs, means) if ceiling is None else np.ptp(means, axis=0) == 0
        means = np.where(shared, shared_bits, means)
    weight_bits = [bits_of(row, shared, bits) for row, bits in zip(means, activation_bits)]
    return np.concatenate([activation_bits, np.stack(weight_bits)], axis=1)


def _losses(policy: BitWidthPolicy) -> list[dict[int, float]]:
    """Returns the loss that each bit-width adds, as a dictionary for each weight point."""
    grid = policy.bit_widths.astype(int).tolist()
    rows = [dict(zip(grid, row)) for row in ops.convert_to_numpy(policy.loss_table)]
    return [{b: row[b] for b in c} for c, row in zip(policy.weight_candidates, rows)]


def _activation_bits(
    policy: BitWidthPolicy,
    costs: CostModel,
    means: np.ndarray,
    ceiling: np.ndarray | None,
    limit: float,
) -> np.ndarray:
    """Returns the activation bits of each profile's file, an int array `[count, decided]`.

    They are the most bits, unless the budget counts them. Then they are those near the means with
    which the file meets its limit, with weight bits near theirs.
    """
    decided, count = policy.activation_count, len(means)
    most = np.array([max(c) for c in policy.activation_candidates], "int64")
    if costs.activation_cycles is None:
        return np.tile(most, (count, 1))
    tops = np.tile(most, (count, 1)) if ceiling is None else ceiling[:, :decided]
    table = costs.activation_cycles > 0
    sets = table[:, :decided] | table[:, decided:-1]
    weight_means = (means if ceiling is None else ceiling)[:, decided:]
    bits = []
    for row, weights, top in zip(means, weight_means, tops):
        weight_bits = allocation.nearest(weights, policy.weight_candidates)
        room = limit - costs.of_file(weight_bits, [])
        added = costs.of_each_activation
        bits.append(activation_allocation.allocate(row[:decided], top, sets, added, room))
    return np.array(bits, "int64")


def _limit(costs: CostModel, budget: Budget, share: float) -> float:
    """Returns the bytes that may be used: a share of the budget, or all if the fewest bits need it."""
    return max(costs.share_of(budget.value, share), min(budget.value, costs.smallest()))


def _shared(costs: CostModel, means: np.ndarray) -> np.ndarray:
    """Returns which weights have the same bits in all profiles, so that a file holds them once.

    The weights whose means differ most between the profiles get separate bits first, up to a share
    of all weights.

    Args:
        costs: The `CostModel`, for the sizes of the weights.
        means: The mean bit-widths of each profile, shape `[count, Pw]`.

    Returns:
        A bool array of shape `[Pw]`.
    """
    sizes = costs.sizes
    room, shared = _DISTINCT_WEIGHTS * sizes.sum(), np.zeros(len(sizes), bool)
    for weight in np.argsort(-np.ptp(means, axis=0), kind="stable"):
        if sizes[weight] <= room:
            room -= sizes[weight]
        else:
            shared[weight] = True
    return shared


def _best_bits(
    costs: CostModel,
    losses: Sequence[Mapping[int, float]],
    limit: float,
    activation_bits: Sequence[int] | np.ndarray = (),
) -> np.ndarray:
    """Returns the weight bits of one file of at most `limit` bytes with the smallest added loss.

    The search runs once for files without the decoder and once for files with it, if there is one.

    Args:
        costs: The `CostModel`.
        losses: `{bits: loss}` of the allowed bit-widths of each weight point.
        limit: The largest number of bytes of the file.
        activation_bits: The activation bits of the file, shape `[decided]`. None given stands for
            the fewest.

    Returns:
        An int array of shape `[Pw]`.
    """

    def order(bits: np.ndarray) -> tuple[float, float]:
        excess = max(costs.of_file(bits, activation_bits) - limit, 0.0)
        return excess, sum(loss[b] for loss, b in zip(losses, bits))

    other = costs.constant() + costs.of_activations(activation_bits)
    limits = costs.bytes.limits(limit - other)
    found = (_best_bits_in(costs, *one, losses, limit, activation_bits) for one in limits)
    return min(found, key=order)


def _best_bits_in(
    costs: CostModel,
    full_table: Table,
    table_limit: float,
    losses: Sequence[Mapping[int, float]],
    limit: float,
    activation_bits: Sequence[int] | np.ndarray,
) -> np.ndarray:
    """Returns the best bits by one table of bytes.

    The tensors of a file share a compressor, so together they take other bytes than in the table.
    The limit for the sum of the table is corrected by the difference at a first choice of bits. It
    starts a little above that and is lowered until the file fits.

    Args:
        costs: The `CostModel`.
        full_table: One of the tables of the `CostModel`.
        table_limit: The first limit for the sum of the table.
        losses: `{bits: loss}` of the allowed bit-widths of each weight point.
        limit: The largest number of bytes of the file.
        activation_bits: The activation bits of the file, shape `[decided]`.

    Returns:
        An int array of shape `[Pw]`.
    """
    table = [{b: row[b] for b in loss} for row, loss in zip(full_table, losses)]
    lowest = sum(min(row.values()) for row in table)

    def bits_within(table_limit: float) -> tuple[np.ndarray, float]:
        bits = allocation.allocate_by_knapsack(losses, table, max(table_limit, lowest))
        return bits, costs.of_file(bits, activation_bits) - limit

    bits, excess = bits_within(table_limit)
    if not costs.adds_up:
        table_sum = sum(row[b] for row, b in zip(table, bits))
        table_limit *= _FIRST_TRY * table_sum / (table_limit + excess)
        bits, excess = bits_within(table_limit)
    while excess > 0 and table_limit > lowest:
        table_limit -= max(0.5 * excess, _SMALLEST_STEP * limit)
        bits, excess = bits_within(table_limit)
    return bits
