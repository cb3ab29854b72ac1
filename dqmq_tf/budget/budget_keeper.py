"""Fixes bits within the budget, and writes files to check that they fit.

`dqmq_tf.budget.assignment` chooses bits by a table with the cost of each kernel. A file holds more
than kernels, and weights compress differently together than alone. For budgets in bytes,
`BudgetKeeper` therefore writes the model's file and corrects the cost model by its measured size.
"""

from typing import Any

import numpy as np
from keras import ops

from dqmq_tf.budget import assignment, default_budget, npu_table
from dqmq_tf.budget.typical_values import typical_values
from dqmq_tf.config import Budget
from dqmq_tf.errors import ConversionError
from dqmq_tf.layers.trained_precision import has_precision, precision_of
from dqmq_tf.lowering.bias_grid import snap_biases
from dqmq_tf.lowering.float_template import FloatTemplate
from dqmq_tf.lowering.npu_cost import NpuCost, measure_on_npu, require_vela
from dqmq_tf.lowering.output_grid import raise_fine_steps
from dqmq_tf.lowering.write_file import firmware_bytes, write_unverified
from dqmq_tf.policy.policy_state import FROZEN, SEARCH, SETTLED
from dqmq_tf.terminal import stages

# The most files that are written when bits are settled. A second one is written if the estimate of
# the first was wrong by more than this share. It corrects a tenth as much, less than training adds.
_MAX_FILES, _CLOSE = 2, 0.06
# The same where Vela measures them, and the number of times that bits are lowered until they fit.
_MAX_VELA_RUNS = 5
# A frozen model's file is measured if its estimated size exceeds this share of the budget.
_MEASURED_FROM = 0.98
# By how much the file of an untrained network may grow, beside what `typical_values` has: numbers
# compress less well, and buffers are aligned otherwise.
_DRIFT = 1.01


