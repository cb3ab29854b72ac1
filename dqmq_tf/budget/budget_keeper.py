"""Bits are fixed to the budget, and files are made to see that they keep it.

`dqmq_tf.budget.assignment` chooses bits by a table of what each kernel costs. A file has more in it than its
kernels, and weights compress otherwise beside others than alone: for budgets in bytes the model's
file is made, and what it weighs corrects the table.
"""

import numpy as np
from keras import ops

from dqmq_tf.budget import assignment
from dqmq_tf.graph import trace
from dqmq_tf.layers.trained_precision import precision_of
from dqmq_tf.lowering.bias_grid import snap_biases
from dqmq_tf.lowering.write_file import measure_file
from dqmq_tf.policy.bit_width_policy import SEARCH

# Files made, at most, for one choice of bits.
_MAX_FILES = 2
# Share of the budget from which a frozen model's file is weighed.
_MEASURED_FROM = 0.98


class BudgetKeeper:
    """Fixes the bits of a `DQMQModel`.

    Args:
        model: The model.
        seen: Quality embeddings `[N, d]` to keep the budget on; not used to weigh.
    """

    def __init__(self, model, seen):
        self._model, self._seen = model, seen
        self._policy, self._costs, self._budget = model.policy, model.costs, model.budget

    def start(self):
        """Puts the means at the bits of a file, so that the search begins where it is to end."""

        def fix():
            self._model.start_at_budget()
            return ops.convert_to_numpy(self._policy.mean)

        self._weighed(fix)

    def settle(self):
        """Fixes weight bits for the fine-tuning."""
        count = self._model.config.profiles

        def fix():
            assignment.settle(self._policy, self._costs, self._budget, count, self._seen)
            return self._assigned()[0]

        self._weighed(fix)

    def _weighed(self, fix):
        """Calls `fix`, which returns bits `[P]`, until it does so knowing what their file weighs."""
        self._model.measure_cost()
        bits = fix()
        for _ in range(_MAX_FILES):
            if not self._learn_file(bits):
                break
            weighed, bits = bits, fix()
            if np.array_equal(bits, weighed):
                break

    def keep(self, share):
        """Brings settled bits back to the budget.

        Args:
            share: Of a budget in bytes that they may take.
        """
        if not self._costs.in_bytes:
            assignment.shift_to_budget(self._policy, self._costs, self._budget, self._seen)
            return
        self._model.measure_cost()
        self._learn_file(self._assigned()[0])
        if self.largest_file() > share * self._budget.value:
            self._lower(share)

    def freeze(self, count):
        """Fixes all bits to profiles, and the biases of one to the grid of a file.

        Args:
            count: Number of profiles.
        """
        self._model.measure_cost()
        was = self._policy.phase
        self._freeze(count)
        if was == SEARCH and self._learn_file(self._assigned()[0]):
            self._policy.phase = SEARCH
            self._freeze(count)
        self._snap()
        # Training and rounded biases changed how well the file compresses: near the budget, weigh it.
        near = self.largest_file() > _MEASURED_FROM * self._budget.value
        if near and self._learn_file(self._assigned()[0]):
            if self.largest_file() > self._budget.value:
                self._lower(1.0)
                self._freeze(count)
                self._snap()

    def _freeze(self, count):
        assignment.freeze(self._policy, self._costs, self._budget, count, self._seen)

    def _lower(self, share):
        """Settles anew, at no more bits than are assigned, to a share of the budget."""
        count, assigned = self._policy.profiles, self._assigned()
        assignment.settle(
            self._policy, self._costs, self._budget, count, self._seen, assigned, share
        )

    def _snap(self):
        # Profiles share the biases but not the weight steps, so only one can be on its grid.
        if self._policy.profiles == 1:
            snap_biases(self._model._parts.body, self._model.precision())

    def _learn_file(self, bits):
        """Makes the file of bits `[P]`, to learn what it takes beside its weights.

        Returns:
            Whether that is known.
        """
        if not self._costs.in_bytes:
            return False
        parts, decided = self._model._parts, self._policy.activation_count
        found = measure_file(
            trace(self._model.float_model()),
            precision_of(parts, bits),
            parts.target,
            self._policy.get_config(),
        )
        if found is None:
            return False
        self._costs.learn_file(found[self._costs.kind], bits[decided:], bits[:decided])
        return True

    def largest_file(self):
        """Returns the bytes of the largest profile's file by the cost model; 0 where bytes are not counted."""
        if not self._costs.in_bytes:
            return 0.0
        decided = self._policy.activation_count
        return max(self._costs.of_file(row[decided:], row[:decided]) for row in self._assigned())

    def _assigned(self):
        """Bits `[profiles, P]`."""
        return ops.convert_to_numpy(self._policy.assigned)[: self._policy.profiles]
