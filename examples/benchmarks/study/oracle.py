"""Bits of least loss for groups of images, from the loss that each change alone adds."""

import numpy as np

# From this severity on images are a group of their own.
_SEVERE = 3
_HALVINGS = 60


def nearby(bit_widths, base, reach):
    """Returns bits `[P, K]` near some `[P]` that each point may have, NaN for those it may not."""
    tried = np.asarray(base)[:, None] + np.arange(-reach, reach + 1)
    allowed = [np.isin(row, widths) for row, widths in zip(tried, bit_widths)]
    return np.where(allowed, tried, np.nan)


def groups(kind, severity):
    """Returns the quality group of each image `[N]`: clean, or a kind and whether it is severe."""
    kind, severity = np.asarray(kind), np.asarray(severity)
    return np.where(kind == 0, 0, 2 * kind + (severity >= _SEVERE))


def by_group(added, group):
    """Returns `(labels [G], mean added losses [G, P, K])` of the groups that images are in."""
    labels = np.unique(group)
    return labels, np.stack([added[group == label].mean(axis=0) for label in labels])


def allocate(added, candidates, prices, shares, budget):
    """Returns the bits `[G, P]` of least total loss whose mean cost keeps a budget.

    Losses of several activations are taken to add up. The price of cost is one for all groups, as
    it is where the mean of the cost is limited, and found by halving; what single changes the rest of
    the budget buys are made after that, the best first.

    Args:
        added: `[G, P, K]`; infinite where there is no candidate.
        candidates: Bits `[P, K]`.
        prices: Bit operations `[P]` of one bit more.
        shares: Share `[G]` of the images that each group has.
        budget: Largest mean of `prices * bits`, in bit operations.

    Raises:
        ValueError: If the fewest bits cost more than the budget.
    """
    cost = np.asarray(prices, "float64")[:, None] * candidates
    # What is no candidate has an infinite loss; its cost must not matter.
    cost = np.nan_to_num(cost)
    unit, points = float(np.sum(prices)), np.arange(len(cost))

    def chosen(price):
        return np.argmin(added + price * cost / unit, axis=-1)

    def spent(index):
        return float(np.dot(shares, cost[points, index].sum(axis=-1)))

    low, high = 0.0, 1e6
    if spent(chosen(low)) <= budget:
        high = low
    if spent(chosen(high)) > budget:
        raise ValueError(
            f"The candidates with the fewest bits cost {spent(chosen(high)):,.6g} bit operations in "
            f"the mean, the budget is {budget:,.6g}."
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if spent(chosen(middle)) <= budget else (middle, high)
    index, weight = chosen(high), np.reshape(shares, (-1, 1, 1))
    added = np.where(weight > 0, added, 0.0)
    while True:
        gain = weight * (np.take_along_axis(added, index[..., None], axis=-1) - added)
        dearer = weight * (cost - cost[points, index][..., None])
        worth = np.where((gain > 0) & (dearer <= budget - spent(index)), gain, 0.0)
        if not worth.any():
            return candidates[points, index]
        group, point, k = np.unravel_index(np.argmax(worth), worth.shape)
        index[group, point] = k
