"""Layers of Keras that convolve with parts of a kernel, here with the whole kernel.

A file stores a variable in one tensor. `ConvLSTMCell` splits its kernels into those of its four
gates, so that the converter would store four tensors. A convolution with the whole kernel computes
the same, and a device runs one operator instead of four.
"""

import functools
from typing import Any

import keras
from keras import ops

from dqmq_tf.graph.cloning import layers_inside
from dqmq_tf.graph.plain_classes import keras_name


def use_whole_kernels(layer: keras.layers.Layer) -> None:
    """Makes a layer, and each layer inside it, convolve with whole kernels at inference.

    Args:
        layer: The layer, changed in place.
    """
    for cell in layers_inside(layer):
        # Keras does not export the class. A subclass may compute something else.
        is_known = keras_name(cell) == "ConvLSTMCell"
        if is_known and cell.data_format == "channels_last":
            cell.call = functools.partial(_call_conv_lstm, cell)


def _call_conv_lstm(
    cell: Any, inputs: Any, states: Any, training: bool = False
) -> tuple[Any, list[Any]]:
    """Computes what `ConvLSTMCell.call` does without dropout. The arguments are those of it."""
    memory, carry = states
    gates = cell.input_conv(inputs, cell.kernel, padding=cell.padding)
    gates += cell.recurrent_conv(memory, cell.recurrent_kernel)
    if cell.bias is not None:
        gates += cell.bias
    input_gate, forget_gate, candidate, output_gate = ops.split(gates, 4, axis=-1)
    carry = cell.recurrent_activation(forget_gate) * carry + cell.recurrent_activation(
        input_gate
    ) * cell.activation(candidate)
    memory = cell.recurrent_activation(output_gate) * cell.activation(carry)
    return memory, [memory, carry]
