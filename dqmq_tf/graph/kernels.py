"""The kernels of a layer: which variables they are, what they become, what they cost."""

import math

import keras

from dqmq_tf.graph.fold_rules import einsum_terms


def variable_names(layer):
    """Returns `{name: variable}` of a layer's weights, named by their path inside the layer.

    Most are `"kernel"` or `"bias"`; a layer made of layers has `"query/kernel"` and the like.
    """
    named = {}
    for variable in layer.weights:
        parts = variable.path.split("/")
        if layer.name in parts[:-1]:
            parts = parts[len(parts) - 1 - parts[-2::-1].index(layer.name) :]
        name = "/".join(parts)
        while name in named:
            name += "_"
        named[name] = variable
    return named


_NO_KERNEL = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.PReLU,
)
_OP_KINDS = {
    "depthwise": (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D),
    "transpose": (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose),
    "conv": (keras.layers.Conv1D, keras.layers.Conv2D),
    "dense": (keras.layers.Dense, keras.layers.EinsumDense),
    "embedding": (keras.layers.Embedding,),
}


def kernel_variables(layer):
    """Returns `{name: variable}` of what multiplies a layer's input: float, rank >= 2, no bias."""
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


def op_kind(layer):
    """Returns the kind of op that a layer becomes, one of `dqmq_tf.targets.OP_KINDS`."""
    for kind, layers in _OP_KINDS.items():
        if isinstance(layer, layers):
            return kind
    return "other"


def channel_axes(layer, name, variable, per_tensor=frozenset()):
    """Returns the axes of a variable that index output channels.

    Args:
        layer: The layer.
        name: Of the variable in the layer.
        variable: The variable.
        per_tensor: Kinds of op whose weights have one step for the whole tensor, as of a `Target`.

    Returns:
        The axes, `()` where there is one step for the whole tensor.
    """
    rank = len(variable.shape)
    if op_kind(layer) in per_tensor:
        return ()
    if "depthwise" in name or op_kind(layer) == "depthwise":
        return (rank - 2, rank - 1)
    if op_kind(layer) == "transpose":
        return (rank - 2,)
    if op_kind(layer) == "embedding":
        return (0,)
    if isinstance(layer, keras.layers.EinsumDense):
        entered, kernel, output = einsum_terms(layer)
        # A letter that the input has too makes no channel: a file holds steps along one axis.
        axes = tuple(i for i, n in enumerate(kernel) if n in output and n not in entered)
        return axes or (rank - 1,)
    return (rank - 1,)


def multiply_accumulates(graph, node, variable):
    """Returns how many multiply-accumulates one call spends on a variable, per input."""
    if isinstance(node.layer, keras.layers.Embedding):
        return 0
    size = math.prod(variable.shape)
    entered, left = graph.shapes[node.inputs[0]], graph.shapes[node.outputs[0]]
    over_time = (keras.layers.RNN, keras.layers.Bidirectional)
    if isinstance(node.layer, over_time) or "Transpose" in type(node.layer).__name__:
        shape = entered
    else:
        shape = left
    if isinstance(node.layer, keras.layers.EinsumDense):
        term, kernel, _ = einsum_terms(node.layer)
        # The letters of an ellipsis are in no kernel.
        term = term.replace("...", "." * (len(entered) - len(term.replace("...", ""))))
        return size * math.prod(
            n or 1 for letter, n in list(zip(term, entered))[1:] if letter not in kernel
        )
    if getattr(node.layer, "data_format", None) == "channels_first" and len(shape) > 2:
        positions = shape[2:]
    else:
        positions = shape[1:-1]
    return size * math.prod(n or 1 for n in positions)


def is_float(dtype):
    """Whether a dtype is one of floating point."""
    return str(keras.backend.standardize_dtype(dtype)).startswith(("float", "bfloat"))
