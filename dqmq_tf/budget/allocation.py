"""Finds integer bit-widths that fit a budget, from mean bit-widths or from the loss that they add.

The policy's means are real numbers that meet the budget on average. The executed bit-widths are
integers and must not exceed it.

Bit operations depend on products of two decisions. For them, each mean is rounded to the nearest
candidate. Single bit-widths are then lowered, or raised, one step at a time: always the step that
loses least, or gains most, per unit of cost (a greedy knapsack algorithm). One more bit divides the
squared rounding error by four, and the policy places each mean where a bit is worth its cost there.
The loss at `b` bits is therefore taken as `4**(mean - b)` times the price of a bit at that point.

Bytes are a sum over kernels. For them, the optimal bit-widths are found.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# The smallest number of parts that the room in a budget is divided into: in all, and per point.
_MIN_PARTS, _MIN_PARTS_PER_POINT = 10_000, 100
# Bit-widths that use this share of the limit are close enough to it.
_CLOSE = 0.995

Candidates = Sequence[tuple[int, ...]]


def allocate_greedily(
    means: Sequence[float] | np.ndarray,
    candidates: Candidates,
    cost: Callable[[np.ndarray], float],
    limit: float,
    fixed: Sequence[bool] | np.ndarray | None = None,
) -> np.ndarray:
    """Returns bit-widths near `means` whose cost is at most `limit`, and close to it.

    Args:
        means: The mean bit-widths, shape `[P]`.
        candidates: The allowed bit-widths of each of the P points, in ascending order.
        cost: A function that returns the cost of bit-widths of shape `[P]`. It must not decrease
            when a bit-width rises.
        limit: The largest allowed cost.
        fixed: A mask of shape `[P]`. Points where it is True keep the candidate nearest to their
            mean. None fixes no point.

    Returns:
        An int array of shape `[P]`.

    Raises:
        ValueError: If the smallest bit-widths cost more than `limit`.

    Example:

    >>> allocate_greedily(np.array([3.4, 5.2]), [(2, 4, 8)] * 2, lambda bits: bits.sum(), 8)
    array([4, 4])
    """
    means = np.asarray(means, "float64")
    free = [p for p in range(len(means)) if fixed is None or not fixed[p]]
    bits = nearest(means, candidates)
    lowest = cost(smallest(means, candidates, fixed))
    if lowest > limit:
        raise ValueError(
            f"The smallest bit-widths cost {float(lowest):,.6g}, over the limit of {limit:,.6g}. "
            "Raise the budget, or allow fewer bits."
        )
    current = cost(bits)
    while current > limit:
        # Steps that save nothing come last. Among steps of equal loss, the one that saves least is
        # taken, as it may already be enough.
        step = min(
            _steps(bits, means, candidates, cost, free, -1),
            key=lambda s: (s.cost >= current, round(s.loss_change, 6), -s.cost),
        )
        bits[step.point], current = step.bits, step.cost
    while current < _CLOSE * limit:
        steps = _steps(bits, means, candidates, cost, free, 1)
        affordable = [step for step in steps if step.cost <= limit]
        if not affordable:
            break
        step = min(affordable, key=lambda s: (-s.loss_change, s.cost))
        bits[step.point], current = step.bits, step.cost
    return bits


def allocate_by_knapsack(
    losses: Sequence[Mapping[int, float]], costs: Sequence[Mapping[int, float]], limit: float
) -> np.ndarray:
    """Returns the bit-widths with the smallest total loss whose total cost is at most `limit`.

    This is a multiple-choice knapsack, solved by dynamic programming (Kellerer, Pferschy and
    Pisinger 2004, "Knapsack Problems", 11.5). The result is exact, except that costs are rounded up:
    in total by at most one percent of the room above the lowest cost, on average by half of that.
    `scipy.optimize.milp` finds the same bit-widths, but its solver writes to standard output.

    Args:
        losses: A dictionary `{bits: loss}` for each of the P points.
        costs: A dictionary `{bits: cost}` for each point, with the same bit-widths.
        limit: The largest allowed cost.

    Returns:
        An int array of shape `[P]`.

    Raises:
        ValueError: If the cheapest bit-widths cost more than `limit`.

    Example:

    >>> losses = [{2: 9.0, 4: 1.0}, {2: 3.0, 4: 0.5}]
    >>> allocate_by_knapsack(losses, [{2: 2, 4: 4}] * 2, 6)
    array([4, 2])
    """
    lowest = [min(row.values()) for row in costs]
    room = limit - sum(lowest)
    if room < 0:
        raise ValueError(
            f"The cheapest bit-widths cost {sum(lowest):,.6g}, over the limit of {limit:,.6g}. "
            "Raise the budget, or allow fewer bits."
        )
    part_count = max(_MIN_PARTS, _MIN_PARTS_PER_POINT * len(costs))
    part = max(room / part_count, 1e-9)
    # The parts of the room that each bit-width of a point takes, rounded up.
    parts_taken = [
        {b: math.ceil((cost - low) / part - 1e-6) for b, cost in row.items()}
        for row, low in zip(costs, lowest)
    ]
    # For each number of parts: the smallest loss of the points up to here that these parts allow,
    # and the position of the bit-width that the last of the points then has.
    best_loss, best_positions = np.zeros(part_count + 1), []
    for loss, parts in zip(losses, parts_taken):
        options = np.full((len(loss), part_count + 1), np.inf)
        for option, b in zip(options, loss):
            if parts[b] <= part_count:
                option[parts[b] :] = best_loss[: part_count + 1 - parts[b]] + loss[b]
        best_loss = options.min(axis=0)
        best_positions.append(options.argmin(axis=0).astype("int16"))
    # Read the bit-widths from the last point back to the first.
    bits: list[int] = []
    parts_left = part_count
    for loss, parts, positions in zip(losses[::-1], parts_taken[::-1], best_positions[::-1]):
        bits.append(list(loss)[positions[parts_left]])
        parts_left -= parts[bits[-1]]
    return np.array(bits[::-1], "int64")


def nearest(means: Sequence[float] | np.ndarray, candidates: Candidates) -> np.ndarray:
    """Returns the candidate nearest to each mean, the lower one at a tie: int array `[P]`."""

    def nearest_to(mean: float, allowed: tuple[int, ...]) -> int:
        return min(allowed, key=lambda b: (abs(b - mean), b))

    return np.array([nearest_to(m, c) for c, m in zip(candidates, means)], "int64")


def smallest(
    means: Sequence[float] | np.ndarray,
    candidates: Candidates,
    fixed: Sequence[bool] | np.ndarray | None = None,
) -> np.ndarray:
    """Returns the lowest bit-widths that `allocate_greedily` can choose: int array `[P]`."""
    free = np.full(len(means), True) if fixed is None else ~np.asarray(fixed)
    return np.where(free, [c[0] for c in candidates], nearest(means, candidates))


def largest_shift(
    cost: Callable[[float], float],
    limit: float,
    low: float = -8.0,
    high: float = 8.0,
    rounds: int = 40,
) -> float:
    """Returns the largest shift in `[low, high]` whose cost is at most `limit`, by bisection.

    Args:
        cost: A function that returns the cost at a shift of all means. It must not decrease.
        limit: The largest allowed cost.
        low, high: The range of shifts. `low` is returned if no shift is allowed.
        rounds: The number of bisections.
    """
    if cost(high) <= limit:
        return high
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle)
    return low


def cluster(scores: Sequence[float] | np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits scores into groups by one-dimensional k-means.

    Args:
        scores: The scores, shape `[N]`.
        count: The number of groups, at most N.

    Returns:
        `(thresholds, group)`: the scores that separate the groups, shape `[count - 1]`, and the group
        of each score, shape `[N]`. Groups are numbered from the lowest scores.
    """
    scores = np.asarray(scores, "float64")
    centers = np.quantile(scores, (np.arange(count) + 0.5) / count)
    for _ in range(50):
        group = np.abs(scores[:, None] - centers).argmin(axis=1)
        means = np.array(
            [scores[group == g].mean() if (group == g).any() else centers[g] for g in range(count)]
        )
        if np.allclose(means, centers):
            break
        centers = np.sort(means)
    thresholds = (centers[1:] + centers[:-1]) / 2
    return thresholds, (scores[:, None] > thresholds).sum(axis=1)


class _Step(NamedTuple):
    """A change of one point to its next candidate.

    Attributes:
        point: The index of the point.
        bits: Its new bit-width.
        cost: The cost of all bit-widths after the step.
        loss_change: The size of the change of the loss, per bit and relative to the price of a bit.
    """

    point: int
    bits: int
    cost: float
    loss_change: float


def _steps(
    bits: np.ndarray,
    means: np.ndarray,
    candidates: Candidates,
    cost: Callable[[np.ndarray], float],
    free: Sequence[int],
    direction: int,
) -> list[_Step]:
    """Returns all single steps up (`direction` 1) or down (-1) of the points in `free`."""
    steps = []
    for p in free:
        index = candidates[p].index(int(bits[p])) + direction
        if not 0 <= index < len(candidates[p]):
            continue
        b = candidates[p][index]
        after = bits.copy()
        after[p] = b
        change = abs(4.0 ** (means[p] - b) - 4.0 ** (means[p] - bits[p])) / abs(b - bits[p])
        steps.append(_Step(p, b, cost(after), change))
    return steps
