import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqmq_tf.budget import allocation

BITS = tuple(range(2, 9))
CANDIDATES = [BITS, (2, 4, 8), (8,), (3, 4), BITS, (4, 8)]
points = len(CANDIDATES)

means = st.lists(st.floats(1, 9), min_size=points, max_size=points)
prices = st.lists(st.floats(0.0, 10), min_size=points, max_size=points).map(np.array)


def nearest(mean, candidates):
    return min(candidates, key=lambda b: (abs(b - mean), b))


@settings(max_examples=40, deadline=None)
@given(mean=means, price=prices, share=st.floats(0, 1))
def test_allocation_never_exceeds_the_limit_and_takes_candidates(mean, price, share):
    def cost(bits):
        return float(np.dot(price, bits))

    low, high = (cost(np.array([f(c) for c in CANDIDATES])) for f in (min, max))
    limit = low + share * (high - low)
    bits = allocation.allocate_greedily(mean, CANDIDATES, cost, limit)
    assert cost(bits) <= limit
    assert all(b in c for b, c in zip(bits, CANDIDATES))
    # Close under the limit: no single step up would still fit, or the slack is under 0.5 %.
    steps = [
        cost(np.concatenate([bits[:p], [c[c.index(int(bits[p])) + 1]], bits[p + 1 :]]))
        for p, c in enumerate(CANDIDATES)
        if bits[p] != c[-1]
    ]
    assert all(s > limit for s in steps) or cost(bits) >= 0.995 * limit


@settings(max_examples=30, deadline=None)
@given(mean=means, price=prices, gap=st.floats(0.01, 5))
def test_allocation_refuses_a_limit_below_the_smallest_bits(mean, price, gap):
    def cost(bits):
        return float(np.dot(price, bits))

    limit = cost(np.array([c[0] for c in CANDIDATES])) - gap
    with pytest.raises(ValueError, match="smallest bit-widths cost"):
        allocation.allocate_greedily(mean, CANDIDATES, cost, limit)


@settings(max_examples=30, deadline=None)
@given(
    mean=means,
    share=st.floats(0, 1),
    mask=st.lists(st.booleans(), min_size=points, max_size=points),
)
def test_fixed_points_stay_at_the_candidate_nearest_to_their_mean(mean, share, mask):
    def cost(bits):
        return float(np.sum(bits))

    kept = [nearest(m, c) for m, c in zip(mean, CANDIDATES)]
    ends = [
        cost([k if fixed else f(c) for k, c, fixed in zip(kept, CANDIDATES, mask)])
        for f in (min, max)
    ]
    bits = allocation.allocate_greedily(
        mean, CANDIDATES, cost, ends[0] + share * (ends[1] - ends[0]), mask
    )
    assert [b for b, fixed in zip(bits, mask) if fixed] == [
        k for k, fixed in zip(kept, mask) if fixed
    ]


def test_means_that_cost_the_limit_are_kept():
    mean = np.array([3.0, 4.0, 8.0, 4.0, 6.0, 8.0])
    bits = allocation.allocate_greedily(mean, CANDIDATES, np.sum, mean.sum())
    np.testing.assert_array_equal(bits, mean)


def test_the_point_that_is_furthest_above_its_mean_is_lowered_first():
    price = np.array([3.0, 10.0, 1.0])
    bits = allocation.allocate_greedily(
        [3.9, 3.6, 4.4], [BITS] * 3, lambda b: float(price @ b), 46.5
    )
    np.testing.assert_array_equal(bits, [4, 3, 4])


def test_the_point_that_is_furthest_below_its_mean_is_raised_first():
    price = np.array([3.0, 10.0, 1.0])
    bits = allocation.allocate_greedily(
        [3.9, 3.6, 4.4], [BITS] * 3, lambda b: float(price @ b), 57.0
    )
    np.testing.assert_array_equal(bits, [4, 4, 5])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0.1, 0.9))
def test_allocation_is_near_the_best_of_all(seed, share):
    random = np.random.default_rng(seed)
    price = random.uniform(0.5, 2.0, 4)
    mean = random.uniform(2, 6, 4)
    candidates = [tuple(range(2, 7))] * 4
    limit = float(price @ mean)

    def loss(bits):
        return float(np.sum(price * 4.0 ** (mean - bits)))

    bits = allocation.allocate_greedily(mean, candidates, lambda b: float(price @ b), limit)
    every = np.array(list(itertools.product(candidates[0], repeat=4)))
    best = min(loss(b) for b in every if price @ b <= limit)
    assert loss(bits) <= 1.6 * best


