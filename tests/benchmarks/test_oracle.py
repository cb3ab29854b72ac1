"""The oracle's choice against all choices there are."""

import itertools

import numpy as np
import pytest
from study import oracle


def problem(groups, points, seed):
    """Losses that fall with bits, for candidates of 2 to 4 bits; the first point has no 2."""
    random = np.random.default_rng(seed)
    added = np.sort(random.exponential(size=(groups, points, 3)), axis=-1)[..., ::-1].copy()
    candidates = np.tile(np.arange(2.0, 5.0), (points, 1))
    candidates[0, 0], added[:, 0, 0] = np.nan, np.inf
    prices, shares = random.uniform(1.0, 3.0, points), random.dirichlet(np.ones(groups))
    return added, candidates, prices, shares


def loss(added, shares, bits):
    index = np.asarray(bits, "int64") - 2
    return shares @ np.take_along_axis(added, index[..., None], axis=-1)[..., 0].sum(axis=-1)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("groups", "points"), [(1, 7), (2, 4), (4, 2)])
def test_no_choice_within_the_budget_is_much_better(groups, points, seed):
    added, candidates, prices, shares = problem(groups, points, seed)
    budget = 3.2 * prices.sum()
    found = oracle.allocate(added, candidates, prices, shares, budget)
    assert shares @ (found @ prices) <= budget
    every = np.array(list(itertools.product([2, 3, 4], repeat=groups * points)))
    every = every.reshape(-1, groups, points)
    kept = [b for b in every if shares @ (b @ prices) <= budget and (b[:, 0] > 2).all()]
    losses = [loss(added, shares, bits) for bits in kept]
    assert loss(added, shares, found) <= min(losses) + 0.15 * np.ptp(losses)


def test_groups_with_other_losses_get_other_bits_and_the_mean_keeps_the_budget():
    steep, flat = [[9.0, 1.0, 0.0]], [[0.2, 0.1, 0.0]]
    candidates = np.array([[2.0, 3.0, 4.0]])
    shares = np.array([0.5, 0.5])
    found = oracle.allocate(np.array([steep, flat]), candidates, [1.0], shares, 3.0)
    assert found.tolist() == [[4.0], [2.0]]


def test_a_group_without_images_costs_nothing_and_ends():
    added, candidates, prices, _ = problem(2, 3, 0)
    found = oracle.allocate(added, candidates, prices, np.array([1.0, 0.0]), 3.0 * prices.sum())
    assert (found[0] @ prices) <= 3.0 * prices.sum()


def test_too_small_a_budget_is_refused():
    added, candidates, prices, shares = problem(2, 3, 0)
    with pytest.raises(ValueError, match="fewest bits cost"):
        oracle.allocate(added, candidates, prices, shares, prices.sum())


def test_candidates_are_near_and_allowed():
    found = oracle.nearby([(2, 3, 4, 8), (8,)], [3, 8], 1)
    np.testing.assert_array_equal(found, [[2, 3, 4], [np.nan, 8, np.nan]])


def test_groups_are_kinds_that_are_severe_or_not():
    found = oracle.groups([0, 0, 1, 1, 2, 2], [0, 0, 2, 3, 1, 5])
    assert len(set(found.tolist())) == 5 and found[0] == found[1]
    labels, means = oracle.by_group(np.arange(6.0).reshape(6, 1, 1), found)
    assert len(labels) == 5 and means[0, 0, 0] == 0.5
