"""What folds into the kernel of the linear layer before it: batch norms and rescalings."""

import numbers
from typing import Any

import keras

from dqmq_tf.graph.kernels import einsum_terms, is_linear

# They have more kernels or dimensions than one int8 kernel, but their output channels can be
# rescaled all the same.
_ALSO_FOLDABLE = (
    keras.layers.Conv3D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


def is_foldable(layer: Any) -> bool:
    """Whether a batch norm after this layer only rescales its output channels."""
    if not is_linear(layer) and not isinstance(layer, _ALSO_FOLDABLE):
        return False
    if layer.activation is not keras.activations.linear:
        return False
    return not isinstance(layer, keras.layers.EinsumDense) or bool(einsum_output_axes(layer))


def einsum_output_axes(layer: keras.layers.EinsumDense) -> tuple[int, ...]:
    """Returns the axes of an `EinsumDense` kernel that are the output's channels.

    Args:
        layer: A `keras.layers.EinsumDense`.

    Returns:
        The axes. `()` if the layer is more than a matrix product: if the kernel has an axis that
        input and output share, if its axes are not the last ones of the output in the same order,
        or if the bias has another axis.

    Example:

    >>> layer = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4))
    >>> dqmq_tf.graph.fold_rules.einsum_output_axes(layer)
    (1, 2)
    """
    inputs, kernel, outputs = einsum_terms(layer.equation)
    channels = [letter for letter in kernel if letter in outputs]
    is_product = not set(channels) & set(inputs) and set(layer.bias_axes or "") <= set(channels)
    if not channels or not is_product or not outputs.endswith("".join(channels)):
        return ()
    return tuple(kernel.index(letter) for letter in channels)


def folds_into(layer: Any, linear: Any, rank: int) -> bool:
    """Whether a batch norm or rescaling multiplies each output channel of a layer by a number.

    Args:
        layer: The `BatchNormalization` or `Rescaling`.
        linear: The layer before it, for which `is_foldable` holds.
        rank: The rank of the tensor between them.
    """
    axes = 1
    if isinstance(linear, keras.layers.EinsumDense):
        axes = len(einsum_output_axes(linear))
    if isinstance(layer, keras.layers.Rescaling):
        is_scalar = all(isinstance(n, numbers.Real) for n in (layer.scale, layer.offset))
        return is_scalar and layer.scale != 0 and (axes == 1 or layer.offset == 0)
    is_channels_first = getattr(linear, "data_format", "") == "channels_first"
    return axes == 1 and layer.axis % rank == (1 if is_channels_first else rank - 1)
