"""Bits of a file within a budget of bytes.

The means of the policy start at the bits of a file that add least to the loss by the second-order
critic (`dqmq_tf.budget.sensitivity`), and become bits again by rounding: what a search finds by chance, less
than half a bit, is worth less than what the critic knows.
"""

import numpy as np
from keras import ops

from dqmq_tf.budget import allocation

# Bytes drift a little while a settled network is fine-tuned: stay just under the budget.
BYTES_MARGIN = 0.99
# And leave them as much while they are still searched.
_START_MARGIN = 0.985
# Share of a network's weights that may differ between profiles, which one file holds together.
_DISTINCT_WEIGHTS = 0.5
# From how far above the table's limit it is lowered, and by how much of a file's limit at least.
_ABOVE, _FINEST = 1.02, 0.002


def starting_bits(policy, costs, budget):
    """Returns the bits `[P]` of the file that adds least to the loss by `policy.loss_table`.

    Args:
        policy, costs, budget: As of `dqmq_tf.budget.assignment.settle`.

    Raises:
        ValueError: If the budget is below the smallest possible cost.
    """
    bits = _cheapest_bits(costs, _losses(policy), _limit(costs, budget, _START_MARGIN))
    return np.concatenate([_most_activations(policy), bits])


def nearest_bits(policy, costs, budget, means, most, share):
    """Returns the bits `[count, P]` of each profile's file: the means rounded, as the budget has it.

    Args:
        policy, costs, budget, most, share: As of `dqmq_tf.budget.assignment.settle`.
        means: `[count, P]`, of each profile.

    Raises:
        ValueError: If the budget is below the smallest possible cost.
    """
    limit, decided = _limit(costs, budget, share), policy.activation_count
    means = (means if most is None else most)[:, decided:]
    static, added = ops.convert_to_numpy(policy.mean)[decided:], _losses(policy)

    def bits_of(row, fixed):
        wanted = allocation.nearest(row, policy.weight_candidates)
        over = costs.of_file(wanted, []) > limit
        if not over and most is not None:
            return wanted
        # Bits that were trained are left only downwards where they are too many, else upwards. To
        # want one more than the mean over images is to lose four times as much.
        losses = [
            {b: f * loss for b, loss in known.items() if b == w or not kept and (b < w) == over}
            for known, w, kept, f in zip(added, wanted, fixed, 4.0 ** (row - static))
        ]
        return _cheapest_bits(costs, losses, limit)

    shared = np.zeros(means.shape[1], bool)
    if len(means) > 1:
        common = bits_of(means.mean(axis=0), shared)
        shared = _shared(costs, means) if most is None else np.ptp(means, axis=0) == 0
        means = np.where(shared, common, means)
    weights = [bits_of(row, shared) for row in means]
    return np.stack([np.concatenate([_most_activations(policy), row]) for row in weights])


def _losses(policy):
    """What each bit-width of each weight point adds to the loss: dictionaries by bits."""
    table = ops.convert_to_numpy(policy.loss_table)
    known = [dict(zip(policy.bit_widths.astype(int).tolist(), row)) for row in table]
    return [{b: row[b] for b in c} for c, row in zip(policy.weight_candidates, known)]


def _most_activations(policy):
    """What is not a weight costs no bytes, and has its most bits."""
    return np.array([max(c) for c in policy.activation_candidates], "int64")


def _limit(costs, budget, share):
    """The bytes that may be used: not fewer than the table has at the fewest bits."""
    return max(share * budget.value, min(budget.value, costs.smallest()))


def _shared(costs, means):
    """Which weights `[Pw]` get the same bits in all profiles, so that one file holds them once.

    Those that the profiles want most differently go apart first, up to a share of all.
    """
    sizes = costs.sizes
    room, shared = _DISTINCT_WEIGHTS * sizes.sum(), np.zeros(len(sizes), bool)
    for weight in np.argsort(-np.ptp(means, axis=0), kind="stable"):
        if sizes[weight] <= room:
            room -= sizes[weight]
        else:
            shared[weight] = True
    return shared


def _cheapest_bits(costs, losses, limit):
    """Bits `[Pw]` of one file.

    Tensors of a file share a compressor, and cost other bytes together than in the table: the
    table's limit is moved by what the first bits differ, and lowered from a little above that until
    the file keeps its own.
    """
    table = [{b: found[b] for b in row} for found, row in zip(costs.table, losses)]
    lowest, aim = sum(min(row.values()) for row in table), limit - costs.constant()

    def within(aim):
        bits = allocation.allocate_by_knapsack(losses, table, max(aim, lowest))
        return bits, costs.of_file(bits, []) - limit

    bits, excess = within(aim)
    if not costs.adds_up:
        alone = sum(row[b] for row, b in zip(table, bits))
        aim *= _ABOVE * alone / (aim + excess)
        bits, excess = within(aim)
    while excess > 0 and aim > lowest:
        aim -= max(0.5 * excess, _FINEST * limit)
        bits, excess = within(aim)
    return bits
