"""Batch-norm statistics that match the final weights.

With a momentum of 0.99, a moving mean reflects the weights of about a hundred steps ago. Late in
training, quantized weights still oscillate between two levels, however small the learning rate, and
each oscillation changes the statistics of the layers that follow (Nagel et al. 2022, "Overcoming
Oscillations in Quantization-Aware Training", arXiv 2203.11086, who re-estimate them with another
pass over the data). The plain mean over the last steps is half as old and costs nothing.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from dqmq_tf.graph.graph import Graph
from dqmq_tf.training.several_workers import agree

# The share of the training steps that are averaged, the last ones, and the largest number of them.
_SHARE, _MAX_STEPS = 0.1, 100


def normalizations(graph: Graph) -> list[Any]:
    """Returns the `BatchNormalization` layers that are called once per step.

    A shared one updates its statistics several times per step and cannot be averaged this way.

    Args:
        graph: The graph of a float model, with its nested models inlined.
    """
    calls = graph.calls
    norms = (n for n in graph.nodes if isinstance(n.layer, keras.layers.BatchNormalization))
    return [node.layer for node in norms if calls[node.path] == 1]


class BatchStatistics(keras.callbacks.Callback):
    """Sets batch-norm statistics to their mean over the last training steps, after the last one.

    The last validation and what other callbacks save then have the statistics of the final model.

    The batch statistics are recovered from the moving ones: with momentum `u`, a step changes
    `before` to `u * before + (1 - u) * batch`. The training step itself needs no change.

    Args:
        layers: The `BatchNormalization` layers. Those with a momentum of 0 or 1 are not changed.
        epochs, steps: The number of epochs and of steps per epoch of this `fit`. They are used if
            the user passes a `CallbackList` that does not know them.
    """

    def __init__(
        self,
        layers: Sequence[keras.layers.BatchNormalization],
        epochs: int = 1,
        steps: int | None = None,
    ) -> None:
        super().__init__()
        self.layers, self._epochs, self._steps = layers, epochs, steps

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        params = self.params or {}
        # If the length of an epoch is unknown, the window is empty and nothing is averaged.
        self.steps = params.get("steps") or self._steps or 0
        self.total = self.steps * (params.get("epochs") or self._epochs)
        # The window lies within the last epoch, so that a training that is resumed at the start of
        # this epoch averages the same steps.
        self.window = min(int(_SHARE * self.total), _MAX_STEPS, self.steps)
        # If one call runs several steps, the statistics between them cannot be read.
        if self.model.steps_per_execution != 1:
            self.window = 0
        layers = [x for x in self.layers if 0.0 < x.momentum < 1.0]
        self.moving = [(v, x.momentum) for x in layers for v in (x.moving_mean, x.moving_variance)]
        self.before: list[np.ndarray] | None = None
        self.sums: list[Any] = [0.0] * len(self.moving)
        self.count = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.first_step_of_epoch = epoch * self.steps

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        step = self.first_step_of_epoch + batch
        is_in_window = self.window > 0 and step >= self.total - self.window
        if is_in_window and self.before is None:
            self.before = self._values()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.before is None:
            return
        now, momenta = self._values(), [momentum for _, momentum in self.moving]
        batch_values = [(a - u * b) / (1.0 - u) for a, b, u in zip(now, self.before, momenta)]
        self.sums = [total + value for total, value in zip(self.sums, batch_values)]
        self.before, self.count = now, self.count + 1
        if self.first_step_of_epoch + batch == self.total - 1:
            for (variable, _), total in zip(self.moving, self.sums):
                variable.assign(np.asarray(total / self.count, "float32"))
            agree(self.model)

    def _values(self) -> list[np.ndarray]:
        """Returns the current moving statistics in float64."""
        return [ops.convert_to_numpy(v).astype("float64") for v, _ in self.moving]
