"""Fixes bits to the budget, and writes files to see that they keep it.

`dqmq_tf.budget.assignment` chooses bits by a table of what each kernel costs. A file holds more than
kernels, and weights compress differently together than alone. For budgets in bytes, the keeper
therefore writes the model's file and corrects the table by what that file takes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from dqmq_tf.budget import assignment, default_budget
from dqmq_tf.config import Budget
from dqmq_tf.errors import ConversionError
from dqmq_tf.graph import trace
from dqmq_tf.graph.rebuild import copy_model
from dqmq_tf.layers.trained_precision import precision_of
from dqmq_tf.lowering.bias_grid import snap_biases
from dqmq_tf.lowering.write_file import measure_file
from dqmq_tf.policy.policy_state import SEARCH

# Files written, at most, for one choice of bits.
_MAX_FILES = 2
# Share of the budget from which a frozen model's file is measured.
_MEASURED_FROM = 0.98


class BudgetKeeper:
    """Fixes the bits of a model within its budget.

    Args:
        parts: The `ModelParts`; policy, cost model, budget and layers are read from it each time.

    Attributes:
        refusal: Why the last file could not be written, or None.
    """

    def __init__(self, parts: Any) -> None:
        self._parts = parts
        self.refusal: str | None = None

    def measure(self) -> None:
        """Measures what each bit-width of each kernel costs now, for budgets in bytes."""
        costs, policy = self._parts.costs, self._parts.policy
        wrappers, points = self._parts.wrappers, costs.weights
        costs.measure(lambda i, bits: wrappers[points[i].path].integers(points[i].variable, bits))
        if costs.in_bytes:
            policy.byte_table.assign(costs.table_array(policy.bit_widths))
            costs.file_constant = policy.file_constant

    def set_budget(self, budget: Budget | None) -> None:
        """Sets the budget, or the default one, against the file that the model really becomes.

        Args:
            budget: The user's budget, or None.

        Raises:
            ValueError: If the budget is below the smallest possible cost.
        """
        parts, costs = self._parts, self._parts.costs
        self.measure()
        bits = default_budget.first_bits(budget, costs)
        if parts.target.deployable:
            found = self.write(np.array([*costs.most_activation_bits(), *bits]))
            if found is not None and costs.in_bytes:
                costs.learn_file(found[costs.kind], bits, [])
                parts.policy.file_constant = costs.file_constant
        parts.budget = default_budget.checked_budget(budget, costs)
        parts.budget_is_default = budget is None
        self.place_means()

    def place_means(self) -> None:
        """Moves the means to where they meet the budget, by what is known of the layers."""
        parts = self._parts
        means = assignment.starting_means(parts.policy, parts.costs, parts.budget)
        parts.policy.mean.assign(means)

    def start(self) -> None:
        """Moves the means to the bits of a file that meets the budget, before the search begins."""

        def fix() -> np.ndarray:
            self.place_means()
            return ops.convert_to_numpy(self._parts.policy.mean)

        if self._parts.costs.in_bytes:
            self._fix_until_measured(fix)

    def settle(self, seen: np.ndarray) -> None:
        """Fixes weight bits for the fine-tuning.

        Args:
            seen: Quality embeddings `[N, d]` on which the budget is kept.
        """
        parts = self._parts

        def fix() -> np.ndarray:
            count = parts.config.profiles
            assignment.settle(parts.policy, parts.costs, parts.budget, count, seen)
            return self._assigned()[0]

        self._fix_until_measured(fix)

    def keep(self, seen: np.ndarray, share: float = 1.0) -> None:
        """Brings settled bits back to the budget.

        Bytes drift while integers are trained. Bit operations are estimated again on what was seen
        since the bits were settled, as the encoder does not learn any more.

        Args:
            seen: Quality embeddings `[N, d]` on which the budget is kept.
            share: Share of a budget in bytes that may be used.
        """
        parts = self._parts
        if not parts.costs.in_bytes:
            assignment.shift_to_budget(parts.policy, parts.costs, parts.budget, seen)
            return
        self.measure()
        self._learn_file_overhead(self._assigned()[0])
        if self.largest_file() > share * parts.budget.value:
            self._settle_lower(seen, share)

    def freeze(self, seen: np.ndarray, count: int) -> None:
        """Fixes all bits to profiles. The biases of a single profile go to the grid of its file.

        Args:
            seen: Quality embeddings `[N, d]` that are clustered into profiles.
            count: Number of profiles.
        """
        parts, policy, budget = self._parts, self._parts.policy, self._parts.budget
        self.measure()
        phase = policy.phase
        self._freeze(seen, count)
        if phase == SEARCH and self._learn_file_overhead(self._assigned()[0]):
            policy.phase = SEARCH
            self._freeze(seen, count)
        self._snap_biases()
        # Training and bias rounding changed how well the file compresses, so measure it again when
        # it is close to the budget.
        close = self.largest_file() > _MEASURED_FROM * budget.value
        if close and self._learn_file_overhead(self._assigned()[0]):
            if self.largest_file() > budget.value:
                self._settle_lower(seen, 1.0)
                self._freeze(seen, count)
                self._snap_biases()
        if parts.budget_is_default and self.largest_file() > parts.budget.value:
            # Nobody asked for this budget, and no fewer bits are left to meet it.
            parts.budget = Budget(**{parts.costs.kind: self.largest_file()})

    def write(self, bits: np.ndarray) -> dict[str, int] | None:
        """Writes the file for bit-widths `[P]`, to learn its size.

        Returns:
            Its bytes by kind of budget, or None if the model cannot be written; `refusal` then
            says why.
        """
        parts = self._parts
        try:
            return measure_file(
                trace(copy_model(parts.body)),
                precision_of(parts, bits),
                parts.target,
                parts.policy.get_config(),
                parts.output_names,
            )
        except ConversionError as error:
            self.refusal = str(error)
            return None

    def largest_file(self) -> float:
        """Returns the bytes of the largest profile's file by the cost model, 0 for bit operations."""
        if not self._parts.costs.in_bytes:
            return 0.0
        count = self._parts.policy.activation_count
        of_file = self._parts.costs.of_file
        return max(of_file(row[count:], row[:count]) for row in self._assigned())

    def assigned_cost(self, seen: np.ndarray) -> float:
        """Returns the cost of the assigned bits, in the unit of the budget.

        Args:
            seen: Quality embeddings `[N, d]` over which bit operations are averaged.
        """
        parts = self._parts
        if parts.costs.in_bytes:
            return self.largest_file()
        return assignment.assigned_cost(parts.policy, parts.costs, seen)

    def _fix_until_measured(self, fix: Callable[[], np.ndarray]) -> None:
        """Calls `fix`, which returns bits `[P]`, until the overhead of the file at them is known."""
        self.measure()
        bits = fix()
        for _ in range(_MAX_FILES):
            if not self._learn_file_overhead(bits):
                break
            measured, bits = bits, fix()
            if np.array_equal(bits, measured):
                break

    def _freeze(self, seen: np.ndarray, count: int) -> None:
        parts = self._parts
        assignment.freeze(parts.policy, parts.costs, parts.budget, count, seen)

    def _settle_lower(self, seen: np.ndarray, share: float) -> None:
        """Settles again within a share of the budget, at no more bits than are assigned."""
        parts, assigned = self._parts, self._assigned()
        count = parts.policy.profiles
        assignment.settle(parts.policy, parts.costs, parts.budget, count, seen, assigned, share)

    def _snap_biases(self) -> None:
        # Profiles share the biases but not the weight steps, so only one can be on its grid.
        if self._parts.policy.profiles == 1:
            snap_biases(self._parts.body, precision_of(self._parts, self._assigned()[0]))

    def _learn_file_overhead(self, bits: np.ndarray) -> bool:
        """Writes the file for bits `[P]` and records the bytes that are not weights.

        Returns False if the model cannot be written, or if the budget is not in bytes.
        """
        costs, count = self._parts.costs, self._parts.policy.activation_count
        found = self.write(bits) if costs.in_bytes else None
        if found is None:
            return False
        costs.learn_file(found[costs.kind], bits[count:], bits[:count])
        self._parts.policy.file_constant = costs.file_constant
        return True

    def _assigned(self) -> np.ndarray:
        """Bits `[profiles, P]`."""
        policy = self._parts.policy
        return ops.convert_to_numpy(policy.assigned)[: policy.profiles]
