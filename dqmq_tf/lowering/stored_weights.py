"""Weights that a file stores as integers and that a floating-point kernel reads.

A layer that computes in floating point still stores its weights with the bit-width that they were
trained for. A DEQUANTIZE operator restores their real values. For an embedding, the operator that
looks up the rows does this itself.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from dqmq_tf.precision import WeightPrecision

# How the real values are restored: by the operator of this name.
DEQUANTIZED = "DEQUANTIZE"
LOOKED_UP = "EMBEDDING_LOOKUP"


@dataclasses.dataclass(frozen=True, eq=False)
class StoredWeights:
    """The weights of one variable, in Keras's layout.

    Attributes:
        path: The path of the layer in the graph.
        variable: The name of the layer's variable, such as `"lstm_cell/kernel"`.
        kind: `DEQUANTIZED` or `LOOKED_UP`.
        integers: An int8 array, shape that of the variable.
        steps: A float32 array that broadcasts against `integers`.
        bit_width: The bit-width that the integers were trained for.
    """

    path: str
    variable: str
    kind: str
    integers: np.ndarray
    steps: np.ndarray
    bit_width: int

    @classmethod
    def of(cls, path: str, variable: str, kind: str, precision: WeightPrecision) -> "StoredWeights":
        """Returns the weights of a `WeightPrecision`."""
        return cls(
            path=path,
            variable=variable,
            kind=kind,
            integers=np.asarray(precision.integers).astype(np.int8),
            steps=np.asarray(precision.step, np.float32),
            bit_width=precision.bit_width,
        )

    @property
    def values(self) -> np.ndarray:
        """The real values `step * integer`, float32, in Keras's layout."""
        return self.integers * self.steps

    @property
    def scales(self) -> np.ndarray:
        """All step sizes, float32, rank 1."""
        return self.steps.ravel()

    def layouts(self, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Yields the layouts in which the converter may have stored the variable as a constant.

        A layout is a permutation of the variable's axes, followed by a reshape. Layouts in which
        the step varies along more than one axis are left out, because a file cannot store them.

        Args:
            shape: The shape of the constant.

        Yields:
            `(integers, scales, axis)`: an int8 array of that shape, a float32 array with one value
            or one value per index of `axis`, and the axis along which the scales vary.
        """
        if int(np.prod(shape)) != self.integers.size:
            return
        steps = np.broadcast_to(self.steps, self.integers.shape)
        for order in itertools.permutations(range(self.integers.ndim)):
            scales, axis = _along_one_axis(steps.transpose(order).reshape(shape))
            if scales is not None:
                yield self.integers.transpose(order).reshape(shape), scales, axis

    def layout_of(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int] | None:
        """Returns the layout in which a constant holds these weights.

        Args:
            values: The constant, a float32 array.

        Returns:
            `(integers, scales, axis)` as `layouts` yields them. None if the constant holds other
            values.
        """
        for integers, scales, axis in self.layouts(values.shape):
            shape = [1] * values.ndim
            shape[axis] = -1
            if np.array_equal(integers * scales.reshape(shape), values):
                return integers, scales, axis
        return None


def _along_one_axis(steps: np.ndarray) -> tuple[np.ndarray | None, int]:
    """Returns `(scales, axis)` of steps that vary along one axis at most, else `(None, 0)`."""
    if not np.ptp(steps):
        return steps.ravel()[:1], 0
    for axis in range(steps.ndim):
        rows = np.moveaxis(steps, axis, 0).reshape(steps.shape[axis], -1)
        if not np.ptp(rows, axis=1).any():
            return rows[:, 0].copy(), axis
    return None, 0
