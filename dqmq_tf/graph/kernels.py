"""The kernels of a layer: which variables they are, which operator they become, what they cost."""

from __future__ import annotations

import math
import re
import string
import typing
from collections.abc import Collection
from typing import Any

import keras

from dqmq_tf.graph.cloning import layers_inside

if typing.TYPE_CHECKING:
    from dqmq_tf.graph.graph import Graph, Node

# The dtype of images. Floating point has their integers, so a cast to it changes nothing.
PIXELS = "uint8"
# The linear layers, one kernel and one bias each, by the kind of operator that they become (see
# `dqmq_tf.targets.OP_KINDS`). Everything that depends on the class of a linear layer reads this.
LINEAR_LAYERS = {
    "depthwise": (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
    "transpose": (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose),
    "conv": (keras.layers.Conv1D, keras.layers.Conv2D),
    "dense": (keras.layers.Dense, keras.layers.EinsumDense),
}
_TRANSPOSED = (*LINEAR_LAYERS["transpose"], keras.layers.Conv3DTranspose)
_NO_KERNEL = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.PReLU,
)


def op_kind(layer: Any) -> str:
    """Returns the kind of operator that a layer becomes, one of `dqmq_tf.targets.OP_KINDS`."""
    for kind, classes in LINEAR_LAYERS.items():
        if isinstance(layer, classes):
            return kind
    return "embedding" if isinstance(layer, keras.layers.Embedding) else "other"


def is_linear(layer: Any) -> bool:
    """Whether a layer multiplies its input by one kernel and adds one bias."""
    return op_kind(layer) in LINEAR_LAYERS


def variable_names(layer: Any) -> dict[str, Any]:
    """Returns `{name: variable}` of a layer's weights, named by their path inside the layer.

    Most are `"kernel"` or `"bias"`. A layer made of layers has `"query/kernel"` and the like.
    """
    variables: dict[str, Any] = {}
    for variable in layer.weights:
        parts = variable.path.split("/")
        if layer.name in parts[:-1]:
            parts = parts[len(parts) - 1 - parts[-2::-1].index(layer.name) :]
        name = "/".join(parts)
        while name in variables:
            name += "_"
        variables[name] = variable
    return variables


def kernel_variables(layer: Any) -> dict[str, Any]:
    """Returns `{name: variable}` of the kernels of a layer.

    A kernel is a floating-point variable of rank 2 or more that multiplies the layer's input.
    """
    if not isinstance(layer, keras.layers.Layer) or isinstance(layer, _NO_KERNEL):
        return {}
    return {
        name: variable
        for name, variable in variable_names(layer).items()
        if len(variable.shape) >= 2
        and "bias" not in variable.name
        and is_float(variable.dtype)
        and (variable.trainable or not layer.trainable)
    }


def check_kernels(node: Node) -> None:
    """Raises `ValueError` if Keras has changed the kernels of a layer, or of one inside it.

    Args:
        node: The node of the layer.
    """
    for layer in layers_inside(node.layer):
        if getattr(layer, "lora_enabled", False):
            raise ValueError(
                f"Layer {node.path!r} has LoRA weights beside its kernel. Build the model without "
                "enable_lora, and load the weights that model.save_weights wrote: it adds them to the "
                "kernel."
            )
        mode = getattr(layer, "quantization_mode", None)
        if mode is not None:
            raise ValueError(
                f"Layer {node.path!r} is quantized by Keras ({mode}). Give quantize_model the float "
                "model, before model.quantize changed it."
            )


def channel_axes(
    layer: Any, name: str, variable: Any, per_tensor: Collection[str] = frozenset()
) -> tuple[int, ...]:
    """Returns the axes of a variable that index output channels.

    Args:
        layer: The layer.
        name: The name of the variable in the layer.
        variable: The variable.
        per_tensor: The kinds of operator whose weights have one step for the whole tensor (see
            `dqmq_tf.targets.Target`).

    Returns:
        The axes. `()` if there is one step for the whole tensor.
    """
    rank, kind = len(variable.shape), op_kind(layer)
    if kind in per_tensor:
        return ()
    if "depthwise" in name or kind == "depthwise":
        return (rank - 2, rank - 1)
    if kind == "transpose":
        return (rank - 2,)
    if kind == "embedding":
        return (0,)
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, kernel, outputs = einsum_terms(layer.equation)
        # A file holds steps along one axis. An axis that the input has too is no channel axis.
        axes = tuple(i for i, n in enumerate(kernel) if n in outputs and n not in inputs)
        return axes or (rank - 1,)
    return (rank - 1,)


def multiply_accumulates(graph: Graph, node: Node, variable: Any) -> int:
    """Returns the number of multiply-accumulates per input that one call spends on a variable."""
    layer = node.layer
    if isinstance(layer, keras.layers.Embedding):
        return 0
    size = math.prod(variable.shape)
    input_shape, output_shape = graph.shapes[node.inputs[0]], graph.shapes[node.outputs[0]]
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, kernel, _ = einsum_terms(layer.equation, len(input_shape))
        axes = list(zip(inputs, input_shape))[1:]
        return size * math.prod(n or 1 for letter, n in axes if letter not in kernel)
    # A kernel meets each position of the output once, or each position of the input: transposed
    # convolutions spread input positions, and recurrent layers run over the input's time steps.
    over_time = isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional))
    by_input = over_time or isinstance(layer, _TRANSPOSED)
    shape = input_shape if by_input else output_shape
    is_channels_first = getattr(layer, "data_format", None) == "channels_first"
    positions = shape[2:] if is_channels_first and len(shape) > 2 else shape[1:-1]
    return size * math.prod(n or 1 for n in positions)


def einsum_terms(equation: str, rank: int | None = None) -> tuple[str, str, str]:
    """Returns the axes of an `EinsumDense`'s input, kernel and output, one letter per axis.

    Args:
        equation: The equation of the layer.
        rank: The rank of its input. An ellipsis, whose axes the kernel does not have, is replaced
            by letters that are not in the equation. None to keep an ellipsis.

    Example:

    >>> einsum_terms("...x,xy->...y", rank=3)
    ('ABx', 'xy', 'ABy')
    """
    inputs, kernel, outputs = re.split(",|->", equation.replace(" ", ""))
    if rank is None:
        return inputs, kernel, outputs
    unused = [letter for letter in string.ascii_uppercase if letter not in equation]
    axes = "".join(unused[: rank - len(inputs.replace("...", ""))])
    return inputs.replace("...", axes), kernel, outputs.replace("...", axes)


def is_float(dtype: Any) -> bool:
    """Whether a dtype is a floating-point type."""
    return str(keras.backend.standardize_dtype(dtype)).startswith(("float", "bfloat"))
