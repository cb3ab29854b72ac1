"""What folds into the kernel of the linear layer before it: batch norms and rescalings."""

import numbers
import re

import keras


def is_foldable(layer):
    """Whether a batch norm after this layer rescales its output channels and nothing else."""
    kinds = (
        keras.layers.Conv1D,
        keras.layers.Conv2D,
        keras.layers.Conv3D,
        keras.layers.DepthwiseConv1D,
        keras.layers.DepthwiseConv2D,
        keras.layers.Conv1DTranspose,
        keras.layers.Conv2DTranspose,
        keras.layers.Dense,
        keras.layers.EinsumDense,
        keras.layers.SeparableConv1D,
        keras.layers.SeparableConv2D,
    )
    if not isinstance(layer, kinds) or layer.activation is not keras.activations.linear:
        return False
    return not isinstance(layer, keras.layers.EinsumDense) or bool(einsum_output_axes(layer))


def einsum_terms(layer):
    """Returns the letters of an `EinsumDense`'s input, kernel and output."""
    return re.split(",|->", layer.equation.replace(" ", ""))


def einsum_output_axes(layer):
    """Returns the axes of an `EinsumDense` kernel that are the output's channels.

    Args:
        layer: A `keras.layers.EinsumDense`.

    Returns:
        The axes, or `()` where the layer is more than a matrix product: where the kernel has an axis
        that input and output share, or its axes are not the last ones of the output in their order,
        or the bias has another axis.

    Example:

    >>> dqmq_tf.graph.fold_rules.einsum_output_axes(keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4)))
    (1, 2)
    """
    entered, kernel, left = einsum_terms(layer)
    made = [letter for letter in kernel if letter in left]
    bias = layer.bias_axes or ""
    plain = not set(made) & set(entered) and set(bias) <= set(made)
    if not made or not plain or not left.endswith("".join(made)):
        return ()
    return tuple(kernel.index(letter) for letter in made)


def folds_into(layer, linear, rank):
    """Whether a batch norm or rescaling multiplies each output channel of a layer by a number.

    Args:
        layer: The `BatchNormalization` or `Rescaling`.
        linear: The layer before it, for which `is_foldable` holds.
        rank: Of the tensor between them.
    """
    axes = 1
    if isinstance(linear, keras.layers.EinsumDense):
        axes = len(einsum_output_axes(linear))
    if isinstance(layer, keras.layers.Rescaling):
        plain = all(isinstance(n, numbers.Real) for n in (layer.scale, layer.offset))
        return plain and layer.scale != 0 and (axes == 1 or layer.offset == 0)
    first = getattr(linear, "data_format", "") == "channels_first"
    return axes == 1 and layer.axis % rank == (1 if first else rank - 1)
