"""The figures of the bits among the logs of `fit`."""

from typing import Any

import keras


class BitLogs(keras.callbacks.Callback):
    """Adds the means of an epoch to its logs, under names that stay the same in every phase.

    It comes before the callbacks of the user, which then find the figures in `logs`. `train_step`
    returns what Keras's returns, so that `train_on_batch` does too.
    """

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.model._training.reset_figures()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs.update(self.model._training.figures())
