"""Finds the bit-widths that add least to the loss within a budget, by integer linear programming.

This is the method of HAWQ-V3 (Yao et al. 2021, "HAWQ-V3: Dyadic Neural Network Quantization", arXiv
2011.10680), with the solver HiGHS in SciPy.
"""

import itertools

import numpy as np
from scipy import optimize

# The solver compares objectives by absolute differences, so they are scaled to this maximum.
_LARGEST_OBJECTIVE = 1e4
_TINY = 1e-20
_SOLVER = {"mip_rel_gap": 1e-6, "time_limit": 120.0}
# The program is solved up to _ROUNDS times, until at most the share _ROOM of the budget is unused.
_ROUNDS, _ROOM = 12, 0.002


def solve(costs, weights, activations, budget, tied=False):
    """Returns the bits with the least added loss for which the file stays within a budget.

    Args:
        costs: A measured `CostModel`.
        weights, activations: `{bits: added loss}` of each point, from `hawq.sensitivities`.
        budget: Largest cost, in the unit of `costs.kind`.
        tied: Whether a kernel has the same bits as the input of its layer, where that has a choice of
            bits.

    Returns:
        `{point name: bits}`.

    Raises:
        ValueError: If the budget is below the smallest possible cost.
    """
    best = [min(row) for row in weights], [min(row) for row in activations]
    smallest = costs.of_file(*best)
    if smallest > budget:
        raise ValueError(
            f"Budget {costs.kind}={budget:,g} is below the smallest possible: with every decision "
            f"point at its fewest bits the cost is {smallest:,.6g}. Raise the budget."
        )

    def added(bits):
        return sum(row[b] for row, b in zip([*weights, *activations], [*bits[0], *bits[1]]))

    # In a file all tensors are compressed together, so they take other numbers of bytes than the table
    # says. Find the largest limit for the table with which the file stays within the budget.
    low, high = costs.exact(*best), np.inf
    limit = max(budget, low)
    for _ in range(_ROUNDS):
        bits = choose(costs, weights, activations, limit, tied)
        if bits is None:
            break
        found = costs.of_file(*bits)
        if found <= budget:
            best, low = min(best, bits, key=added), limit
        else:
            high = min(limit, costs.exact(*bits))
        room = budget - found
        if room >= 0 and (room <= _ROOM * budget or found == costs.exact(*bits)):
            break
        limit = limit + room if low < limit + room < high else (low + high) / 2
    names = [*costs.weights, *(costs.activations[i] for i in costs.decided)]
    return {point.name: int(b) for point, b in zip(names, [*best[0], *best[1]])}


def choose(costs, weights, activations, limit, tied=False):
    """Solves the integer program.

    Each layer has a binary variable for each pair of bits of its kernel and its input. Bit operations,
    the product of these bits, are linear in the variables. Each activation has binary variables too,
    which make the layers that read it agree on its bits.

    Args:
        costs, weights, activations, tied: See `solve`.
        limit: Largest cost by `CostModel.exact`, in the unit of its kind.

    Returns:
        `(weight bits, activation bits)`, or None if no choice is within the limit.
    """
    limit -= costs.constant()
    if costs.kind == "mean_bit_width":
        limit = limit**2 * costs.macs.sum()
    if limit <= 0:
        return None
    readers = list(enumerate(costs.input_column))
    inputs = [activations[j] if j >= 0 else [costs.input_bits[i]] for i, j in readers]
    pairs = [
        (i, b, c)
        for i, j in readers
        for b, c in itertools.product(weights[i], inputs[i])
        if b == c or not tied or j < 0
    ]
    alone = [(j, c) for j, row in enumerate(activations) for c in row]
    added = np.array([weights[i][b] for i, b, _ in pairs] + [activations[j][c] for j, c in alone])
    spent = [costs.table[i][b] if costs.in_bytes else costs.macs[i] * b * c for i, b, c in pairs]
    rows = [[k == i for k, _, _ in pairs] + [0] * len(alone) for i, _ in readers]
    rows += [[0] * len(pairs) + [k == j for k, _ in alone] for j in range(len(activations))]
    shared = [(i, j, c) for i, j in readers if j >= 0 for c in inputs[i]]
    right = np.repeat([1.0, 0.0], [len(rows), len(shared)])
    rows += [
        [k == i and bits == c for k, _, bits in pairs] + [-(entry == (j, c)) for entry in alone]
        for i, j, c in shared
    ]
    result = optimize.milp(
        added * (_LARGEST_OBJECTIVE / max(added.max(), _TINY)),
        integrality=np.ones(len(added)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(np.array(rows, "float64"), right, right),
            optimize.LinearConstraint([np.array(spent + [0.0] * len(alone)) / limit], ub=1.0),
        ],
        options=_SOLVER,
    )
    if result.x is None:
        return None
    chosen = [entry[1] for entry, x in zip(pairs + alone, result.x) if x > 0.5]
    return chosen[: len(weights)], chosen[len(weights) :]
