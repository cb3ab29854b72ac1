"""From the policy to precision profiles: bits that meet the budget, on embeddings seen."""

import numpy as np
from keras import ops

from dqmq_tf import allocation
from dqmq_tf.layers.policy import FROZEN, SETTLED

# Bytes drift a little while a settled network is fine-tuned: stay just under the budget.
_BYTES_MARGIN = 0.99
# The mean over inputs that were not seen differs by a few thousandths.
_MEAN_MARGIN = 0.998
# Share of a network's weights that may differ between profiles, which one file holds together.
_DISTINCT_WEIGHTS = 0.5
# Bits that an activation starts with above the weights that it meets, at the same price.
_ACTIVATIONS_AHEAD = 0.7


def settle(policy, costs, budget, count, embeddings, assigned=None, share=_BYTES_MARGIN):
    """Assigns weight bits per profile, and shifts activation bits per sample to the budget.

    Args:
        policy: A `BitWidthPolicy`; its groups, assignments, shift and phase are set.
        costs: A `CostModel`, measured.
        budget: A `Budget`.
        count: Number of profiles.
        embeddings: `[N, d]`, what the encoder gave on data.
        assigned: Bits `[count, P]` to start from, instead of the policy's means.
        share: Of a budget in bytes that may be used.

    Raises:
        ValueError: If the budget is below the smallest possible cost.
    """
    means, group = _grouped(policy, count, embeddings)
    means = means if assigned is None else assigned
    bits = _assign(policy, costs, budget, means, group, None, share)
    _store(policy, bits)
    policy.profiles = count
    policy.phase = SETTLED
    shift_to_budget(policy, costs, budget, embeddings, group)


def shift_to_budget(policy, costs, budget, embeddings, group=None):
    """Shifts the activation bits of a settled policy, which follow each sample, to the budget.

    Args:
        policy, costs, budget, embeddings: As for `settle`.
        group: Profile `[N]` of each embedding, None for those that the policy gives.
    """
    decided = policy.activation_count
    if not decided or not policy.quality_aware:
        return
    if group is None:
        group = ops.convert_to_numpy(policy.assign(embeddings, policy.profiles))
    bits = ops.convert_to_numpy(policy.assigned)
    samples = ops.convert_to_numpy(policy.means(embeddings))[:, :decided]

    def cost(shift):
        activations = _nearest(policy, samples + shift, slice(None, decided))
        return costs.exact(bits[group, decided:], activations)

    policy.shift.assign(allocation.largest_shift(cost, _MEAN_MARGIN * budget.value))


def freeze(policy, costs, budget, count, embeddings):
    """Fixes all bits per profile; weight bits that were settled for as many profiles are kept.

    Arguments and errors are those of `settle`.
    """
    if policy.phase == SETTLED and policy.profiles == count:
        group = ops.convert_to_numpy(policy.assign(embeddings, count))
        means = ops.convert_to_numpy(policy.assigned)[:count].copy()
        decided = policy.activation_count
        shifted = ops.convert_to_numpy(policy.means(embeddings) + policy.shift)
        for g in range(count if policy.quality_aware else 0):
            if (group == g).any():
                means[g, :decided] = shifted[group == g, :decided].mean(axis=0)
        kept = np.arange(policy.point_count) >= decided
    else:
        means, group = _grouped(policy, count, embeddings)
        kept = None
    share = _BYTES_MARGIN if kept is None else 1.0
    _store(policy, _assign(policy, costs, budget, means, group, kept, share))
    policy.profiles = count
    policy.phase = FROZEN


def starting_means(policy, costs, budget):
    """Returns the mean bit-widths `[P]` from which the policy starts, which meet the budget.

    The error of rounding falls to a quarter with each bit. As long as nothing else is known, all
    tensors matter alike, and then a bit-width is worth its cost where every point has half a bit
    more for each halving of the price of its bits (reverse water-filling; Cover and Thomas 2006,
    "Elements of Information Theory", 10.3.3): a cheap layer has its bits nearly for nothing. Where
    activations are decided too they start with more: training makes up for how a weight is rounded,
    which is the same for every input, and cannot for an activation. (LSQ at 2-bit weights and 3-bit
    activations is ahead of 3 and 2 by 0.9 points on ResNet-8, at the same operations.)
    """
    candidates = policy.activations + policy.weights_
    low, high = ([end(c) for c in candidates] for end in (min, max))
    decided = policy.activation_count
    prices = costs.prices()
    ahead = -0.5 * np.log2(np.maximum(prices / prices.max(), 1e-4))
    ahead[:decided] += _ACTIVATIONS_AHEAD

    def means(level):
        return np.clip(level + ahead, low, high)

    def cost(level):
        return costs.exact(means(level)[decided:], means(level)[:decided])

    return means(allocation.largest_shift(cost, budget.value, low=-8.0, high=8.0))


