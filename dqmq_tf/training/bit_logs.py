"""Adds the figures of the bit search to the logs of `fit`."""

from typing import Any

import keras


class BitLogs(keras.callbacks.Callback):
    """Adds the epoch means of the search's figures to the logs, under the same names in every phase.

    It runs before the user's callbacks, so that they find the figures in `logs`. `train_step` still
    returns only what Keras's own returns, and so does `train_on_batch`.
    """

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.model._training.reset_figures()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs.update(self.model._training.figures())