def test_a_point_without_cost_is_not_lowered():
    price = np.array([0.0, 1.0])
    bits = allocation.allocate_greedily([5.0, 5.0], [BITS, BITS], lambda b: float(price @ b), 3.0)
    assert bits[1] == 3 and bits[0] >= 5


def rows(values):
    return [dict(zip(c, row)) for c, row in zip(CANDIDATES, values)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_chosen_bits_are_the_best_of_all_within_the_limit(seed, share):
    random = np.random.default_rng(seed)
    # Losses fall and costs rise by bits, by how much is anything.
    losses = rows([np.sort(random.exponential(size=len(c)))[::-1] for c in CANDIDATES])
    costs = rows([np.sort(random.exponential(size=len(c))) for c in CANDIDATES])
    low, high = (sum(f(row.values()) for row in costs) for f in (min, max))
    limit = low + share * (high - low)
    bits = allocation.allocate_by_knapsack(losses, costs, limit)

    def total(table, bits):
        return sum(row[b] for row, b in zip(table, bits))

    assert total(costs, bits) <= limit + 1e-9
    # Costs are rounded up, each by a part of the room: some less of it, and nothing is better.
    nearly = low + share * (high - low) * (1 - 1e-3)
    every = [b for b in itertools.product(*CANDIDATES) if total(costs, b) <= nearly]
    assert total(losses, bits) <= min((total(losses, b) for b in every), default=np.inf) + 1e-12


def test_choosing_refuses_a_limit_below_the_cheapest_bits():
    with pytest.raises(ValueError, match="cheapest bit-widths cost 5, over the limit of 4.9"):
        allocation.allocate_by_knapsack([{2: 1.0, 3: 0.5}], [{2: 5.0, 3: 6.0}], 4.9)
    assert allocation.allocate_by_knapsack([{2: 1.0, 3: 0.5}], [{2: 5.0, 3: 6.0}], 5.0) == [2]


def test_what_costs_a_hair_too_much_is_not_taken():
    losses, costs = [{2: 1.0, 3: 0.5}], [{2: 0.0, 3: 1.00005}]
    assert allocation.allocate_by_knapsack(losses, costs, 1.0) == [2]
    assert allocation.allocate_by_knapsack(losses, costs, 1.0001) == [3]


def test_what_costs_nothing_more_is_taken():
    chosen = allocation.allocate_by_knapsack(
        [{2: 2.0, 3: 1.0}] * 2, [{2: 5.0, 3: 5.0}, {2: 1.0, 3: 2.0}], 6.0
    )
    np.testing.assert_array_equal(chosen, [3, 2])


@settings(max_examples=40, deadline=None)
@given(slope=st.floats(0.1, 10), limit=st.floats(-50, 50))
def test_largest_shift_is_the_root_or_an_end(slope, limit):
    shift = allocation.largest_shift(lambda s: slope * s, limit)
    if slope * 8 <= limit:
        assert shift == 8.0
    elif slope * -8 > limit:
        assert shift == -8.0
    else:
        assert slope * shift <= limit
        assert slope * (shift + 1e-6) > limit - 1e-6


def test_largest_shift_of_a_staircase_is_within_the_limit():
    shift = allocation.largest_shift(np.floor, 2.5)
    assert 2.999 < shift < 3.0


@settings(max_examples=40, deadline=None)
@given(
    scores=st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=40),
    count=st.integers(1, 4),
)
def test_clusters_are_intervals_of_the_scores(scores, count):
    thresholds, group = allocation.cluster(scores, count)
    assert thresholds.shape == (count - 1,)
    assert np.all(np.diff(thresholds) >= 0)
    assert group.min() >= 0 and group.max() < count
    assert np.all(np.diff(group[np.argsort(scores, kind="stable")]) >= 0)
    np.testing.assert_array_equal(group, (np.array(scores)[:, None] > thresholds).sum(1))


def test_clusters_find_separated_groups():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(m, 0.05, n) for m, n in ((-1, 50), (0, 200), (3, 20))])
    thresholds, group = allocation.cluster(scores, 3)
    np.testing.assert_array_equal(np.bincount(group), [50, 200, 20])
    assert -0.9 < thresholds[0] < -0.2 and 0.3 < thresholds[1] < 2.8


def test_equal_scores_make_one_group():
    _, group = allocation.cluster(np.zeros(10), 3)
    assert len(set(group)) == 1
