"""`BitHistory`: the bits of each layer, the cost and the metrics after each epoch."""

import csv
import importlib.util
import os
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.policy.decision_table import DecisionTable
from dqmq_tf.policy.policy_state import SEARCH
from dqmq_tf.training.quantized_callback import QuantizedCallback

BITS_PREFIX = "bits/"
WARMUP = "warm-up"


class BitHistory(QuantizedCallback):
    """Records what the search decided, after each epoch of `DQMQModel.fit`.

    Args:
        log_dir: A folder for TensorBoard, which shows the numbers of each row as scalars. None to
            write none. Metrics of several numbers are in `rows` alone, as lists.

    Raises:
        ImportError: If `log_dir` is given and TensorBoard is not installed.

    Attributes:
        rows: A dictionary for each epoch, in order, with the keys `"epoch"` (from 0), `"phase"`
            (`"warm-up"`, `"search"`, `"settled"` or `"frozen"`), `"budget"` and `"budget_kind"`,
            what `fit` logged, such as `"loss"`, `"mean_bits"` and `"cost"`, and `"bits/POINT"` for
            each decision point: its mean bits over the last inputs that training saw. Another call
            of `fit` appends its epochs.

    Example:

    >>> bits = dqmq_tf.callbacks.BitHistory(log_dir="logs")
    >>> qmodel.fit(dataset, epochs=8, callbacks=[bits])
    >>> bits.to_csv("bits.csv")
    >>> dqmq_tf.plot_bits(bits, "bits.png")
    """

    def __init__(self, log_dir: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        if log_dir is not None and importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "BitHistory(log_dir=...) writes for TensorBoard, which is not installed: "
                "pip install tensorboard, or leave `log_dir` out."
            )
        self.log_dir = log_dir
        self.rows: list[dict[str, Any]] = []
        self._writer: Any = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Records a row."""
        row = {
            "epoch": epoch,
            "phase": phase_name(self.model),
            "budget_kind": self.model.budget.kind,
            "budget": self.model.budget.value,
            **{name: np.asarray(value).tolist() for name, value in (logs or {}).items()},
            **{f"{BITS_PREFIX}{point}": mean for point, mean in mean_bits(self.model).items()},
        }
        self.rows.append(row)
        if self.log_dir is not None:
            self._write_scalars(row)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Writes what TensorBoard has not got yet."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes the rows as a table: a line with the names of the columns, and one per epoch.

        Args:
            path: The file to write. An existing one is replaced.

        Raises:
            ValueError: If no epoch was recorded.
        """
        if not self.rows:
            raise ValueError("BitHistory has no rows: pass it to fit(callbacks=[...]) first.")
        columns = dict.fromkeys(name for row in self.rows for name in row)
        with pathlib.Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(self.rows)

    def _write_scalars(self, row: dict[str, Any]) -> None:
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(os.fspath(self.log_dir or ""))
        with self._writer.as_default(step=row["epoch"]):
            for name, value in row.items():
                if name != "epoch" and isinstance(value, (int, float)):
                    tf.summary.scalar(name, value)
        self._writer.flush()


def phase_name(model: keras.Model) -> str:
    """Returns the phase of the training of a `DQMQModel`, as in `BitHistory.rows`."""
    phase = model._parts.policy.phase
    is_warming_up = phase == SEARCH and model._training.progress() < model.config.warmup
    return WARMUP if is_warming_up else phase


def mean_bits(model: keras.Model) -> dict[str, float]:
    """Returns the mean bits of each decision point over the last inputs that training saw."""
    policy = model._parts.policy
    embeddings = ops.convert_to_tensor(model._training.seen())
    decision = {
        name: np.asarray(ops.convert_to_numpy(value))
        for name, value in policy(embeddings, training=False).items()
    }
    return DecisionTable.of([decision], model.decision_points, policy.bits_vary_by).mean()
