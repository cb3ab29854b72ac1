"""Markers that identify the tensors of the lowered model in its converted file.

Names do not survive the converter, and values may be equal where tensors are not. So every tensor
of the lowered model that has a grid, or is made in floating point, passes through a fake
quantization whose scale is its number. The converter leaves each as a pair of QUANTIZE and DEQUANTIZE, and moves
nothing across but a RESHAPE, which has the same values on both sides; `remove_markers` reads the
numbers and removes the pairs.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import ModelT, editing

# Powers of two, so that number and scale turn into each other without rounding.
_UNIT = 2.0**-10
_MOST = 2**14


class Marker(keras.layers.Layer):
    """Tags a float tensor with a number that survives the converter.

    Args:
        number: 0 to 16,383.
    """

    def __init__(self, number: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= number < _MOST:
            raise ConversionError(f"The model has more than {_MOST:,} tensors between its layers.")
        self.number = number

    def call(self, x: Any) -> Any:
        scale = (self.number + 1) * _UNIT
        return tf.quantization.fake_quant_with_min_max_args(
            x, min=-128 * scale, max=127 * scale, num_bits=8
        )

    def compute_output_spec(self, x: Any) -> keras.KerasTensor:
        # A dense tensor, even where Keras takes a product with a number for a sparse one.
        return keras.KerasTensor(x.shape, dtype=x.dtype)


def remove_markers(model: ModelT) -> dict[int, tuple[int, ...]]:
    """Removes the markers of a file.

    Args:
        model: `ModelT` of the float file; changed in place.

    Returns:
        `{tensor index: numbers}` of the tensors that were marked. One has several numbers where the
        converter found that the layer between two markers changes nothing.
    """
    graph, kept = model.subgraphs[0], []
    sources: dict[int, int] = {}
    numbers: dict[int, tuple[int, ...]] = {}
    rounded = set()

    def source_of(index: int) -> int:
        while index in sources:
            index = sources[index]
        return index

    for operator in graph.operators:
        name = flatbuffer.operator_name(model, operator)
        if name not in ("QUANTIZE", "DEQUANTIZE"):
            kept.append(operator)
            continue
        entered, left = int(operator.inputs[0]), int(operator.outputs[0])
        if name == "QUANTIZE":
            scale = float(graph.tensors[left].quantization.scale[0])
            marked = id(graph.tensors[source_of(entered)])
            numbers[marked] = (*numbers.get(marked, ()), round(scale / _UNIT) - 1)
            rounded.add(left)
        elif entered not in rounded:
            kept.append(operator)
            continue
        sources[left] = entered
    graph.operators = kept

    def rename(indices: Any) -> np.ndarray:
        return np.array([source_of(int(index)) for index in indices], np.int32)

    for operator in graph.operators:
        operator.inputs = rename(operator.inputs)
    graph.outputs = rename(graph.outputs)
    for definition in model.signatureDefs or ():
        for entry in definition.outputs:
            entry.tensorIndex = source_of(entry.tensorIndex)
    editing.drop_unused_tensors(model, graph)
    return {i: numbers[id(t)] for i, t in enumerate(graph.tensors) if id(t) in numbers}
