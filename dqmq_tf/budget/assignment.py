"""From the policy to precision profiles: bits that meet the budget, on embeddings seen."""

import numpy as np
from keras import ops

from dqmq_tf.budget import allocation, byte_allocation
from dqmq_tf.budget.byte_allocation import BYTES_MARGIN
from dqmq_tf.policy.policy_state import FROZEN, SETTLED

# The mean over inputs that were not seen differs by a few thousandths.
_MEAN_MARGIN = 0.998
# Bits that an activation starts with above the weights that it meets, at the same price.
_ACTIVATIONS_AHEAD = 0.7


def settle(policy, costs, budget, count, embeddings, most=None, share=BYTES_MARGIN):
    """Assigns weight bits per profile, and shifts activation bits per sample to the budget.

    Args:
        policy: A `BitWidthPolicy`; its groups, assignments, shift and phase are set.
        costs: A `CostModel`, measured.
        budget: A `Budget`.
        count: Number of profiles.
        embeddings: `[N, d]`, what the encoder gave on data.
        most: For a budget in bytes, bits `[count, P]` to stay near and not to exceed; None for those
            of the policy's means, and any.
        share: Of a budget in bytes that may be used.

    Raises:
        ValueError: If the budget is below the smallest possible cost.
    """
    means, group = _grouped(policy, count, embeddings)
    if costs.in_bytes:
        bits = byte_allocation.nearest_bits(policy, costs, budget, means, most, share)
    else:
        bits = _operations(policy, costs, budget, means, group, None)
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
    if not policy.activation_count or not policy.quality_aware:
        return
    cost = _cost_of_shift(policy, costs, embeddings, group)
    policy.shift.assign(allocation.largest_shift(cost, _MEAN_MARGIN * budget.value))


def assigned_cost(policy, costs, embeddings):
    """Returns the mean cost of settled or frozen bits, in the unit of a budget of operations.

    Args:
        policy, costs, embeddings: As for `settle`.
    """
    follows = policy.phase == SETTLED and policy.quality_aware and policy.activation_count
    if follows:
        shift = float(ops.convert_to_numpy(policy.shift))
        return _cost_of_shift(policy, costs, embeddings)(shift)
    group = ops.convert_to_numpy(policy.assign(embeddings, policy.profiles))
    bits, count = ops.convert_to_numpy(policy.assigned)[group], policy.activation_count
    return costs.exact(bits[:, count:], bits[:, :count])


def _cost_of_shift(policy, costs, embeddings, group=None):
    """Returns a function of the shift of settled activation bits that gives their mean cost."""
    count = policy.activation_count
    if group is None:
        group = ops.convert_to_numpy(policy.assign(embeddings, policy.profiles))
    bits = ops.convert_to_numpy(policy.assigned)
    samples = ops.convert_to_numpy(policy.means(embeddings))[:, :count]

    def cost(shift):
        activations = _nearest(policy, samples + shift, slice(None, count))
        return costs.exact(bits[group, count:], activations)

    return cost


def freeze(policy, costs, budget, count, embeddings):
    """Fixes all bits per profile; weight bits that were settled for as many profiles are kept.

    Arguments and errors are those of `settle`.
    """
    kept = policy.phase == SETTLED and policy.profiles == count
    if not costs.in_bytes:
        settled = _settled_means if kept else _grouped
        means, group = settled(policy, count, embeddings)
        weights = np.arange(policy.point_count) >= policy.activation_count
        fixed = weights if kept else None
        _store(policy, _operations(policy, costs, budget, means, group, fixed))
    elif not kept:
        means, _ = _grouped(policy, count, embeddings)
        _store(
            policy, byte_allocation.nearest_bits(policy, costs, budget, means, None, BYTES_MARGIN)
        )
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

    In bytes they are the very bits of a file, those that add least by `policy.loss_table`.
    """
    if costs.in_bytes:
        return byte_allocation.starting_bits(policy, costs, budget)
    candidates = policy.activation_candidates + policy.weight_candidates
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


def _grouped(policy, count, embeddings):
    """Means `[count, P]` and the group of each embedding; sets the policy's groups."""
    scores = ops.convert_to_numpy(policy.score(embeddings))
    thresholds, group = allocation.cluster(scores, count)

    def by_group(values):
        everywhere = values.mean(axis=0)
        rows = [values[group == g] for g in range(count)]
        return np.stack([row.mean(axis=0) if len(row) else everywhere for row in rows])

    policy.set_groups(thresholds, by_group(embeddings))
    followed = policy.followed(ops.convert_to_tensor(embeddings), count)
    return by_group(ops.convert_to_numpy(policy.means(followed))), group


def _settled_means(policy, count, embeddings):
    """As `_grouped`, of a settled policy: its weight bits, and activations as they are shifted."""
    group = ops.convert_to_numpy(policy.assign(embeddings, count))
    means = ops.convert_to_numpy(policy.assigned)[:count].copy()
    decided = policy.activation_count
    shifted = ops.convert_to_numpy(policy.means(embeddings) + policy.shift)
    for g in range(count if policy.quality_aware else 0):
        if (group == g).any():
            means[g, :decided] = shifted[group == g, :decided].mean(axis=0)
    return means, group


def _operations(policy, costs, budget, means, group, fixed):
    """Bits `[count, P]` near the means whose operations meet the budget, averaged over profiles."""
    count, points = means.shape
    candidates = policy.activation_candidates + policy.weight_candidates
    decided = policy.activation_count
    members = np.bincount(group, minlength=count) / max(len(group), 1)

    def mean_cost(flat):
        bits = flat.reshape(count, points)
        each = [costs.bit_ops(row[decided:], row[:decided]) for row in bits]
        return costs.finish(float(np.dot(members, each)))

    fixed = None if fixed is None else np.tile(fixed, count)
    flat = allocation.allocate_greedily(
        means.ravel(), candidates * count, mean_cost, budget.value, fixed
    )
    return flat.reshape(count, points)


def _store(policy, bits):
    assigned = np.resize(bits.astype("float32"), policy.assigned.shape)
    policy.assigned.assign(assigned)


def _nearest(policy, means, which):
    """Nearest candidates `[N, points]`, the lower at a tie, as `distributions.mode` has it."""
    distance = np.abs(means[..., None] - policy.bit_widths) + (1 - policy.allowed[which]) * 1e9
    return policy.bit_widths[distance.argmin(axis=-1)]
