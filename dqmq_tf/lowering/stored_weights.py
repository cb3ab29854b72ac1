"""Weights that a file stores as integers and a floating-point kernel reads.

The weights of a floating-point layer still use the bit-width that they were trained for: a
DEQUANTIZE operator restores their values, or the lookup itself in the case of an embedding.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from dqmq_tf.precision import WeightPrecision

DEQUANTIZED = "DEQUANTIZE"
LOOKED_UP = "EMBEDDING_LOOKUP"


@dataclasses.dataclass(frozen=True, eq=False)
class StoredWeights:
    """Weights of one variable, in Keras's layout.

    Attributes:
        path: Graph path of the layer.
        variable: Name of the layer's variable, such as `"lstm_cell/kernel"`.
        kind: `DEQUANTIZED` or `LOOKED_UP`.
        integers: int8, of the variable's shape.
        steps: float32, broadcasts against `integers`.
        bit_width: Bits that the integers were trained for.
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
        """float32 values `step * integer`, in Keras's layout."""
        return self.integers * self.steps

    @property
    def scales(self) -> np.ndarray:
        """All step sizes, float32, flat."""
        return self.steps.ravel()

    def layouts(self, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Yields the layouts in which a converter may have stored the variable as a constant.

        Args:
            shape: Shape of the constant.

        Yields:
            `(integers, scales, axis)`: int8 of that shape; float32, one value or one for each index
            of `axis`. A layout in which the step varies along several axes is left out.
        """
        if int(np.prod(shape)) != self.integers.size:
            return
        steps = np.broadcast_to(self.steps, self.integers.shape)
        for order in itertools.permutations(range(self.integers.ndim)):
            scales, axis = _along_one_axis(steps.transpose(order).reshape(shape))
            if scales is not None:
                yield self.integers.transpose(order).reshape(shape), scales, axis

    def layout_of(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int] | None:
        """Returns the layout in which a constant holds these weights; None if it does not.

        Args:
            values: float32 array, the constant.
        """
        for integers, scales, axis in self.layouts(values.shape):
            shape = [1] * values.ndim
            shape[axis] = -1
            if np.array_equal(integers * scales.reshape(shape), values):
                return integers, scales, axis
        return None


def _along_one_axis(steps: np.ndarray) -> tuple[np.ndarray | None, int]:
    """`(scales, axis)` of steps that vary along one axis at most, else `(None, 0)`."""
    if not np.ptp(steps):
        return steps.ravel()[:1], 0
    for axis in range(steps.ndim):
        rows = np.moveaxis(steps, axis, 0).reshape(steps.shape[axis], -1)
        if not np.ptp(rows, axis=1).any():
            return rows[:, 0].copy(), axis
    return None, 0
