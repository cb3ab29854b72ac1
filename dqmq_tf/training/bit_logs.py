"""Adds the figures of the bit search to the logs of `fit`."""

from typing import Any

import keras


class BitLogs(keras.callbacks.Callback):
    """Adds the figures of `BitTraining.figures` to the logs, under the same names in every phase.

    It runs before the user's callbacks, so that they find the figures in `logs`. `train_step` still
    returns only what Keras's own returns, and so does `train_on_batch`.
    """

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.model._training.reset_figures()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs.update(self.model._training.figures())


def check_metrics(
    model: keras.Model, metrics: Any = None, weighted_metrics: Any = None, **_: Any
) -> None:
    """Checks that no metric has the name of a figure in the logs, so that each name means one thing.

    Args:
        model: A `DQMQModel`.
        metrics, weighted_metrics: Those that the user passes to `compile`. It takes more arguments.

    Raises:
        ValueError: If a metric has such a name.
    """
    # Keras puts the name of the output in front if there are several.
    outputs = model.output if isinstance(model.output, dict) else model.output_names
    prefixes = [""] if len(model.outputs) == 1 else [f"{name}_" for name in outputs]
    figures = model._training.figure_names
    for metric in keras.tree.flatten([metrics, weighted_metrics]):
        name = getattr(metric, "name", None) or getattr(metric, "__name__", metric)
        for prefix in prefixes:
            if f"{prefix}{name}" in figures:
                raise ValueError(
                    f"metrics=... has {name!r}, which `fit` would log as '{prefix}{name}'. That is the "
                    f"name of a figure of the bits in the logs, as are {', '.join(figures)}. "
                    "Give the metric, or the function, another name."
                )
