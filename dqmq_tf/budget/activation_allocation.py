"""Chooses which activations of 8 or 16 bits have 16, within a budget in cycles.

What 16 bits cost depends on the neighbors: an operator whose inputs have 16 bits and whose output has 8
also has to narrow its output. So a single activation may cost more than several together.
"""

from collections.abc import Callable

import numpy as np

from dqmq_tf.precision import INT8_BITS, INT16_BITS

# Up to so many activations, all choices are compared.
_MOST_COMPARED = 12


def allocate(
    levels: np.ndarray,
    tops: np.ndarray,
    sets: np.ndarray,
    costs: Callable[[np.ndarray], np.ndarray],
    limit: float,
) -> np.ndarray:
    """Returns the activation bits of a file: the most valuable that meet the limit.

    Args:
        levels: The level that the policy gives to each activation, shape `[decided]`. 16 bits for it
            are worth `4**level`.
        tops: The most bits of each activation, shape `[decided]`.
        sets: Activations whose bits change together when not all choices are compared, a bool array
            of shape `[sets, decided]`.
        costs: A function that returns the costs `[N]` of files with activation bits of shape
            `[N, decided]`.
        limit: The largest allowed cost.

    Returns:
        An int array of shape `[decided]`, all 8 if nothing else meets the limit.
    """
    value = 4.0 ** (levels - INT8_BITS)
    free = np.flatnonzero(tops == INT16_BITS)
    current = np.full(len(levels), INT8_BITS)
    if len(free) <= _MOST_COMPARED:
        subsets = (np.arange(2 ** len(free))[:, None] >> np.arange(len(free))) & 1
        choices = np.tile(current, (len(subsets), 1))
        choices[:, free] = np.where(subsets, INT16_BITS, INT8_BITS)
        return _best(choices, value, costs, limit, current)
    moves = [*sets, *np.eye(len(levels), dtype=bool)]
    rounded = np.where((levels - INT8_BITS > 0.5) & (tops == INT16_BITS), INT16_BITS, INT8_BITS)
    choices = np.stack([rounded])
    while True:
        best = _best(choices, value, costs, limit, current)
        if np.array_equal(best, current) and len(choices) > 1:
            return current
        current = best
        changed = [
            np.where(members & (tops == INT16_BITS), bits, current)
            for members in moves
            for bits in (INT8_BITS, INT16_BITS)
        ]
        choices = np.stack([current, *changed])


def _best(
    choices: np.ndarray,
    value: np.ndarray,
    costs: Callable[[np.ndarray], np.ndarray],
    limit: float,
    otherwise: np.ndarray,
) -> np.ndarray:
    """Returns the most valuable choice that meets the limit, the cheapest one at a tie."""
    spent = costs(choices)
    is_allowed = spent <= limit
    if not is_allowed.any():
        return otherwise
    worth = np.where(is_allowed, ((choices == INT16_BITS) * value).sum(axis=1), -np.inf)
    order = np.lexsort((spent, -np.round(worth, 6)))
    return choices[order[0]]
