import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqmq_tf.policy import discrete_gaussian

GRID = np.arange(2, 9, dtype="float32")
CANDIDATES = [tuple(range(2, 9)), (2, 4, 8), (8,), (3, 4), (5, 6, 7, 8), (2, 8)]
ALLOWED = np.array([[b in c for b in GRID] for c in CANDIDATES], "float32")
POINTS = len(CANDIDATES)

means = st.lists(st.floats(0, 10, width=32), min_size=POINTS, max_size=POINTS).map(
    lambda m: np.array([m], "float32")
)
sigmas = st.lists(st.floats(0.0625, 2, width=32), min_size=POINTS, max_size=POINTS).map(
    lambda s: np.array(s, "float32")
)


def clipped(mean):
    return np.clip(mean, [min(c) for c in CANDIDATES], [max(c) for c in CANDIDATES]).astype(
        "float32"
    )


@settings(max_examples=40, deadline=None)
@given(mean=means, sigma=sigmas)
def test_probabilities_are_a_discretized_gaussian_on_the_candidates(mean, sigma):
    p = np.exp(discrete_gaussian.log_probabilities(mean, sigma, GRID, ALLOWED))[0]
    np.testing.assert_allclose(p.sum(axis=-1), 1.0, rtol=1e-5)
    assert np.all(p[ALLOWED == 0] == 0)
    for point in range(POINTS):
        weights = np.exp(
            -((GRID - mean[0, point].astype("float64")) ** 2) / (2.0 * sigma[point] ** 2)
        )
        weights = weights * ALLOWED[point]
        if weights.sum() > 1e-250:
            np.testing.assert_allclose(p[point], weights / weights.sum(), atol=2e-4)


@settings(max_examples=40, deadline=None)
@given(
    mean=means,
    sigma=sigmas,
    uniform=st.lists(st.floats(0, 1, width=32, exclude_max=True), min_size=POINTS, max_size=POINTS),
)
def test_excluded_candidates_are_never_drawn_and_never_the_mode(mean, sigma, uniform):
    # keras.random.uniform can return 0, and the sum of p may be just below 1.
    log_p = discrete_gaussian.log_probabilities(mean, sigma, GRID, ALLOWED)
    points = np.arange(POINTS)
    drawn = np.array(discrete_gaussian.draw(log_p, np.array([uniform], "float32")))[0]
    assert np.all(ALLOWED[points, drawn] == 1)
    mode = np.array(discrete_gaussian.mode(mean, GRID, ALLOWED))[0]
    assert np.all(ALLOWED[points, mode] == 1)


@pytest.mark.parametrize("uniform", [0.0, 1e-7, 0.5, 1 - 6e-8])
def test_the_ends_of_the_uniform_range_draw_allowed_candidates(uniform):
    log_p = discrete_gaussian.log_probabilities(
        np.full((1, POINTS), 5.0, "float32"), np.full(POINTS, 0.1, "float32"), GRID, ALLOWED
    )
    drawn = np.array(discrete_gaussian.draw(log_p, np.full((1, POINTS), uniform, "float32")))[0]
    assert np.all(ALLOWED[np.arange(POINTS), drawn] == 1)


def test_draws_follow_the_probabilities():
    count = 20_000
    mean = np.tile(np.array([[4.3, 5.0, 8.0, 3.4, 5.2, 5.5]], "float32"), (count, 1))
    sigma = np.array([1.0, 1.5, 0.3, 0.6, 0.6, 4.0], "float32")
    log_p = discrete_gaussian.log_probabilities(mean, sigma, GRID, ALLOWED)
    uniform = np.random.default_rng(0).random((count, POINTS), dtype="float32")
    drawn = np.array(discrete_gaussian.draw(log_p, uniform))
    p = np.exp(log_p)[0]
    for point in range(POINTS):
        seen = np.bincount(drawn[:, point], minlength=len(GRID))
        expected = p[point] * count
        likely = expected > 1
        chi_square = np.sum((seen - expected)[likely] ** 2 / expected[likely])
        assert chi_square < 30, (CANDIDATES[point], seen, expected)
        assert seen[~likely].sum() <= 20


@settings(max_examples=40, deadline=None)
@given(mean=means)
def test_mode_is_the_nearest_candidate_the_lower_at_a_tie(mean):
    mode = GRID[np.array(discrete_gaussian.mode(mean, GRID, ALLOWED))[0]]
    for point, candidates in enumerate(CANDIDATES):
        assert mode[point] == min(
            candidates, key=lambda b: (abs(np.float32(b) - mean[0, point]), b)
        )


def test_mode_takes_the_lower_bit_width_at_a_half():
    mean = np.full((1, POINTS), 3.5, "float32")
    np.testing.assert_array_equal(
        GRID[np.array(discrete_gaussian.mode(mean, GRID, ALLOWED))[0]], [3, 4, 8, 3, 5, 2]
    )


@settings(max_examples=30, deadline=None)
@given(sigma=sigmas)
def test_expectation_rises_with_the_mean_and_stays_among_the_candidates(sigma):
    mean = np.tile(np.linspace(1, 9, 40, dtype="float32")[:, None], (1, POINTS))
    log_p = discrete_gaussian.log_probabilities(mean, sigma, GRID, ALLOWED)
    expected = np.array(discrete_gaussian.expectation(log_p, GRID))
    assert np.all(np.diff(expected, axis=0) >= -1e-5)
    assert np.all(expected >= [min(c) - 1e-4 for c in CANDIDATES])
    assert np.all(expected <= [max(c) + 1e-4 for c in CANDIDATES])


@settings(max_examples=40, deadline=None)
@given(mean=means, sigma=sigmas)
def test_entropy_matches_the_probabilities(mean, sigma):
    log_p = discrete_gaussian.log_probabilities(mean, sigma, GRID, ALLOWED)
    entropy = np.array(discrete_gaussian.entropy(log_p))[0]
    p = np.exp(log_p).astype("float64")[0]
    expected = [-sum(q * np.log(q) for q in row if q > 0) for row in p]
    np.testing.assert_allclose(entropy, expected, atol=1e-4)
    assert np.all(entropy >= -1e-6)
    assert np.all(entropy <= [np.log(len(c)) + 1e-5 for c in CANDIDATES])


@settings(max_examples=40, deadline=None)
@given(mean=means)
def test_neighbors_bracket_the_mean(mean):
    mean = clipped(mean)
    low, high = (np.array(n)[0] for n in discrete_gaussian.neighbors(mean, GRID, ALLOWED))
    for point, candidates in enumerate(CANDIDATES):
        assert low[point] in candidates and high[point] in candidates
        assert low[point] <= mean[0, point] <= high[point]
        between = [b for b in candidates if low[point] < b < high[point]]
        assert not between
        assert low[point] < high[point] or len(candidates) == 1


def test_neighbors_at_candidates_and_beyond_the_ends():
    def pairs(value):
        mean = np.full((1, POINTS), value, "float32")
        low, high = discrete_gaussian.neighbors(mean, GRID, ALLOWED)
        return list(zip(np.array(low)[0].tolist(), np.array(high)[0].tolist()))

    assert pairs(4.0) == [(4, 5), (4, 8), (8, 8), (3, 4), (5, 6), (2, 8)]
    assert pairs(8.0) == [(7, 8), (4, 8), (8, 8), (3, 4), (7, 8), (2, 8)]
    assert pairs(0.0) == [(2, 3), (2, 4), (8, 8), (3, 4), (5, 6), (2, 8)]
    assert pairs(11.0) == [(7, 8), (4, 8), (8, 8), (3, 4), (7, 8), (2, 8)]
