"""Moving statistics of batch normalizations that belong to the weights as training leaves them.

A moving mean with a momentum of 0.99 is that of weights a hundred steps ago. Quantized weights still
jump between two levels then, however small the learning rate, and each jump moves what comes after
(Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training", arXiv 2203.11086, who run
the data once more for that). The plain mean over the last steps is half as old and costs nothing.
"""

import keras
import numpy as np
from keras import ops

# Share of a training whose last steps are averaged, and the most of them.
_SHARE, _MOST = 0.1, 100


def normalizations(graph):
    """Returns the `BatchNormalization`s that a step calls once: others add two batches at a time.

    Args:
        graph: Graph of a float model, its nested models inlined.
    """
    calls = graph.calls
    norms = (n for n in graph.nodes if isinstance(n.layer, keras.layers.BatchNormalization))
    return [node.layer for node in norms if calls[node.path] == 1]


class BatchStatistics(keras.callbacks.Callback):
    """Gives batch normalizations the mean of the last steps' statistics at the end of `fit`.

    A moving mean gives away what was added to it: after a step at momentum `u` it is
    `u * before + (1 - u) * batch`. So the step is left as it is.

    Args:
        layers: `BatchNormalization`s; those of momentum 0 or 1 stay as they are.
        epochs, steps: Of this `fit`, for a `CallbackList` of the user's that does not know them.
    """

    def __init__(self, layers, epochs=1, steps=None):
        super().__init__()
        self.layers, self._epochs, self._steps = layers, epochs, steps

    def on_train_begin(self, logs=None):
        params = self.params or {}
        # Nothing is done where the length of an epoch is not known.
        self.steps = params.get("steps") or self._steps or 0
        self.total = self.steps * (params.get("epochs") or self._epochs)
        # Within the last epoch, so that a training resumed at its start averages the same steps.
        self.window = min(int(_SHARE * self.total), _MOST, self.steps)
        # Several steps in one call leave nothing to read between them.
        if self.model.steps_per_execution != 1:
            self.window = 0
        layers = [x for x in self.layers if 0.0 < x.momentum < 1.0]
        self.moving = [(v, x.momentum) for x in layers for v in (x.moving_mean, x.moving_variance)]
        self.before, self.sums, self.count = None, [0.0] * len(self.moving), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.begun = epoch * self.steps

    def on_train_batch_begin(self, batch, logs=None):
        begins = self.window > 0 and self.begun + batch >= self.total - self.window
        if begins and self.before is None:
            self.before = self._values()

    def on_train_batch_end(self, batch, logs=None):
        if self.before is None:
            return
        now, momenta = self._values(), [momentum for _, momentum in self.moving]
        batches = [(a - u * b) / (1.0 - u) for a, b, u in zip(now, self.before, momenta)]
        self.sums = [total + found for total, found in zip(self.sums, batches)]
        self.before, self.count = now, self.count + 1

    def on_train_end(self, logs=None):
        # Weights that a callback restored have statistics of their own.
        untouched = self.count and all(map(np.array_equal, self._values(), self.before))
        if untouched:
            for (variable, _), total in zip(self.moving, self.sums):
                variable.assign(np.asarray(total / self.count, "float32"))

    def _values(self):
        return [ops.convert_to_numpy(v).astype("float64") for v, _ in self.moving]
