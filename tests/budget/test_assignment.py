"""From means to assignments: operations meet the budget, and profiles are those of the embeddings."""

import numpy as np
import pytest
from helpers.three_convolutions import assigned, embeddings, network

from dqmq_tf.budget import assignment
from dqmq_tf.config import Budget
from dqmq_tf.policy.policy_state import SETTLED


@pytest.mark.parametrize("value", [2.5, 4.0, 6.0])
@pytest.mark.parametrize("count", [1, 3])
def test_settled_and_frozen_bits_meet_a_mean_bit_width(value, count):
    policy, costs = network("mean_bit_width", decided=True)
    policy.direction.assign(np.random.default_rng(2).normal(size=policy.direction.shape) * 0.3)
    z = embeddings()
    assignment.settle(policy, costs, Budget(mean_bit_width=value), count, z)
    assert policy.phase == SETTLED
    kept = assigned(policy)[:, 3:].copy()
    assignment.freeze(policy, costs, Budget(mean_bit_width=value), count, z)
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
    assignment.settle(policy, costs, budget, count, embeddings())
    before, moved = assigned(policy), embeddings() + 0.8

    def cost():
        found = policy(moved)
        weights = found["weights"].numpy()[found["group"].numpy(), :, 0]
        return costs.exact(weights, found["activations"].numpy()[..., 0])

    assert abs(cost() - 4.0) > 0.1
    assignment.shift_to_budget(policy, costs, budget, moved)
    assert 3.9 < cost() <= 4.0
    np.testing.assert_array_equal(assigned(policy), before)


@pytest.mark.parametrize("value", [3.2, 6.2])
def test_starting_means_cost_the_budget(value):
    policy, costs = network("mean_bit_width", decided=True)
    start = assignment.starting_means(policy, costs, Budget(mean_bit_width=value))
    assert costs.exact(start[3:], start[:3]) == pytest.approx(value, rel=1e-3)
    assert ((2 <= start) & (start <= 8)).all()


def test_starting_means_give_half_a_bit_more_for_half_the_price():
    policy, costs = network("mean_bit_width", decided=True)
    start = assignment.starting_means(policy, costs, Budget(mean_bit_width=4.0))
    level = start + 0.5 * np.log2(costs.prices())
    activations, weights = np.split(level, [policy.activation_count])
    np.testing.assert_allclose(activations, activations[0])
    np.testing.assert_allclose(weights, weights[0])
    assert start.std() > 0.1
    # At the same price an activation, whose rounding no training makes up for, gets more.
    assert 0.3 < activations[0] - weights[0] < 1.0
