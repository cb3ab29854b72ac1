"""From means to assignments: budgets are kept by every profile, whatever the means."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqmq_tf import profiles
from dqmq_tf.config import Budget
from dqmq_tf.costs import CostModel
from dqmq_tf.layers.policy import FROZEN, SETTLED, BitWidthPolicy
from dqmq_tf.points import ActivationPoint, WeightPoint
from dqmq_tf.quantizers import weight_integers
from dqmq_tf.targets import get

BITS = tuple(range(2, 9))


def weight_point(index, shape):
    return WeightPoint(
        name=f"conv_{index}:kernel", site=f"conv_{index}", variable="kernel", op_kind="conv",
        channel_axes=(3,), shape=shape, macs=int(np.prod(shape)) * (8 - index), input=index,
        bit_widths=BITS,
    )  # fmt: skip


def activation_point(index, decided):
    return ActivationPoint(
        name=f"x{index}", slots=((f"x{index}", 0, 0),), tensors=(index,),
        bit_widths=BITS if decided else (8,), range="affine", decided=decided,
    )  # fmt: skip


def network(kind, decided, seed=0):
    """A policy and measured costs of three convolutions."""
    shapes = [(3, 3, 3, 16), (3, 3, 16, 32), (1, 1, 32, 48)]
    weights = [weight_point(i, shape) for i, shape in enumerate(shapes)]
    activations = [activation_point(i, decided) for i in range(3)]
    target = get("simulation" if decided else "android")
    costs = CostModel(kind, target, activations, weights)
    random = np.random.default_rng(seed)
    kernels = [random.normal(size=shape) for shape in shapes]

    def integers(i, bits):
        return weight_integers(kernels[i], 3.0 / 2 ** (bits - 1), bits)

    costs.measure(integers)
    policy = BitWidthPolicy(
        activations=[BITS] * 3 if decided else [], weights=[BITS] * 3, groups=2, seed=seed
    )
    policy.build((None, 4))
    return policy, costs


def embeddings(count=64, seed=1):
    return np.random.default_rng(seed).normal(size=(count, 4)).astype("float32")


def assigned(policy):
    return policy.assigned.numpy()[: policy.profiles]


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.0, 1.0), seed=st.integers(0, 50), count=st.integers(1, 3))
def test_no_profile_of_a_file_exceeds_its_bytes(share, seed, count):
    policy, costs = network("download_bytes", decided=False, seed=seed)
    lowest, highest = costs.of_file([2] * 3, []), costs.of_file([8] * 3, [])
    budget = Budget(download_bytes=lowest * 1.02 + share * (highest - lowest))
    policy.mean.assign(np.random.default_rng(seed).uniform(2, 8, policy.mean.shape))
    profiles.settle(policy, costs, budget, count, embeddings())
    for row in assigned(policy):
        assert costs.of_file(row, []) <= budget.value
    profiles.freeze(policy, costs, budget, count, embeddings())
    assert policy.phase == FROZEN
    for row in assigned(policy):
        assert costs.of_file(row, []) <= budget.value


@pytest.mark.parametrize("value", [2.5, 4.0, 6.0])
@pytest.mark.parametrize("count", [1, 3])
def test_settled_and_frozen_bits_meet_a_mean_bit_width(value, count):
    policy, costs = network("mean_bit_width", decided=True)
    policy.direction.assign(np.random.default_rng(2).normal(size=policy.direction.shape) * 0.3)
    z = embeddings()
    profiles.settle(policy, costs, Budget(mean_bit_width=value), count, z)
    assert policy.phase == SETTLED
    kept = assigned(policy)[:, 3:].copy()
    profiles.freeze(policy, costs, Budget(mean_bit_width=value), count, z)
    np.testing.assert_array_equal(assigned(policy)[:, 3:], kept)
    group = policy.assign(z, count).numpy()
    rows = assigned(policy)[group]
    cost = costs.exact(rows[:, 3:], rows[:, :3])
    assert 0.9 * value <= cost <= value + 1e-6


@pytest.mark.parametrize("count", [1, 2])
def test_settled_bits_that_follow_a_moved_embedding_are_brought_back_to_the_budget(count):
    policy, costs = network("mean_bit_width", decided=True)
    policy.direction.assign(np.random.default_rng(3).normal(0, 0.5, policy.direction.shape))
    budget = Budget(mean_bit_width=4.0)
    profiles.settle(policy, costs, budget, count, embeddings())
    before, moved = assigned(policy), embeddings() + 0.8

    def cost():
        found = policy(moved)
        weights = found["weights"].numpy()[found["group"].numpy(), :, 0]
        return costs.exact(weights, found["activations"].numpy()[..., 0])

    assert abs(cost() - 4.0) > 0.1
    profiles.shift_to_budget(policy, costs, budget, moved)
    assert 3.9 < cost() <= 4.0
    np.testing.assert_array_equal(assigned(policy), before)


def test_more_bytes_do_not_give_fewer_bits():
    means = []
    for share in (0.1, 0.4, 0.8):
        policy, costs = network("download_bytes", decided=False)
        lowest, highest = costs.of_file([2] * 3, []), costs.of_file([8] * 3, [])
        budget = Budget(download_bytes=lowest + share * (highest - lowest))
        profiles.settle(policy, costs, budget, 1, embeddings())
        means.append(assigned(policy).mean())
    assert means[0] < means[1] < means[2]


@pytest.mark.parametrize("kind,decided,share", [
    ("mean_bit_width", True, 0.2), ("mean_bit_width", True, 0.7), ("download_bytes", False, 0.3),
    ("size_bytes", True, 0.5),
])  # fmt: skip
def test_starting_means_cost_the_budget(kind, decided, share):
    policy, costs = network(kind, decided=decided)
    ends = [costs.exact([b] * 3, [b] * 3 if decided else []) for b in (2, 8)]
    budget = Budget(**{kind: ends[0] + share * (ends[1] - ends[0])})
    start = profiles.starting_means(policy, costs, budget)
    count = policy.activation_count
    assert costs.exact(start[count:], start[:count]) == pytest.approx(budget.value, rel=1e-3)
    assert ((2 <= start) & (start <= 8)).all()


def test_starting_means_give_half_a_bit_more_for_half_the_price():
    policy, costs = network("mean_bit_width", decided=True)
    start = profiles.starting_means(policy, costs, Budget(mean_bit_width=4.0))
    level = start + 0.5 * np.log2(costs.prices())
    activations, weights = np.split(level, [policy.activation_count])
    np.testing.assert_allclose(activations, activations[0])
    np.testing.assert_allclose(weights, weights[0])
    assert start.std() > 0.1
    # At the same price an activation, whose rounding no training makes up for, gets more.
    assert 0.3 < activations[0] - weights[0] < 1.0


def test_starting_means_of_a_file_give_large_layers_fewer_bits():
    policy, costs = network("download_bytes", decided=False)
    lowest, highest = (costs.exact([b] * 3, []) for b in (2, 8))
    start = profiles.starting_means(policy, costs, Budget(download_bytes=(lowest + highest) / 2))
    sizes = [np.prod(point.shape) for point in costs.weights]
    inside = (2.01 < start) & (start < 7.99)
    level = (start + 0.5 * np.log2(sizes))[inside]
    np.testing.assert_allclose(level, level[0])
    assert (np.argsort(start) == np.argsort(sizes)[::-1]).all() and inside.sum() >= 2


def test_the_smallest_cost_is_that_of_the_fewest_bits():
    policy, costs = network("mean_bit_width", decided=True)
    assert profiles.smallest_cost(policy, costs) == pytest.approx(2.0)
