"""From mean bit-widths, or from what each bit-width adds to the loss, to bits that fit a budget.

The policy's means are real numbers and meet the budget on average; what is executed are integers that
must not exceed it. Operations are products of two decisions: the nearest candidates are taken and
then moved one at a time, always the one that loses least, or gains most, for the cost that it changes
(greedy for a knapsack). A bit divides the squared error of rounding by four, and the policy holds its
means where a bit is worth its cost at each point: so the loss at `b` bits is taken as `4**(mean - b)`
times the price of a bit there. Bytes are a sum over kernels: there the best bits of all are found.
"""

import math

import numpy as np

# Parts that the room in a budget is cut into: at least so many, and so many for each point.
_PARTS, _PARTS_EACH = 10_000, 100


def allocate_greedily(means, candidates, cost, limit, fixed=None):
    """Returns bit-widths near `means` whose cost is at most `limit`, and close under it.

    Args:
        means: `[P]`, mean bit-widths.
        candidates: P tuples of allowed bit-widths, ascending.
        cost: `cost(bits)` gives the cost of `[P]` bit-widths; it does not fall as bits rise.
        limit: Largest cost.
        fixed: Mask `[P]` of points that stay at the candidate nearest to their mean.

    Returns:
        int array `[P]`.

    Raises:
        ValueError: If the smallest bit-widths cost more than `limit`.

    Example:

    >>> allocate(np.array([3.4, 5.2]), [(2, 4, 8)] * 2, lambda bits: bits.sum(), 8)
    array([4, 4])
    """
    means = np.asarray(means, "float64")
    free = [p for p in range(len(means)) if fixed is None or not fixed[p]]
    bits = nearest(means, candidates)
    lowest = cost(smallest(means, candidates, fixed))
    if lowest > limit:
        raise ValueError(
            f"The smallest bit-widths cost {float(lowest):,.6g}, over the limit of {limit:,.6g}."
        )
    now = cost(bits)
    while now > limit:
        moves = _moves(bits, means, candidates, cost, free, -1)
        # What saves nothing comes last; of equals the smaller step comes first, as it may do.
        p, b, now = min(moves, key=lambda m: (m[2] >= now, round(m[3], 6), -m[2]))[:3]
        bits[p] = b
    while True:
        moves = [m for m in _moves(bits, means, candidates, cost, free, 1) if m[2] <= limit]
        if not moves or now >= 0.995 * limit:
            return bits
        p, b, now = min(moves, key=lambda m: (-m[3], m[2]))[:3]
        bits[p] = b


def allocate_by_knapsack(losses, costs, limit):
    """Returns the bit-widths of least summed loss whose summed cost is at most `limit`.

    A knapsack of which each point takes one, by dynamic programming (Kellerer, Pferschy and Pisinger
    2004, "Knapsack Problems", 11.5): exact but for costs that are rounded up, together by half a
    percent of the room above the lowest cost or less. (`scipy.optimize.milp` finds the same, but its
    solver writes to standard output.)

    Args:
        losses: P dictionaries `{bits: loss}`.
        costs: P dictionaries of the same bits, `{bits: cost}`.
        limit: Largest cost.

    Returns:
        int array `[P]`.

    Raises:
        ValueError: If the cheapest bit-widths cost more than `limit`.

    Example:

    >>> row = {2: 9.0, 4: 1.0}
    >>> choose([row, {2: 3.0, 4: 0.5}], [{2: 2, 4: 4}] * 2, 6)
    array([4, 2])
    """
    lowest = [min(row.values()) for row in costs]
    room = limit - sum(lowest)
    if room < 0:
        raise ValueError(
            f"The cheapest bit-widths cost {sum(lowest):,.6g}, over the limit of {limit:,.6g}."
        )
    parts = max(_PARTS, _PARTS_EACH * len(costs))
    part = max(room / parts, 1e-9)
    taken = [
        {b: math.ceil((cost - low) / part - 1e-6) for b, cost in row.items()}
        for row, low in zip(costs, lowest)
    ]
    # The least loss of the points so far that any number of parts allows, and by which bits.
    least, chosen = np.zeros(parts + 1), []
    for loss, each_takes in zip(losses, taken):
        each = np.full((len(loss), parts + 1), np.inf)
        for row, b in zip(each, loss):
            if each_takes[b] <= parts:
                row[each_takes[b] :] = least[: parts + 1 - each_takes[b]] + loss[b]
        least = each.min(axis=0)
        chosen.append(each.argmin(axis=0).astype("int16"))
    bits = []
    for loss, each_takes, best in zip(losses[::-1], taken[::-1], chosen[::-1]):
        bits.append(list(loss)[best[parts]])
        parts -= each_takes[bits[-1]]
    return np.array(bits[::-1], "int64")


def nearest(means, candidates):
    """Returns the candidate nearest to each mean, the lower at a tie: int array `[P]`."""
    chosen = [min(c, key=lambda b, m=m: (abs(b - m), b)) for c, m in zip(candidates, means)]
    return np.array(chosen, "int64")


def smallest(means, candidates, fixed=None):
    """Returns the lowest bit-widths that `allocate` can go to: int array `[P]`."""
    free = np.full(len(means), True) if fixed is None else ~np.asarray(fixed)
    return np.where(free, [c[0] for c in candidates], nearest(means, candidates))


def _moves(bits, means, candidates, cost, free, direction):
    """All single steps up or down: `(point, new bits, cost after, change of loss for its price)`."""
    moves = []
    for p in free:
        index = candidates[p].index(int(bits[p])) + direction
        if not 0 <= index < len(candidates[p]):
            continue
        b = candidates[p][index]
        after = bits.copy()
        after[p] = b
        change = abs(4.0 ** (means[p] - b) - 4.0 ** (means[p] - bits[p])) / abs(b - bits[p])
        moves.append((p, b, cost(after), change))
    return moves


def largest_shift(cost, limit, low=-8.0, high=8.0, rounds=40):
    """Returns the largest shift of all means at which `cost(shift)`, which rises, is allowed."""
    if cost(high) <= limit:
        return high
    for _ in range(rounds):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle)
    return low


def cluster(scores, count):
    """Splits scores into groups by one-dimensional k-means.

    Args:
        scores: `[N]`.
        count: Number of groups, at most N.

    Returns:
        `(thresholds [count - 1], group [N])`, groups numbered from the lowest scores.
    """
    scores = np.asarray(scores, "float64")
    centres = np.quantile(scores, (np.arange(count) + 0.5) / count)
    for _ in range(50):
        group = np.abs(scores[:, None] - centres).argmin(axis=1)
        moved = np.array(
            [scores[group == g].mean() if (group == g).any() else centres[g] for g in range(count)]
        )
        if np.allclose(moved, centres):
            break
        centres = np.sort(moved)
    thresholds = (centres[1:] + centres[:-1]) / 2
    return thresholds, (scores[:, None] > thresholds).sum(axis=1)
