"""Bits of a file keep its bytes, whatever the means, and come from what rounding adds to the loss."""

import numpy as np
import pytest
from helpers.three_convolutions import assigned, embeddings, network
from hypothesis import given, settings
from hypothesis import strategies as st

from dqmq_tf.budget import assignment
from dqmq_tf.config import Budget
from dqmq_tf.policy.policy_state import FROZEN


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.0, 1.0), seed=st.integers(0, 50), count=st.integers(1, 3))
def test_no_profile_of_a_file_exceeds_its_bytes(share, seed, count):
    policy, costs = network("download_bytes", decided=False, seed=seed)
    lowest, highest = costs.of_file([2] * 3, []), costs.of_file([8] * 3, [])
    budget = Budget(download_bytes=lowest * 1.02 + share * (highest - lowest))
    policy.mean.assign(np.random.default_rng(seed).uniform(2, 8, policy.mean.shape))
    assignment.settle(policy, costs, budget, count, embeddings())
    for row in assigned(policy):
        assert costs.of_file(row, []) <= budget.value
    assignment.freeze(policy, costs, budget, count, embeddings())
    assert policy.phase == FROZEN
    for row in assigned(policy):
        assert costs.of_file(row, []) <= budget.value


def test_more_bytes_do_not_give_fewer_bits():
    means = []
    for share in (0.1, 0.4, 0.8):
        policy, costs = network("download_bytes", decided=False)
        lowest, highest = costs.of_file([2] * 3, []), costs.of_file([8] * 3, [])
        budget = Budget(download_bytes=lowest + share * (highest - lowest))
        assignment.settle(policy, costs, budget, 1, embeddings())
        means.append(np.average(assigned(policy)[0], weights=costs.sizes))
    assert means[0] < means[1] < means[2]


def half_budget(costs):
    lowest, highest = costs.of_file([2] * 3, []), costs.of_file([8] * 3, [])
    return Budget(download_bytes=(lowest + highest) / 2)


def settled(policy, costs, count=1, **kwargs):
    assignment.settle(policy, costs, half_budget(costs), count, embeddings(), **kwargs)
    return assigned(policy)


def test_static_bits_of_a_file_are_the_means_rounded():
    policy, costs = network("download_bytes", decided=False)
    # A file's bits by some critic, and as little room as there is.
    policy.mean.assign([7, 4, 3])
    most = costs.of_file([7, 4, 3], []) + 8

    def bits():
        budget = Budget(download_bytes=most)
        assignment.settle(policy, costs, budget, 1, embeddings(), share=1.0)
        return list(assigned(policy)[0])

    assert bits() == [7, 4, 3]
    # Neither the mean embedding nor what is less than half a bit moves them.
    policy.direction.assign(np.random.default_rng(0).normal(0, 3, policy.direction.shape))
    policy.mean.assign([7.4, 3.6, 3.4])
    assert bits() == [7, 4, 3]
    policy.mean.assign([6.4, 4.4, 3.4])
    most = costs.of_file([6, 4, 3], []) + 8
    assert bits() == [6, 4, 3]


@pytest.mark.parametrize(
    "wanted, share, more, fewer", [([-3, 0, 1.2], 1.02, [2], [0]), ([3, 0, 0], 1.0, [0], [])]
)
def test_profiles_have_the_bits_that_they_want(wanted, share, more, fewer):
    policy, costs = network("download_bytes", decided=False)
    policy.mean.assign(assignment.starting_means(policy, costs, half_budget(costs)))
    direction = np.zeros(policy.direction.shape)
    direction[:, 0] = wanted
    policy.direction.assign(direction)
    bits = settled(policy, costs, 2, share=share)
    ends = np.array([[-2, 0, 0, 0], [2, 0, 0, 0]], "float32")
    low, high = bits[policy.assign(ends, 2).numpy()]
    assert (high[more] > low[more]).all() and (high[fewer] < low[fewer]).all()


def test_the_largest_kernel_is_common_to_all_profiles():
    policy, costs = network("download_bytes", decided=False)
    policy.mean.assign(assignment.starting_means(policy, costs, half_budget(costs)))
    direction = np.zeros(policy.direction.shape)
    direction[1, 0] = 1.2
    policy.direction.assign(direction)
    bits = settled(policy, costs, 2, share=0.9)
    assert bits[0, 1] == bits[1, 1]


def test_bits_that_are_not_to_rise_do_not():
    policy, costs = network("download_bytes", decided=False)
    before = settled(policy, costs)
    policy.mean.assign([8.0, 2.0, 8.0])
    assert (settled(policy, costs) > before).any()
    np.testing.assert_array_equal(settled(policy, costs, ceiling=before, share=1.5), before)
    lowered = settled(policy, costs, ceiling=before, share=0.9)
    assert (lowered <= before).all() and (lowered < before).any()
    assert costs.of_file(lowered[0], []) <= 0.9 * half_budget(costs).value


def test_a_file_uses_what_it_may():
    policy, costs = network("download_bytes", decided=False)
    found = costs.of_file(settled(policy, costs)[0], [])
    assert 0.93 * half_budget(costs).value <= found <= 0.99 * half_budget(costs).value


def test_what_costs_no_bytes_has_its_most_bits():
    policy, costs = network("size_bytes", decided=True)
    budget = Budget(size_bytes=costs.exact([5] * 3, []))
    start = assignment.starting_means(policy, costs, budget)
    assert (start[:3] == 8).all() and costs.exact(start[3:], []) <= budget.value
    assignment.settle(policy, costs, budget, 1, embeddings())
    np.testing.assert_array_equal(assigned(policy)[0], start)


def test_starting_means_of_a_file_are_bits_that_it_can_have():
    policy, costs = network("download_bytes", decided=False)
    ends = [costs.of_file([b] * 3, []) for b in (2, 8)]
    shares = []
    for part in np.arange(0.2, 0.85, 0.1):
        budget = Budget(download_bytes=ends[0] + part * (ends[1] - ends[0]))
        start = assignment.starting_means(policy, costs, budget)
        shares.append(costs.of_file(start, []) / budget.value)
    assert 0.96 <= min(shares) and max(shares) <= 0.985
    # As long as nothing is known all tensors matter alike: the largest has the fewest bits.
    assert start[np.argmax(costs.sizes)] == start.min() < start.max()


@pytest.mark.parametrize("point", range(3))
def test_a_kernel_whose_rounding_adds_more_starts_with_more_bits(point):
    policy, costs = network("download_bytes", decided=False)
    budget, losses = half_budget(costs), policy.loss_table.numpy()
    before = assignment.starting_means(policy, costs, budget)
    losses[point] *= 4.0**3
    policy.loss_table.assign(losses)
    after = assignment.starting_means(policy, costs, budget)
    assert after[point] > before[point]
    assert (after < before).any()
