"""When the policy warms up, searches and settles within `fit`."""

import warnings
from typing import Any

import keras

from dqmq_tf.policy.policy_state import SETTLED
from dqmq_tf.policy.seen_embeddings import CAPACITY, PER_BATCH

# Bytes still drift a little in the second half of the fine-tuning.
_DRIFT = 0.995


class SearchSchedule(keras.callbacks.Callback):
    """Starts the search of a `DQMQModel`, settles its bits in time, and keeps them in the budget.

    Only steps that are trained count: epochs before `initial_epoch`, samples held back for
    validation, and `fit(epochs=0)` do not. A training that is resumed, with the weights and the
    epoch at which it was interrupted, goes on where it was.

    Args:
        settle: Share of the training after which the bits are fixed for the last fine-tuning.
        epochs, steps: Of this `fit`, for a `CallbackList` of the user's that does not know them.
    """

    def __init__(self, settle: float, epochs: int = 1, steps: int | None = None) -> None:
        super().__init__()
        self.settle, self._epochs, self._steps = settle, epochs, steps
        self._begun = False

    @property
    def _training(self) -> Any:
        return self.model._training

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        training = self._training
        if not self._begun:
            # Only now is it known with which epoch, and in which phase, a backup was restored.
            self._begun = True
            self._begin(epoch)
        elif training.is_searching:
            training.keeper.measure()
        self._first_step_of_epoch = epoch * (self.steps or 0)
        if training.is_searching and not self.steps and epoch >= self.settle * self.epochs:
            training.settle()

    def _begin(self, epoch: int) -> None:
        """Starts or resumes the schedule with the first epoch that is trained."""
        training = self._training
        self.model.refresh_functions()
        self.epochs = (self.params or {}).get("epochs") or self._epochs
        self.steps = (self.params or {}).get("steps") or self._steps
        steps = self.steps or 0
        self.total, done = steps * self.epochs, steps * epoch
        searched = training.steps_searched
        resumed = epoch > 0 and steps > 0 and training.total_steps == self.total
        if training.is_searching:
            resumed = resumed and done <= searched <= done + steps
            start = 0 if resumed else done
            if not resumed:
                training.begin(self.total - done)
            self.settled_at = start + self.settle * (self.total - start)
        else:
            self.settled_at = searched if resumed and searched <= done + steps else done
        training.set_rate(self.total)
        # Check the budget again half-way through the fine-tuning, so that a layer that loses a bit
        # can still adapt. Budgets in operations are checked as soon as every embedding that is
        # remembered comes from the final encoder.
        later = (self.total - self.settled_at) / 2
        if not training.parts.costs.in_bytes:
            later = min(later, CAPACITY // PER_BATCH)
        check_at = self.settled_at + later
        self.check_at = check_at if steps and (training.is_searching or check_at >= done) else None

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
            training.keep_budget(_DRIFT)
            self.check_at = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        training = self._training
        if not self.steps and training.is_searching:
            steps_per_epoch = training.steps_searched / (epoch + 1)
            training.parts.policy.search_total.assign(steps_per_epoch * self.epochs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if not self._begun:
            return
        # The callbacks before this one may have restored weights of another phase.
        self.model.refresh_functions()
        training = self._training
        if training.is_searching:
            # A training of a step or two is over before its bits could settle.
            if not self.steps or training.progress() < self.settle:
                warnings.warn(self._advice(), stacklevel=2)
            training.settle()
        if training.parts.policy.phase == SETTLED:
            training.keep_budget()

    def _advice(self) -> str:
        if not self.steps:
            return (
                "The length of the data is unknown, so the bit-widths were fixed only at the end of "
                "fit, without fine-tuning at them: pass steps_per_epoch, or call fit once more."
            )
        return (
            f"The weights at the end of fit are from {100 * self._training.progress():.0f} % of the "
            f"training, before the bit-widths are fixed at {100 * self.settle:.0f} %: fit was "
            "stopped, or a callback restored earlier weights. The bit-widths were fixed now, without "
            "fine-tuning at them. Call fit once more to fine-tune, or let callbacks act only after "
            "the search, such as EarlyStopping(start_from_epoch=...)."
        )