class BudgetKeeper:
    """Fixes the bits of a model within its budget.

    Args:
        parts: The `ModelParts` of the model. Policy, cost model, budget and layers are read from it
            at each call, because the budget can change.

    Attributes:
        refusal: The reason why the last file could not be written, or None.
    """

    def __init__(self, parts: Any) -> None:
        self._parts = parts
        self.refusal: str | None = None
        self._npu_cost: NpuCost | None = None
        self._template = FloatTemplate()

    def measure(self) -> None:
        """Measures the bytes of each kernel at each bit-width, for budgets in bytes.

        Step sizes that training does not move follow the weights first.
        """
        self.fit_stale_steps()
        self._measure()

    def fit_stale_steps(self) -> None:
        """Fits the step sizes that suit the weights no more, except those of bits that are fixed."""
        parts = self._parts
        if parts.policy.phase == FROZEN:
            return
        used: dict[str, dict[str, list[int]]] = {path: {} for path in parts.wrappers}
        if parts.policy.phase == SETTLED:
            columns = self._assigned()[:, parts.policy.activation_count :].T
            for point, bits in zip(parts.costs.weights, columns):
                used[point.path][point.variable] = bits.tolist()
        for path, wrapper in parts.wrappers.items():
            wrapper.fit_steps(used[path])

    def set_budget(self, budget: Budget | None) -> None:
        """Sets the budget, or the default one, after measuring the file that the model becomes.

        Args:
            budget: The user's budget, or None.

        Raises:
            ValueError: If the budget is below the smallest possible cost.
        """
        parts, costs = self._parts, self._parts.costs
        self._learn_first_file(budget)
        parts.budget = default_budget.checked_budget(budget, costs)
        parts.budget_is_default = budget is None
        self.place_means()

    def _learn_first_file(self, budget: Budget | None) -> None:
        """Measures the file of a model whose bits are not settled, at bits near the budget."""
        parts, costs = self._parts, self._parts.costs
        self.measure()
        bits = default_budget.first_bits(budget, costs)
        with typical_values(parts):
            sizes = self.write(np.array([*costs.most_activation_bits(), *bits]))
        if sizes is not None and costs.in_bytes and not costs.on_npu:
            decoder_bytes = sizes["decoder_bytes"] if costs.kind == "size_bytes" else 0
            file_bytes = sizes[costs.kind] - decoder_bytes
            costs.learn_file(_DRIFT * file_bytes + decoder_bytes, bits, [])
            parts.policy.file_constant = costs.file_constant

    def meet_new_file(self) -> float | None:
        """Learns the size of the file of a model whose inputs got another shape.

        A default budget grows until settled bits keep it. Returns the bytes of the file at settled
        bits if they exceed the user's budget, or None.
        """
        parts, costs = self._parts, self._parts.costs
        if not costs.in_bytes or costs.on_npu:
            return None
        given = None if parts.budget_is_default else parts.budget
        if parts.policy.phase == SEARCH:
            self._learn_first_file(given)
            parts.budget = given or default_budget.checked_budget(None, costs)
            return None
        self.measure()
        self._learn_file_overhead(self._assigned()[0])
        largest = self.largest_file()
        if given is None and largest > parts.budget.value:
            parts.budget = Budget(**{costs.kind: largest / _MEASURED_FROM})
        return largest if largest > parts.budget.value else None

    def place_means(self) -> None:
        """Sets the policy's means to the bits that suit the layers and meet the budget."""
        parts = self._parts
        means = assignment.starting_means(parts.policy, parts.costs, parts.budget)
        parts.policy.mean.assign(means)

    def settle(self, seen: np.ndarray) -> None:
        """Fixes the weight bits for the fine-tuning.

        Their file is measured. They are fixed again, and if its size was not what was expected, the
        next file is measured as well.

        Args:
            seen: Quality embeddings of training data, shape `[N, d]`, on which the budget is met.
        """
        parts, costs = self._parts, self._parts.costs

        def fix() -> np.ndarray:
            count = parts.config.profiles
            assignment.settle(parts.policy, costs, parts.budget, count, seen)
            return self._assigned()[0]

        with stages("Choosing bits") as stage:
            stage("measuring each kernel at each bit-width")
            self.measure()
            bits = fix()
            for _ in range(_MAX_VELA_RUNS if costs.on_npu else _MAX_FILES):
                stage("measuring the file")
                expected = costs.constant()
                if not self._learn_file_overhead(bits):
                    break
                stage("within the budget")
                measured, bits = bits, fix()
                error = abs(costs.constant() - expected) / self.largest_file()
                is_close = error < _CLOSE and not costs.on_npu
                if is_close or np.array_equal(bits, measured):
                    break
        self._lower_until_it_fits(seen)

    def keep(self, seen: np.ndarray, share: float = 1.0) -> None:
        """Brings settled bits back within the budget.

        Bytes drift while the integers are trained. Bit operations are estimated again on the
        embeddings since the bits were settled, which come from the final encoder.

        Args:
            seen: Quality embeddings of training data, shape `[N, d]`, on which the budget is met.
            share: The share of a budget in bytes that may be used.
        """
        parts = self._parts
        if not parts.costs.in_bytes:
            assignment.shift_to_budget(parts.policy, parts.costs, parts.budget, seen)
            return
        self.measure()
        self._learn_file_overhead(self._assigned()[0])
        if self.largest_file() > parts.costs.share_of(parts.budget.value, share):
            self._settle_lower(seen, share)
        self._lower_until_it_fits(seen)

    def freeze(self, seen: np.ndarray, count: int) -> None:
        """Assigns all bits to profiles. With one profile, biases are rounded to the grid of its file.

        Args:
            seen: Quality embeddings, shape `[N, d]`, that are clustered into profiles.
            count: The number of profiles.
        """
        parts, policy, budget = self._parts, self._parts.policy, self._parts.budget
        self.measure()
        phase = policy.phase
        self._freeze(seen, count)
        if phase == SEARCH and self._learn_file_overhead(self._assigned()[0]):
            policy.phase = SEARCH
            self._freeze(seen, count)
        self._fit_to_file()
        # Training and bias rounding changed how well the file compresses, so measure it again when
        # it is close to the budget.
        is_close = self.largest_file() > _MEASURED_FROM * budget.value
        if is_close and self._learn_file_overhead(self._assigned()[0]):
            if self.largest_file() > budget.value:
                self._settle_lower(seen, 1.0)
                self._freeze(seen, count)
                self._fit_to_file()
        self._lower_until_it_fits(seen, count)
        if parts.budget_is_default and self.largest_file() > parts.budget.value:
            # The user did not ask for this budget, and fewer bits are not possible: raise it.
            parts.budget = Budget(**{parts.costs.kind: self.largest_file()})

    def write(self, bits: np.ndarray) -> dict[str, int] | None:
        """Writes the file of the model to measure its size.

        Args:
            bits: The bit-widths of the file, shape `[P]`.

        Returns:
            What `firmware_bytes` or `NpuCost.file` says. None if the target has no files, or if the
            model cannot be written; `refusal` then holds the reason.
        """
        parts = self._parts
        if not parts.target.deployable:
            return None
        try:
            written = write_unverified(
                parts.graph,
                precision_of(parts, bits),
                parts.target,
                parts.policy.get_config(),
                parts.output_names,
                self._template,
            )
            if parts.costs.on_npu:
                self._npu_cost = measure_on_npu(written, parts.target)
                return self._npu_cost.file
            return firmware_bytes(written.file.sealed(), parts.target)
        except ConversionError as error:
            self.refusal = str(error)
            return None

    def largest_file(self) -> float:
        """Returns the estimated bytes of the largest profile's file, 0 for budgets in operations."""
        if not self._parts.costs.in_bytes:
            return 0.0
        count = self._parts.policy.activation_count
        of_file = self._parts.costs.of_file
        return max(of_file(row[count:], row[:count]) for row in self._assigned())

    def assigned_cost(self, seen: np.ndarray) -> float:
        """Returns the cost of the assigned bits, in the unit of the budget.

        Args:
            seen: Quality embeddings, shape `[N, d]`, over which bit operations are averaged.
        """
        parts = self._parts
        if parts.costs.in_bytes:
            if parts.costs.table is None:  # The model was loaded or copied.
                self._measure()
            return self.largest_file()
        return assignment.assigned_cost(parts.policy, parts.costs, seen)

    def _freeze(self, seen: np.ndarray, count: int) -> None:
        """Assigns all bits to profiles by the current cost model."""
        parts = self._parts
        assignment.freeze(parts.policy, parts.costs, parts.budget, count, seen)

    def _settle_lower(self, seen: np.ndarray, share: float) -> None:
        """Settles again within a share of the budget, with at most the bits that are assigned."""
        parts, ceiling = self._parts, self._assigned()
        count = parts.policy.profiles
        assignment.settle(parts.policy, parts.costs, parts.budget, count, seen, ceiling, share)

    def _fit_to_file(self) -> None:
        """Raises output steps that no kernel can compute, and rounds the biases of one profile."""
        parts = self._parts
        # A model that no file can hold has no grids.
        if not has_precision(parts):
            return
        raise_fine_steps(parts, lambda: [precision_of(parts, row) for row in self._assigned()])
        # Profiles share the biases but not the weight steps, so only one grid can be used.
        if parts.policy.profiles == 1:
            snap_biases(parts.body, precision_of(parts, self._assigned()[0]))

    def _learn_file_overhead(self, bits: np.ndarray) -> bool:
        """Writes the file for these bits `[P]` and records its overhead, the bytes that are not weights.

        Returns False if the model cannot be written or the budget is not in bytes.
        """
        costs, count = self._parts.costs, self._parts.policy.activation_count
        sizes = self.write(bits) if costs.in_bytes else None
        if sizes is None:
            return False
        if self._npu_cost is not None:
            measured = npu_table.costs_of(costs.weights, self._npu_cost, costs.kind)
            for row, b, cost in zip(costs.measured_table, bits[count:], measured):
                row[int(b)] = cost
            self._show_tables()
        costs.learn_file(sizes[costs.kind], bits[count:], bits[:count])
        self._parts.policy.file_constant = costs.file_constant
        return True

    def _measure(self) -> None:
        """Does what `measure` does with the step sizes as they are."""
        costs, policy = self._parts.costs, self._parts.policy
        if costs.on_npu:
            self._measure_on_npu()
            return
        wrappers, points = self._parts.wrappers, costs.weights
        costs.measure(lambda i, bits: wrappers[points[i].path].integers(points[i].variable, bits))
        if costs.in_bytes:
            self._show_tables()
            costs.file_constant = policy.file_constant

    def _show_tables(self) -> None:
        """Gives the policy the cost of each weight point at each bit-width."""
        policy = self._parts.policy
        table, coded_table = self._parts.costs.bytes.arrays(policy.bit_widths)
        policy.byte_table.assign(table)
        policy.coded_byte_table.assign(coded_table)

    def _measure_on_npu(self) -> None:
        """Lets Vela measure each layer at each bit-width, once for a model.

        A model that was saved has the table in its policy.

        Raises:
            ImportError: If Vela is not installed.
            ValueError: If the model cannot be converted.
        """
        parts, costs, policy = self._parts, self._parts.costs, self._parts.policy
        if costs.table is not None:
            return
        stored = ops.convert_to_numpy(policy.byte_table)
        if stored.any():
            grid = policy.bit_widths.astype(int).tolist()
            rows = [dict(zip(grid, row.tolist())) for row in stored]
            costs.table = [{b: row[b] for b in p.bit_widths} for p, row in zip(costs.weights, rows)]
            costs.file_constant = policy.file_constant
            costs.activation_cycles = policy.activation_cycles
            return
        require_vela(costs.kind)
        usual = costs.most_activation_bits()
        if costs.counts_activations:
            usual = costs.fewest_activation_bits()

        def measured(bits: np.ndarray, activation_bits: list[int] = usual) -> NpuCost:
            if self.write(np.array([*activation_bits, *bits])) is None:
                raise ValueError(
                    f"Budget {costs.kind} needs a file that Vela compiles, but the model cannot be "
                    f"converted for target {parts.target.name!r}: {self.refusal}"
                )
            assert self._npu_cost is not None
            return self._npu_cost

        with typical_values(parts), stages("Measuring the layers on the NPU"):
            costs.table, costs.file_constant = npu_table.measured_table(costs, measured)
            if costs.counts_activations:
                bits = np.array([max(point.bit_widths) for point in costs.weights], "int64")
                patterns = npu_table.activation_patterns(costs)
                costs.activation_cycles = npu_table.activation_table(
                    costs, [(pattern, measured(bits, pattern)) for pattern in patterns]
                )
                policy.activation_cycles = costs.activation_cycles
        self._show_tables()
        policy.file_constant = costs.file_constant

    def _lower_until_it_fits(self, seen: np.ndarray, frozen_profiles: int | None = None) -> None:
        """Lowers assigned bits until Vela measures no more than the budget in each profile's file.

        Args:
            seen: Quality embeddings, shape `[N, d]`.
            frozen_profiles: The number of profiles to freeze again. None while bits are settled.
        """
        parts, costs = self._parts, self._parts.costs
        if not costs.on_npu:
            return
        for _ in range(_MAX_VELA_RUNS):
            before = self._assigned()
            over = [row for row in before if self._measured(row) > parts.budget.value]
            if not over:
                return
            # The table now holds what Vela measured for the file that is too large.
            self._learn_file_overhead(over[0])
            self._settle_lower(seen, 1.0)
            if frozen_profiles is not None:
                self._freeze(seen, frozen_profiles)
                self._fit_to_file()
            if np.array_equal(self._assigned(), before):
                return

    def _measured(self, bits: np.ndarray) -> float:
        """Returns what Vela measures for the file with these bits `[P]`."""
        sizes = self.write(bits)
        return 0.0 if sizes is None else sizes[self._parts.costs.kind]

    def _assigned(self) -> np.ndarray:
        """Returns the assigned bits, shape `[profiles, P]`."""
        policy = self._parts.policy
        return ops.convert_to_numpy(policy.assigned)[: policy.profiles]
