"""Chooses which activations of 8 or 16 bits have 16, within a budget in cycles.

An operator runs in int16 if one of its activations has 16 bits. Lowering a single activation may
therefore save nothing, while lowering all activations of an operator does. A greedy step changes a
single activation or all those of an operator, whichever loses least, or gains most, per cycle.
"""

from collections.abc import Callable

import numpy as np

_NARROW, _WIDE = 8, 16


def allocate(
    levels: np.ndarray,
    tops: np.ndarray,
    sets: np.ndarray,
    cost: Callable[[np.ndarray], float],
    limit: float,
) -> np.ndarray:
    """Returns the activation bits of a file.

    Args:
        levels: The level that the policy gives to each activation, shape `[decided]`. The loss that
            an activation adds at 8 bits is taken as proportional to `4**level`.
        tops: The most bits of each activation, shape `[decided]`.
        sets: The activations of each operator, a bool array of shape `[operators, decided]`.
        cost: A function that returns the cost of a file with activation bits of shape `[decided]`.
        limit: The largest allowed cost.

    Returns:
        An int array of shape `[decided]`. Its cost exceeds the limit only if the lowest bits do.
    """
    moves = np.concatenate([sets, np.eye(len(levels), dtype=bool)])
    value = 4.0 ** (levels - _NARROW)
    bits = np.where((levels - _NARROW > 0.5) & (tops == _WIDE), _WIDE, _NARROW)

    def best(target: int, spent: float) -> tuple[np.ndarray, float] | None:
        """Returns the bits after the best move to `target` bits and their cost, or None."""
        found, best_ratio = None, 0.0
        for members in moves:
            changed = members & (bits != target) & (tops == _WIDE)
            if not changed.any():
                continue
            after = np.where(changed, target, bits)
            change = abs(cost(after) - spent)
            if target == _WIDE:
                if cost(after) > limit:
                    continue
                ratio = value[changed].sum() / max(change, 1e-6)
            else:
                ratio = change / value[changed].sum()
            if ratio > best_ratio:
                found, best_ratio = after, ratio
        return None if found is None else (found, cost(found))

    spent = cost(bits)
    while spent > limit:
        move = best(_NARROW, spent)
        if move is None:
            return np.full_like(bits, _NARROW)
        bits, spent = move
    while (move := best(_WIDE, spent)) is not None:
        bits, spent = move
    return bits
