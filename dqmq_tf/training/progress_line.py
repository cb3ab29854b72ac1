"""`ProgressLine`: one line per epoch, with the phase of the search and the cost against the budget."""

import sys
import time
from typing import Any, TextIO

import keras
import numpy as np

from dqmq_tf.training.bit_history import phase_name
from dqmq_tf.training.quantized_callback import QuantizedCallback

_REDRAW_SECONDS = 0.2


class ProgressLine(QuantizedCallback):
    """Prints a line per epoch of `DQMQModel.fit`; pass `verbose=0` to `fit` beside it.

    Such a line is

        epoch 2/8  search    5.04 bits  8,571 of 9,000 download_bytes (95 %)  loss 0.06907  2 s

    with all compiled metrics. On a terminal, the line shows the running epoch as well.

    Args:
        file: Where to print. None for standard error.

    Example:

    >>> qmodel.fit(dataset, epochs=8, verbose=0, callbacks=[dqmq_tf.callbacks.ProgressLine()])
    """

    def __init__(self, file: TextIO | None = None) -> None:
        super().__init__()
        self._file = file
        self._width = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts the clock of the epoch."""
        self._epoch, self._start, self._drawn = epoch, time.perf_counter(), 0.0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Shows the step on a terminal."""
        now = time.perf_counter()
        if not self._output().isatty() or now - self._drawn < _REDRAW_SECONDS:
            return
        self._drawn = now
        steps = self.params.get("steps")
        of_steps = f"/{steps}" if steps else ""
        parts = [self._head(), f"step {batch + 1}{of_steps}", *_metrics(self.model, logs or {})]
        self._draw("  ".join(parts), end="")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Prints the line."""
        logs = logs or {}
        budget = self.model.budget
        share = 100.0 * logs["cost"] / budget.value
        parts = [
            self._head(),
            f"{logs['mean_bits']:.2f} bits",
            f"{_number(logs['cost'])} of {_number(budget.value)} {budget.kind} ({share:.0f} %)",
            *_metrics(self.model, logs),
            f"{time.perf_counter() - self._start:.0f} s",
        ]
        self._draw("  ".join(parts), end="\n")

    def _output(self) -> TextIO:
        return sys.stderr if self._file is None else self._file

    def _head(self) -> str:
        epochs = self.params.get("epochs")
        of_epochs = f"/{epochs}" if epochs else ""
        return f"epoch {self._epoch + 1}{of_epochs}  {phase_name(self.model):8}"

    def _draw(self, line: str, end: str) -> None:
        """Prints over what is in the line of a terminal, or a new line elsewhere."""
        output = self._output()
        if output.isatty():
            line = "\r" + line.ljust(self._width)
            self._width = 0 if end else len(line) - 1
        output.write(line + end)
        output.flush()


def _metrics(model: keras.Model, logs: dict[str, Any]) -> list[str]:
    """Returns the loss and the compiled metrics in the logs, and those of the validation.

    Metrics of several numbers, such as one for each class, have no room in the line.
    """
    own = model._training.figures()
    return [
        f"{name} {value:.4g}"
        for name, value in logs.items()
        if name not in own and not np.ndim(value)
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
