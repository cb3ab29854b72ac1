"""The quality embeddings of the last training samples, on which bits are fixed to the budget."""

from typing import Any

import keras
import numpy as np
from keras import ops

CAPACITY = 1024
# Embeddings that are kept of each batch.
PER_BATCH = 64


class SeenEmbeddings:
    """Remembers the last embeddings.

    They are saved with the policy, but are no weights of a model: Keras does not track variables in
    an object of this kind.

    Args:
        size: Length `d` of an embedding.
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

    def add(self, z: Any) -> None:
        """Keeps some embeddings of a batch `[B, d]`."""
        z = ops.stop_gradient(z)
        # A dataset may sort its batches: take evenly from all of it.
        rows = ops.arange(PER_BATCH) * ops.shape(z)[0] // PER_BATCH
        kept = self.reservoir[: CAPACITY - PER_BATCH]
        self.reservoir.assign(ops.concatenate([ops.take(z, rows, axis=0), kept], axis=0))
        self.fill.assign(self.fill + float(PER_BATCH))

    def values(self) -> np.ndarray:
        """Returns the embeddings `[N, d]`, N at most 1,024, the last ones first."""
        filled = int(min(ops.convert_to_numpy(self.fill), CAPACITY))
        return ops.convert_to_numpy(self.reservoir)[:filled]
