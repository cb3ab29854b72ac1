"""Markers that identify the tensors of the lowered model in the converted file.

The converter does not keep the names of tensors, and different tensors may have equal values. So
every tensor of the lowered model that is quantized, or computed in floating point, passes through a
marker: a fake quantization whose scale encodes the number of the tensor. The converter turns each
marker into a QUANTIZE operator followed by a DEQUANTIZE operator. It moves no operator past them
except a RESHAPE, which does not change values. `remove_markers` reads the numbers and removes these
operators.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import ModelT, editing

# The scale of marker n is (n + 1) * _UNIT. As _UNIT is a power of two and n is small, float32
# represents every scale exactly.
_UNIT = 2.0**-10
_MAX_MARKERS = 2**14
# The number of the markers that tag nothing.
_BARRIER = _MAX_MARKERS


class Marker(keras.layers.Layer):
    """Tags a float tensor with a number that survives the converter.

    Args:
        number: An int, 0 to 16,383.

    Raises:
        ConversionError: If the number is out of this range.
    """

    def __init__(self, number: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= number < _MAX_MARKERS:
            raise ConversionError(
                f"The model has more than {_MAX_MARKERS:,} tensors between its layers, which is "
                "the most that can be converted. Split it into several models."
            )
        self.number = number

    def call(self, x: Any) -> Any:
        return _marked(x, self.number)

    def compute_output_spec(self, x: Any) -> keras.KerasTensor:
        # Keras may take the product with a number for a sparse tensor. The output is always dense.
        return keras.KerasTensor(x.shape, dtype=x.dtype)


def barrier(x: Any) -> Any:
    """Returns a tensor that the converter moves nothing past, and that stays without a number."""
    return _marked(x, _BARRIER)


def _marked(x: Any, number: int) -> Any:
    """Returns a tensor with a marker of a number."""
    scale = (number + 1) * _UNIT
    # A concatenation of integers is one of integers, though Keras declares floating point.
    return tf.quantization.fake_quant_with_min_max_args(
        tf.cast(x, "float32"), min=-128 * scale, max=127 * scale, num_bits=8
    )


def remove_markers(model: ModelT) -> dict[int, tuple[int, ...]]:
    """Removes the markers from a file.

    Args:
        model: The `ModelT` of the float file, changed in place.

    Returns:
        `{tensor index: numbers}` of the marked tensors. A tensor has several numbers if the
        converter removed a layer between two markers because it changes nothing.
    """
    graph, kept_operators = model.subgraphs[0], []
    # Maps the output of each removed operator to its input.
    sources: dict[int, int] = {}
    numbers: dict[int, tuple[int, ...]] = {}
    quantize_outputs = set()

    def source_of(index: int) -> int:
        while index in sources:
            index = sources[index]
        return index

    for operator in graph.operators:
        name = flatbuffer.operator_name(model, operator)
        if name not in ("QUANTIZE", "DEQUANTIZE"):
            kept_operators.append(operator)
            continue
        input_index, output_index = int(operator.inputs[0]), int(operator.outputs[0])
        if name == "QUANTIZE":
            scale = float(graph.tensors[output_index].quantization.scale[0])
            marked, number = id(graph.tensors[source_of(input_index)]), round(scale / _UNIT) - 1
            if number != _BARRIER:
                numbers[marked] = (*numbers.get(marked, ()), number)
            quantize_outputs.add(output_index)
        elif input_index not in quantize_outputs:
            kept_operators.append(operator)
            continue
        sources[output_index] = input_index
    graph.operators = kept_operators

    def bypass(indices: Any) -> np.ndarray:
        return np.array([source_of(int(index)) for index in indices], np.int32)

    for operator in graph.operators:
        operator.inputs = bypass(operator.inputs)
    graph.outputs = bypass(graph.outputs)
    for definition in model.signatureDefs or ():
        for entry in definition.outputs:
            entry.tensorIndex = source_of(entry.tensorIndex)
    editing.drop_unused_tensors(model, graph)
    # Removing tensors changed the indices, so the numbers are keyed by the tensor objects.
    return {i: numbers[id(t)] for i, t in enumerate(graph.tensors) if id(t) in numbers}
