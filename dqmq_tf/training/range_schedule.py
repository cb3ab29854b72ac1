"""Lets ranges follow the values that training moves, during `fit`."""

import warnings
from typing import Any

import keras
import numpy as np

from dqmq_tf.graph.finite_weights import advice, not_finite


class RangeSchedule(keras.callbacks.Callback):
    """Tells a `DQMQModel` how many steps `fit` has taken, so that its ranges follow its values.

    The steps of the optimizer count: a training that is resumed does what an undisturbed one does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._has_warned = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # A callback may have restored a backup by now.
        self._steps_taken = self.model._training.steps_taken

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        before, self._steps_taken = self._steps_taken, self.model._training.steps_taken
        self.model._training.follow_values(before, self._steps_taken)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # The loss may stay finite: a range that is NaN holds nothing. If it does not, that says enough.
        lost = not_finite(self.model._parts.log_steps())
        if lost and not self._has_warned and np.isfinite((logs or {}).get("loss", 0.0)):
            self._has_warned = True
            warnings.warn(
                f"The range of the output of {lost[0]!r} became NaN or infinite, although the loss is "
                f"finite. {advice(lost[0])}",
                stacklevel=2,
            )
