"""The table of what each layer costs on the NPU at each bit-width, measured by Vela.

A layer's flash depends on its own weights, and its cycles hardly on those of others. One file for each
bit-width, with all weights at that bit-width, therefore measures all layers. Vela takes about a
second for each. What the layers of a file influence in each other, such as weights that Vela loads
ahead, becomes right as files with the bits in question are measured.
"""

from collections.abc import Callable, Sequence

import numpy as np

from dqmq_tf.budget.costs import CostModel
from dqmq_tf.graph.decision_points import WeightPoint
from dqmq_tf.lowering.builder import tensor_key
from dqmq_tf.lowering.npu_cost import NpuCost


def measured_table(
    costs: CostModel, measure: Callable[[np.ndarray], NpuCost]
) -> tuple[list[dict[int, float]], float]:
    """Returns the cost of each weight point at each bit-width, and that of the rest of the file.

    Args:
        costs: The `CostModel` of a budget that Vela measures.
        measure: A function that returns what Vela estimates for weight bits of shape `[Pw]`.

    Returns:
        `(table, constant)`. With the fewest bits, their sum is exactly what Vela estimates.
    """
    table: list[dict[int, float]] = [{} for _ in costs.weights]
    levels = sorted({b for point in costs.weights for b in point.bit_widths}, reverse=True)
    constant = 0.0
    for level in levels or [8]:
        bits = [min(p.bit_widths, key=lambda b: (abs(b - level), b)) for p in costs.weights]
        cost = measure(np.array(bits, "int64"))
        of_weights = costs_of(costs.weights, cost, costs.kind)
        for row, b, measured in zip(table, bits, of_weights):
            row[b] = measured
        constant = cost.file[costs.kind] - sum(of_weights)
    return [dict(sorted(row.items())) for row in table], constant


def costs_of(points: Sequence[WeightPoint], cost: NpuCost, kind: str) -> list[float]:
    """Returns the part of each weight point in what Vela estimates for a file."""
    none = {kind: 0}
    return [float(cost.weights.get((p.path, p.variable), none)[kind]) for p in points]


def activation_patterns(costs: CostModel) -> list[list[int]]:
    """Returns the activation bits of the files that `activation_table` needs, each `[decided]`.

    They are the fewest, the most, and two in which the tensors before and after an operator differ,
    as far as they alternate.
    """
    points = [costs.activations[i] for i in costs.decided]
    patterns = [costs.fewest_activation_bits(), costs.most_activation_bits()]
    for parity in (0, 1):
        ends = (max, min) if parity else (min, max)
        patterns.append([ends[i % 2](p.bit_widths) for i, p in enumerate(points)])
    return patterns


def activation_table(costs: CostModel, measured: Sequence[tuple[list[int], NpuCost]]) -> np.ndarray:
    """Returns how the cycles of operators depend on the activations that have 16 bits.

    An operator with inputs of 16 bits takes longer. If its output has 8 bits, it also narrows the
    output, which can take longer than the operator itself. To widen inputs of 8 bits for an output of
    16 takes little.

    Args:
        costs: The `CostModel`, for its activation points.
        measured: `(activation bits [decided], what Vela estimates)` of files with the bits that
            `activation_patterns` returns, in that order.

    Returns:
        A float32 array `[rows, 2 * decided + 1]`. A row adds the cycles in its last column if any of
        the activations marked in the first columns has 16 bits and none of those marked in the next
        columns has.
    """
    count = len(costs.decided)
    column_of: dict[str, int] = {}
    fixed_wide: set[str] = set()
    columns = {point: column for column, point in enumerate(costs.decided)}
    for i, point in enumerate(costs.activations):
        keys = [tensor_key(t, inner) for t in point.tensors for inner in (False, True)]
        if i in columns:
            column_of |= dict.fromkeys(keys, columns[i])
        elif max(point.bit_widths) > 8:
            fixed_wide.update(keys)
    cycles: dict[str, dict[tuple[bool, bool], int]] = {}
    for bits, cost in measured:
        for operator in cost.operators:
            is_wide = {
                key: key in fixed_wide or key in column_of and bits[column_of[key]] > 8
                for key in operator.tensors
            }
            sources = operator.tensors - {operator.name}
            state = any(is_wide[key] for key in sources), is_wide.get(operator.name, False)
            cycles.setdefault(operator.name, {}).setdefault(state, operator.cycles)
    rows: list[np.ndarray] = []

    def add(any_of: set[int], none_of: set[int], extra: int) -> None:
        if any_of and extra:
            row = np.zeros(2 * count + 1, "float32")
            row[list(any_of)] = 1.0
            row[[count + column for column in none_of]] = 1.0
            row[-1] = extra
            rows.append(row)

    for operator in measured[0][1].operators:
        seen = cycles[operator.name]
        sources = operator.tensors - {operator.name}
        inputs = {column_of[key] for key in sources if key in column_of}
        output = {column_of[operator.name]} if operator.name in column_of else set()
        narrow = seen.get((False, False), min(seen.values()))
        widening = seen.get((False, True), narrow) - narrow
        if sources & fixed_wide:
            both = seen.get((True, True), 0)
            add(output, set(), both - seen[True, False] if both and (True, False) in seen else 0)
            continue
        wide = seen.get((True, True), seen.get((True, False), narrow))
        narrowing = seen.get((True, False), wide) - wide
        add(inputs, set(), wide - narrow)
        if operator.name not in fixed_wide:
            add(inputs, output, narrowing)
        add(output, inputs, widening)
    return np.array(rows, "float32").reshape(-1, 2 * count + 1)
