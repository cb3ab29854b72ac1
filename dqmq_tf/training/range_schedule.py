"""Lets ranges follow the values that training moves, during `fit`."""

from typing import Any

import keras


class RangeSchedule(keras.callbacks.Callback):
    """Tells a `DQMQModel` how many steps `fit` has taken, so that its ranges follow its values.

    The steps of the optimizer count: a training that is resumed does what an undisturbed one does.
    """

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # A callback may have restored a backup by now.
        self._first_step = self._steps_taken = int(self.model.optimizer.iterations.numpy())

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        before, self._steps_taken = self._steps_taken, self._first_step + batch + 1
        self.model._training.follow_values(self._steps_taken, self._steps_taken - before)
