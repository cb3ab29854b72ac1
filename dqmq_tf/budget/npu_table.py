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


def activation_table(costs: CostModel, narrow: NpuCost, wide: NpuCost) -> np.ndarray:
    """Returns how many more cycles each operator takes if one of its activations has 16 bits.

    An operator has one type of activations. It runs in int16 if any of the activations that it reads
    and computes has 16 bits, and then its cycles hardly depend on how many of them have.

    Args:
        costs: The `CostModel`, for its activation points.
        narrow: What Vela estimates for the file with the fewest activation bits.
        wide: The same with the most.

    Returns:
        A float32 array with a row for each such operator: 1 for each activation that is decided and
        that the operator reads or computes, else 0, and the additional cycles in the last column.
    """
    column_of = {
        tensor_key(tensor, inner): column
        for column, point in enumerate(costs.decided)
        for tensor in costs.activations[point].tensors
        for inner in (False, True)
    }
    before = {operator.name: operator.cycles for operator in narrow.operators}
    rows = []
    for operator in wide.operators:
        columns = [column_of[key] for key in operator.tensors if key in column_of]
        cycles = operator.cycles - before.get(operator.name, 0)
        if columns and cycles > 0:
            row = np.zeros(len(costs.decided) + 1, "float32")
            row[columns], row[-1] = 1.0, cycles
            rows.append(row)
    return np.array(rows, "float32").reshape(-1, len(costs.decided) + 1)
