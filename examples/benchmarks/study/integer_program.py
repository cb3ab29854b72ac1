"""Bit-widths of least added loss within a budget, by integer linear programming.

As HAWQ-V3 does it (Yao et al. 2021, "HAWQ-V3: Dyadic Neural Network Quantization", arXiv 2011.10680),
with the solver HiGHS in scipy.
"""

import itertools

import numpy as np
from scipy import optimize

# The solver tells objectives apart by an absolute difference: they are scaled to this largest one.
_LARGEST_OBJECTIVE = 1e4
_TINY = 1e-20
_SOLVER = {"mip_rel_gap": 1e-6, "time_limit": 120.0}
# How often the program is solved anew until a file uses all but this share of the budget.
_ROUNDS, _ROOM = 12, 0.002


def solve(costs, weights, activations, budget, tied=False):
    """Returns the bits of least total sensitivity whose cost, as of a file, is within a budget.

    Args:
        costs: `CostModel`, measured.
        weights, activations: `{bits: added loss}` of each point, as of `sensitivities`.
        budget: Largest cost, in the unit of `costs.kind`.
        tied: Whether a kernel has the bits of what its layer reads, where these are decided.

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

    # A file's tensors share a compressor, so that they take other bytes than the table has: look
    # for the largest limit of the table that keeps the file within the budget.
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

    A layer has a binary for each pair of bits of its kernel and its input: bit operations, which
    are their product, are linear in these. Layers that read the same activation agree on it through
    binaries of its own.

    Args:
        costs, weights, activations, tied: As of `solve`.
        limit: Largest cost by `CostModel.exact`, in the unit of its kind.

    Returns:
        `(weight bits, activation bits)`, or None if nothing is within the limit.
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