def smallest_cost(policy, costs):
    """Returns the cost at the smallest bit-widths of all decision points."""
    decided = policy.activation_count
    smallest = [min(p) for p in policy.activations + policy.weights_]
    return costs.exact(smallest[decided:], smallest[:decided])


def _grouped(policy, count, embeddings):
    """Means `[count, P]` and the group of each embedding; sets the policy's groups."""
    scores = ops.convert_to_numpy(policy.score(embeddings))
    thresholds, group = allocation.cluster(scores, count)

    def by_group(values):
        everywhere = values.mean(axis=0)
        rows = [values[group == g] for g in range(count)]
        return np.stack([row.mean(axis=0) if len(row) else everywhere for row in rows])

    policy.set_groups(thresholds, by_group(embeddings))
    return by_group(ops.convert_to_numpy(policy.means(embeddings))), group


def _assign(policy, costs, budget, means, group, fixed, share):
    """Bits `[count, P]` within the budget: each profile's file, or the mean over the profiles."""
    count, points = means.shape
    candidates = policy.activations + policy.weights_
    decided = policy.activation_count
    if costs.in_bytes:
        limit = max(share * budget.value, min(budget.value, smallest_cost(policy, costs)))
        if count > 1 and fixed is None:
            shared = _shared(costs, means, decided)
            common = _assign_file(policy, costs, means.mean(axis=0), limit, None)
            means, fixed = np.where(shared, common, means), shared
        return np.stack([_assign_file(policy, costs, row, limit, fixed) for row in means])
    members = np.bincount(group, minlength=count) / max(len(group), 1)

    def mean_cost(flat):
        bits = flat.reshape(count, points)
        each = [costs.bit_ops(row[decided:], row[:decided]) for row in bits]
        return costs.finish(float(np.dot(members, each)))

    fixed = None if fixed is None else np.tile(fixed, count)
    flat = allocation.allocate(means.ravel(), candidates * count, mean_cost, budget.value, fixed)
    return flat.reshape(count, points)


def _shared(costs, means, decided):
    """Which points `[P]` get the same bits in all profiles, so that one file holds them once.

    The weights that the profiles want most differently go apart first, up to a share of all.
    """
    sizes = costs.sizes
    room, shared = _DISTINCT_WEIGHTS * sizes.sum(), np.zeros(means.shape[1], bool)
    for weight in np.argsort(-np.ptp(means[:, decided:], axis=0), kind="stable"):
        if sizes[weight] <= room:
            room -= sizes[weight]
        else:
            shared[decided + weight] = True
    return shared


def _assign_file(policy, costs, means, limit, fixed):
    """Bits `[P]` of one file; what the table of bytes gets wrong is measured and taken off."""
    decided = policy.activation_count
    candidates = policy.activations + policy.weights_

    def table_bytes(bits):
        return costs.exact(bits[decided:], bits[:decided])

    # The table has no way below this, be it over the limit: tensors of a file share a compressor,
    # and cost less together than in the table.
    lowest = table_bytes(allocation.smallest(means, candidates, fixed))
    aim, best, best_bytes = limit, None, 0.0
    for _ in range(12):
        bits = allocation.allocate(means, candidates, table_bytes, max(aim, lowest), fixed)
        measured = costs.of_file(bits[decided:], bits[:decided])
        if best_bytes < measured <= limit:
            best, best_bytes = bits, measured
        if measured <= limit and (best_bytes >= 0.99 * limit or measured < best_bytes):
            break
        # Over the limit the whole excess is taken off; under it the room is halved.
        aim -= measured - limit if measured > limit else 0.5 * (measured - limit)
    return bits if best is None else best


def _store(policy, bits):
    assigned = np.resize(bits.astype("float32"), policy.assigned.shape)
    policy.assigned.assign(assigned)


def _nearest(policy, means, which):
    """Nearest candidates `[N, points]`, the lower at a tie, as `distributions.mode` has it."""
    distance = np.abs(means[..., None] - policy.grid) + (1 - policy.allowed[which]) * 1e9
    return policy.grid[distance.argmin(axis=-1)]
