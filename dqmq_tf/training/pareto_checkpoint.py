"""`ParetoCheckpoint`: the best model for each budget, and which of them no other one beats."""

import dataclasses
import json
import math
import os
import pathlib
import re
import warnings
from collections.abc import Iterable
from typing import Any

from dqmq_tf.policy.policy_state import SEARCH
from dqmq_tf.training.quantized_callback import QuantizedCallback

_INDEX = "pareto.json"
_MODES = ("auto", "min", "max")
# Metrics of Keras that are better when they are larger, as `keras.callbacks.ModelCheckpoint` guesses.
_LARGER_IS_BETTER = re.compile(r"acc|auc|fmeasure|f1|precision|recall|iou", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParetoEntry:
    """A saved model.

    Attributes:
        file: The name of the file in the folder.
        model: The name of the model.
        kind: The kind of the budget, such as `"download_bytes"`.
        budget: The budget.
        cost: The cost at the epoch, in the unit of the budget.
        monitor: The name of the metric.
        value: The metric at the epoch.
        epoch: The epoch, from 0.
    """

    file: str
    model: str
    kind: str
    budget: float
    cost: float
    monitor: str
    value: float
    epoch: int


class ParetoCheckpoint(QuantizedCallback):
    """Saves the best model for each budget, over any number of trainings.

    Pass it, or another one for the same folder, to the training of each budget. Only epochs with
    settled bits that meet the budget count: during the search, bits are drawn anew for each batch.
    Epochs whose metric is not finite do not count either. The folder holds a `.keras` file for each
    budget, such as `digits_download_bytes_9000.keras`, and `pareto.json` with the entries.

    Args:
        folder: The folder. It is created if it does not exist.
        monitor: The metric to compare, a name in the logs of `fit`.
        mode: `"min"` or `"max"`. `"auto"` is `"max"` for accuracies and the like.

    Raises:
        ValueError: If `mode` is not valid, if the folder was written for another metric, or, at the
            first epoch, if there is no such metric.

    Example:

    >>> best = dqmq_tf.callbacks.ParetoCheckpoint("models", monitor="val_accuracy")
    >>> for kilobytes in (30, 50, 80):
    ...     budget = dqmq_tf.Budget(download_bytes=1_000 * kilobytes)
    ...     qmodel = dqmq_tf.quantize_model(model, budget=budget)
    ...     qmodel.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    ...     qmodel.fit(train, validation_data=test, epochs=8, callbacks=[best])
    >>> for entry in best.front():
    ...     print(entry.file, entry.cost, entry.value)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        monitor: str = "val_loss",
        mode: str = "auto",
    ) -> None:
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"mode={mode!r} must be one of {', '.join(map(repr, _MODES))}.")
        self.folder, self.monitor = pathlib.Path(folder), monitor
        is_larger = _LARGER_IS_BETTER.search(monitor) is not None
        self.mode = mode if mode != "auto" else ("max" if is_larger else "min")
        for entry in self.entries():
            if entry.monitor != monitor:
                raise ValueError(
                    f"{self.folder / _INDEX} holds values of {entry.monitor!r}, not of {monitor!r}. "
                    "Take another folder, or delete it."
                )

    def entries(self) -> tuple[ParetoEntry, ...]:
        """Returns the entries of all budgets, the lowest cost first."""
        index = self.folder / _INDEX
        if not index.exists():
            return ()
        data = json.loads(index.read_text(encoding="utf-8"))
        return tuple(ParetoEntry(**entry) for entry in data)

    def front(self) -> tuple[ParetoEntry, ...]:
        """Returns the entries that no other one beats: none costs no more and is better.

        Budgets of different kinds are not compared.
        """
        entries = self.entries()
        return tuple(
            entry for entry in entries if not any(self._beats(other, entry) for other in entries)
        )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves the model if it is the best one for its budget."""
        logs = logs or {}
        if self.monitor not in logs:
            self._refuse_or_wait(logs)
            return
        budget = self.model.budget
        cost, value = float(logs["cost"]), float(logs[self.monitor])
        is_searching = self.model._parts.policy.phase == SEARCH
        if is_searching or cost > budget.value or not math.isfinite(value):
            return
        entry = ParetoEntry(
            file=f"{self.model.name}_{budget.kind}_{budget.value:.15g}.keras",
            model=self.model.name,
            kind=budget.kind,
            budget=float(budget.value),
            cost=cost,
            monitor=self.monitor,
            value=value,
            epoch=epoch,
        )
        others = {other.file: other for other in self.entries()}
        previous = others.pop(entry.file, None)
        if previous is None or self._is_better(entry.value, previous.value):
            self._save(entry, others.values())

    def _refuse_or_wait(self, logs: dict[str, Any]) -> None:
        """Refuses a metric that is not in the logs, unless a later epoch may validate."""
        names = ", ".join(sorted(logs))
        is_of_validation = self.monitor.startswith("val_")
        if not is_of_validation or self.monitor.removeprefix("val_") not in logs:
            raise ValueError(
                f"ParetoCheckpoint monitors {self.monitor!r}, but fit logs {names}. Change `monitor`, "
                "or pass validation_data to fit."
            )
        warnings.warn(
            f"ParetoCheckpoint has no {self.monitor!r} in this epoch. No model is saved before an "
            "epoch that validates. If none will, pass validation_data to fit.",
            stacklevel=2,
        )

    def _save(self, entry: ParetoEntry, others: Iterable[ParetoEntry]) -> None:
        """Saves the model and the index; a crash leaves the previous files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"unfinished_{entry.file}"
        self.model.save(unfinished)
        os.replace(unfinished, self.folder / entry.file)
        entries = sorted([*others, entry], key=lambda e: (e.kind, e.cost))
        unfinished = self.folder / f"unfinished_{_INDEX}"
        unfinished.write_text(
            json.dumps([dataclasses.asdict(e) for e in entries], indent=2), encoding="utf-8"
        )
        os.replace(unfinished, self.folder / _INDEX)

    def _is_better(self, value: float, other: float) -> bool:
        return value > other if self.mode == "max" else value < other

    def _beats(self, entry: ParetoEntry, other: ParetoEntry) -> bool:
        if entry.kind != other.kind or entry.cost > other.cost:
            return False
        if self._is_better(entry.value, other.value):
            return True
        return entry.value == other.value and entry.cost < other.cost
