"""The quality embeddings of the latest training samples.

They represent the data when bits are fixed: the cost over these samples must meet the budget.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

CAPACITY = 1024
# The number of embeddings to keep from each batch.
PER_BATCH = 64


class SeenEmbeddings:
    """Remembers the latest quality embeddings.

    The policy saves them, but they are not weights of the model: Keras does not track variables in
    an object that is not a layer.

    Args:
        size: The length d of an embedding.
    """

    def __init__(self, size: int) -> None:
        def variable(name: str, shape: tuple[int, ...]) -> keras.Variable:
            return keras.Variable(
                np.zeros(shape, "float32"),
                trainable=False,
                name=name,
                aggregation="only_first_replica",
            )

        self.reservoir = variable("reservoir", (CAPACITY, size))
        self.fill = variable("reservoir_fill", ())

    @property
    def variables(self) -> dict[str, keras.Variable]:
        """The variables to save, by name."""
        return {"reservoir": self.reservoir, "reservoir_fill": self.fill}

    def add(self, z: tf.Tensor, condition: bool | tf.Tensor = True) -> None:
        """Adds `PER_BATCH` embeddings of a batch and drops the oldest ones.

        Args:
            z: The embeddings of the batch, shape `[B, d]`.
            condition: Whether to add them, a bool or a scalar tensor.
        """
        if condition is False:
            return
        z = ops.stop_gradient(z)
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            # All replicas and worker processes remember the same embeddings.
            z = context.all_gather(z, axis=0)
        # A batch may be sorted, so take rows from all of it at equal distances.
        rows = ops.arange(PER_BATCH) * ops.shape(z)[0] // PER_BATCH
        remaining = self.reservoir[: CAPACITY - PER_BATCH]
        added = ops.concatenate([ops.take(z, rows, axis=0), remaining], axis=0)
        self.reservoir.assign(ops.where(condition, added, self.reservoir))
        self.fill.assign(self.fill + float(PER_BATCH) * ops.cast(condition, "float32"))

    def values(self) -> np.ndarray:
        """Returns the embeddings, newest first, shape `[N, d]` with N at most `CAPACITY`."""
        count = int(min(ops.convert_to_numpy(self.fill), CAPACITY))
        return ops.convert_to_numpy(self.reservoir)[:count]
