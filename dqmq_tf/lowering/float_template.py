"""The float file of a model whose weights change: converted once, then filled with new values.

While bits are chosen, the file of a model is measured several times. Only the values of its weights
differ from one time to the next. `FloatTemplate` therefore converts the model once, with a different
number in each element of each variable. Wherever the converter puts these numbers, it would put the
values of the variables.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.flatbuffer import TFLiteFile
from dqmq_tf.lowering.float_file import export_float
from dqmq_tf.lowering.lowered_model import LoweredModel

# Element n of all variables is the float32 number with this bit pattern plus n. The first is 1.0.
_FIRST = int(np.float32(1).view(np.int32))
# The elements that have a number below 65536.0. Models with more are converted each time.
_MOST_ELEMENTS = int(np.float32(2**16).view(np.int32)) - _FIRST


class FloatTemplate:
    """Writes the float file of a model again and again, and converts it only when it must.

    The model is converted again if its structure changes, or if the converter computes a constant
    from the variables, which then has other numbers than they have.

    The converter leaves out some special values, such as the bias of zeros of a layer that was not
    trained, but not the numbers of the template. The file is therefore good enough to be measured,
    and `convert` does not use it.
    """

    def __init__(self) -> None:
        self._structure: tuple[Any, ...] = ()
        self._file: TFLiteFile | None = None
        self._sources: dict[int, _Source] = {}

    def export(self, lowered: LoweredModel) -> TFLiteFile:
        """Returns the float file of a lowered model.

        Args:
            lowered: A `LoweredModel` with markers.

        Raises:
            ConversionError: If TensorFlow's converter fails.
        """
        variables = lowered.model.variables
        values = [keras.ops.convert_to_numpy(variable) for variable in variables]
        structure = _structure(lowered, values)
        if structure != self._structure:
            self._structure = structure
            self._make(lowered, values)
        if self._file is None:
            return export_float(lowered.model, lowered.layer_paths)
        file = self._file.copy()
        numbers = _concatenated(values)
        for index, source in self._sources.items():
            filled = np.ascontiguousarray(source.read(numbers))
            file.model.buffers[index].data = filled.reshape(-1).view(np.uint8)
        return file

    def _make(self, lowered: LoweredModel, values: list[np.ndarray]) -> None:
        """Converts a model, and finds out which of its constants hold which variables."""
        self._file, self._sources = None, {}
        count = sum(value.size for value in values if value.dtype == np.float32)
        if count > _MOST_ELEMENTS:
            return
        marks = np.arange(_FIRST, _FIRST + count, dtype=np.int32).view(np.float32)
        try:
            _assign(lowered.model, values, marks)
            file = export_float(lowered.model, lowered.layer_paths)
        finally:
            _assign(lowered.model, values, _concatenated(values))
        found = np.zeros(count, bool)
        for tensor in file.model.subgraphs[0].tensors:
            buffer = file.model.buffers[tensor.buffer]
            is_float = flatbuffer.type_name(tensor) == "FLOAT32"
            if not is_float or not flatbuffer.is_constant(file.model, tensor):
                continue
            constant = flatbuffer.constant(file.model, tensor)
            elements = constant.view(np.int32).astype(np.int64) - _FIRST
            if np.all((elements >= 0) & (elements < count)) and constant.size:
                self._sources[tensor.buffer] = _Source.of(elements)
                found[elements] = True
                buffer.data = None  # It would only take memory until it is filled.
        if found.all():
            self._file = file
        else:
            self._sources = {}


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where the elements of a constant are among the elements of all variables.

    Attributes:
        first: The position of the first element.
        shape, strides: The shape of the constant and the distance of its elements along each axis,
            if the constant is a part of a variable, or a transposed one.
        elements: The positions of all elements otherwise, else None.
    """

    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    elements: np.ndarray | None

    @classmethod
    def of(cls, elements: np.ndarray) -> "_Source":
        """Returns the source of a constant with these positions, an array of ints."""
        first = int(elements.flat[0])
        strides = tuple(
            int(np.take(elements, 1, axis).flat[0]) - first if size > 1 else 0
            for axis, size in enumerate(elements.shape)
        )
        regular = np.full(elements.shape, first, np.int64)
        for axis, step in enumerate(strides):
            along = np.arange(elements.shape[axis])
            regular += step * along.reshape([-1 if n == axis else 1 for n in range(elements.ndim)])
        kept = None if np.array_equal(regular, elements) else elements.astype(np.int32)
        return cls(first, elements.shape, strides, kept)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the constant's values, read from those of all variables, shape `[N]`."""
        if self.elements is not None:
            return numbers[self.elements]
        strides = [step * numbers.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(
            numbers[self.first :], self.shape, strides, writeable=False
        )


def _structure(lowered: LoweredModel, values: list[np.ndarray]) -> tuple[Any, ...]:
    """Returns what two lowered models of one float model have in common if their files do."""
    return (
        lowered.marked,
        tuple(lowered.paths.items()),
        tuple(lowered.floating),
        tuple((w.path, w.kind) for w in lowered.weights),
        tuple((value.shape, str(value.dtype)) for value in values),
    )


def _concatenated(values: list[np.ndarray]) -> np.ndarray:
    """Returns the elements of all float32 arrays, shape `[N]`."""
    floats = [value.ravel() for value in values if value.dtype == np.float32]
    return np.concatenate([np.zeros(0, np.float32), *floats])


def _assign(model: keras.Model, values: list[np.ndarray], numbers: np.ndarray) -> None:
    """Puts numbers, shape `[N]`, into the float32 variables of a model."""
    position = 0
    for variable, value in zip(model.variables, values):
        if value.dtype == np.float32:
            part = numbers[position : position + value.size]
            variable.assign(part.reshape(value.shape))
            position += value.size
