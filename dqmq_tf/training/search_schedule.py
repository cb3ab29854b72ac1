"""Decides when the bits are searched, settled and checked against the budget during `fit`."""

import math
import warnings
from typing import Any

import keras

from dqmq_tf.policy.policy_state import SETTLED
from dqmq_tf.policy.seen_embeddings import CAPACITY, PER_BATCH

# The share of a byte budget that the check during the fine-tuning allows: the bytes still drift a
# little after it.
_CHECKED_SHARE = 0.995


class SearchSchedule(keras.callbacks.Callback):
    """Starts the search of a `DQMQModel`, settles its bits, and keeps them within the budget.

    Only steps that are actually trained count: epochs before `initial_epoch` and samples held back
    for validation do not, and `fit(epochs=0)` has none. A training that is resumed with the weights
    and the epoch of an interruption continues the schedule from there.

    Args:
        settle: The share of the training after which the bits are fixed for the fine-tuning.
        epochs, steps: The number of epochs and of steps per epoch of this `fit`. They are used if
            the user passes a `CallbackList` that does not know them.
    """

    def __init__(self, settle: float, epochs: int = 1, steps: int | None = None) -> None:
        super().__init__()
        self.settle, self._epochs, self._steps = settle, epochs, steps
        self._begun = False
        # The epoch with which the search began.
        self._first_epoch = 0

    @property
    def _training(self) -> Any:
        return self.model._training

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        training = self._training
        if not self._begun:
            # A callback may have restored a backup by now, so the first epoch and the phase are
            # known only here.
            self._begun = True
            self._begin(epoch)
        elif training.is_searching:
            training.measure()
        self._first_step_of_epoch = epoch * (self.steps or 0)
        if not self.steps:
            self._pace(epoch)

    def _pace(self, epoch: int) -> None:
        """Settles the bits and sets the learning rates by epochs: the number of steps is unknown."""
        training = self._training
        if training.is_searching:
            done, planned = epoch - self._first_epoch, self.epochs - self._first_epoch
            self._settled_epoch = epoch
            if done >= self.settle * planned:
                training.settle()
        faded = (epoch - self._settled_epoch) / (self.epochs - self._settled_epoch)
        training.set_rate(training.total_steps, faded)

    def _begin(self, epoch: int) -> None:
        """Starts or resumes the schedule at the first epoch that is trained."""
        training = self._training
        self._training.refresh_functions()
        self.epochs = (self.params or {}).get("epochs") or self._epochs
        self.steps = (self.params or {}).get("steps") or self._steps
        steps = self.steps or 0
        self._settled_epoch = epoch
        self.total, first_step = steps * self.epochs, steps * epoch
        steps_searched = training.steps_searched
        resumed = epoch > 0 and steps > 0 and training.total_steps == self.total
        if training.is_searching:
            resumed = resumed and first_step <= steps_searched <= first_step + steps
            if not steps:
                # `plan` expects as many steps for each epoch as those before have had.
                planned = training.total_steps * epoch / self.epochs
                resumed = planned > 0 and math.isclose(steps_searched, planned, rel_tol=1e-5)
            self._first_epoch = 0 if resumed else epoch
            start = 0 if resumed else first_step
            if resumed:
                training.measure()
            else:
                training.begin(self.total - first_step)
            self.settled_at = start + self.settle * (self.total - start)
        else:
            self.settled_at = (
                steps_searched if resumed and steps_searched <= first_step + steps else first_step
            )
        training.set_rate(self.total)
        # Check the budget again half-way through the fine-tuning, so that a layer that loses a bit
        # can still adapt. Budgets in operations are checked as soon as every stored embedding comes
        # from the final encoder.
        delay = (self.total - self.settled_at) / 2
        if not training.parts.costs.in_bytes:
            delay = min(delay, CAPACITY // PER_BATCH)
        check_at = self.settled_at + delay
        self.check_at = (
            check_at if steps and (training.is_searching or check_at >= first_step) else None
        )

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        training = self._training
        if not self.steps:
            return
        if training.is_searching:
            if training.progress() >= self.settle:
                training.settle()
            return
        step = self._first_step_of_epoch + batch
        faded = (step - self.settled_at) / max(self.total - self.settled_at, 1)
        training.set_rate(self.total, min(max(faded, 0.0), 1.0))
        if self.check_at is not None and step >= self.check_at:
            training.keep_budget(_CHECKED_SHARE)
            self.check_at = None

    def plan(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Plans a search of unknown length at the end of an epoch, before a backup is saved."""
        training = self._training
        if not self.steps and training.is_searching:
            steps_per_epoch = training.steps_searched / (epoch + 1 - self._first_epoch)
            planned = steps_per_epoch * (self.epochs - self._first_epoch)
            training.parts.policy.search_total.assign(planned)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if not self._begun:
            return
        # An earlier callback may have restored weights of another phase.
        self._training.refresh_functions()
        training = self._training
        if training.is_searching:
            # A training of one or two steps ends before the bits can settle, without a warning.
            if not self.steps or training.progress() < self.settle:
                warnings.warn(self._advice(), stacklevel=2)
            training.settle()
        if training.parts.policy.phase == SETTLED:
            training.keep_budget()

    def _advice(self) -> str:
        """Returns the warning that the bits were fixed without fine-tuning, and what to do."""
        if not self.steps:
            return (
                "The length of the data is unknown, so the bit-widths were fixed only at the end of "
                "fit, without fine-tuning. Pass steps_per_epoch, or call fit once more."
            )
        return (
            f"The weights at the end of fit are from {100 * self._training.progress():.0f} % of the "
            f"training, but the bit-widths are fixed only at {100 * self.settle:.0f} %. Either fit "
            "was stopped early, or a callback restored earlier weights. The bit-widths were fixed "
            "now, without fine-tuning. Call fit once more to fine-tune, or let callbacks act only "
            "after the search, for example with EarlyStopping(start_from_epoch=...)."
        )
