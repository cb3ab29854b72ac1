"""Chooses the function that lowers a node of the graph.

To support a further layer, add its class to `_LOWERINGS`. A layer that is not in the table, or
whose options no integer kernel supports, computes in floating point on its integer weights (see
`float_fallback`), and the report gives the reason.
"""

import keras

from dqmq_tf.errors import FloatOnly, UnsupportedLayerError
from dqmq_tf.graph import Graph, Node
from dqmq_tf.graph.aliases import sources_of
from dqmq_tf.graph.hidden_inputs import hidden_input
from dqmq_tf.graph.kernels import is_float
from dqmq_tf.graph.plain_classes import keras_name, plain_class
from dqmq_tf.graph.splitting import makes_mask
from dqmq_tf.lowering import data_movement, elementwise, float_fallback, functions, linear, padding
from dqmq_tf.lowering.builder import Lowering, LoweringBuilder


def lower(builder: LoweringBuilder, node: Node) -> None:
    """Adds one node of the graph to the lowered model.

    Args:
        builder: The `LoweringBuilder`, changed in place.
        node: The `dqmq_tf.graph.Node`.

    Raises:
        UnsupportedLayerError: If a file cannot hold the layer.
        ConversionError: If a file cannot hold the quantization of its output.
    """
    builder.path = node.path
    sources = sources_of(builder.graph, node)
    if sources is not None:
        for tensor, source in zip(node.outputs, sources):
            builder.forward(tensor, source)
        return
    try:
        _integer_lowering(builder, node)(builder, node)
    except FloatOnly as error:
        float_fallback.lower(builder, node, str(error))


def check_supported(graph: Graph) -> None:
    """Rejects a graph with a layer that a file cannot hold, before any work is done.

    Args:
        graph: The inlined `dqmq_tf.graph.Graph`.

    Raises:
        UnsupportedLayerError: For the first such layer.
    """
    for node in graph.nodes:
        layer = node.layer
        name = type(layer).__name__
        if makes_mask(layer):
            raise UnsupportedLayerError(
                node.path,
                f"{name}: it makes a mask",
                "A file has no masks: pad the inputs to one length, and use mask_zero=False.",
            )
        if getattr(layer, "stateful", False):
            raise UnsupportedLayerError(
                node.path,
                f"{name}: stateful=True",
                "A file keeps no state from one input to the next: use stateful=False, and make "
                "the state an input and an output of the model.",
            )
        reason = hidden_input(graph, node)
        if reason is not None:
            raise UnsupportedLayerError(
                node.path,
                f"{name}: {reason}",
                "A file computes its outputs from its inputs alone: do that only if training=True, "
                "or make the random numbers or the state an input of the model.",
            )
        linear.check_dilation(node)
        data_movement.check_interpolation(node)
        elementwise.check_data_format(node)


def _integer_lowering(builder: LoweringBuilder, node: Node) -> Lowering:
    """Returns the function that lowers a node to integer kernels.

    Raises:
        FloatOnly: If there is none, or if the precision leaves the node in floating point.
    """
    reason = builder.float_reason(node)
    if reason:
        raise FloatOnly(reason)
    kind = plain_class(node.layer)
    lowering = _LOWERINGS.get(kind)
    if lowering is None and not isinstance(node.layer, keras.Layer):
        lowering = _OPERATIONS.get(keras_name(node.layer))
    if lowering is None:
        raise FloatOnly(f"TFLite has no integer kernel for {kind.__name__}")
    if _reads_integers(builder, node, lowering):
        raise FloatOnly("it reads integers")
    return lowering


def _reads_integers(builder: LoweringBuilder, node: Node, lowering: Lowering) -> bool:
    """Whether a node reads integers that are on no grid, which its kernel does not take."""
    dtypes = builder.graph.dtypes
    is_function = not isinstance(node.layer, keras.Layer)
    is_integer = not any(is_float(dtypes[tensor]) for tensor in node.inputs)
    if is_function and is_integer and lowering is not data_movement.move_values:
        return True
    # Pixels are on a grid. Indices and masks are no numbers to compute with.
    has_numbers = any(
        not (is_float(dtypes[tensor]) or dtypes[tensor] == "bool" or builder.has_grid(tensor))
        for tensor in node.inputs
    )
    makes_floats = any(is_float(dtypes[tensor]) for tensor in node.outputs)
    return has_numbers and makes_floats and keras_name(node.layer) not in _READ_INDICES


_READ_INDICES = {"Embedding", "GetItem", "Take"}
_layers = keras.layers
# By the exact class of the layer, as a subclass may compute something else.
_LOWERINGS: dict[type, Lowering] = {
    _layers.Conv1D: linear.convolution,
    _layers.Conv2D: linear.convolution,
    _layers.DepthwiseConv1D: linear.convolution,
    _layers.DepthwiseConv2D: linear.convolution,
    _layers.Conv1DTranspose: linear.convolution,
    _layers.Conv2DTranspose: linear.convolution,
    _layers.Dense: linear.dense,
    _layers.EinsumDense: linear.einsum,
    _layers.Embedding: linear.embedding,
    _layers.BatchNormalization: elementwise.batch_norm,
    _layers.Rescaling: elementwise.rescaling,
    _layers.Normalization: elementwise.normalization,
    _layers.Activation: elementwise.activation,
    _layers.ReLU: elementwise.relu,
    _layers.LeakyReLU: elementwise.leaky_relu,
    _layers.Softmax: elementwise.softmax,
    _layers.Add: elementwise.compute_values,
    _layers.Subtract: elementwise.compute_values,
    _layers.Multiply: elementwise.compute_values,
    _layers.Concatenate: elementwise.compute_values,
    _layers.GlobalAveragePooling1D: data_movement.global_average,
    _layers.GlobalAveragePooling2D: data_movement.global_average,
    _layers.AveragePooling1D: data_movement.as_image_layer(
        _layers.AveragePooling2D, "pool_size", "strides"
    ),
    _layers.AveragePooling2D: data_movement.average,
    _layers.MaxPooling1D: data_movement.as_image_layer(
        _layers.MaxPooling2D, "pool_size", "strides"
    ),
    _layers.MaxPooling2D: data_movement.move_values,
    _layers.GlobalMaxPooling1D: data_movement.global_max,
    _layers.GlobalMaxPooling2D: data_movement.global_max,
    _layers.Flatten: data_movement.move_values,
    _layers.RepeatVector: functions.repeat,
    _layers.Reshape: data_movement.move_values,
    _layers.Permute: data_movement.move_values,
    _layers.ZeroPadding1D: padding.zero_padding(
        data_movement.as_image_layer(_layers.ZeroPadding2D, "padding")
    ),
    _layers.ZeroPadding2D: padding.zero_padding(data_movement.move_values),
    _layers.Cropping1D: data_movement.as_image_layer(_layers.Cropping2D, "cropping"),
    _layers.Cropping2D: data_movement.move_values,
    _layers.UpSampling1D: data_movement.upsampling_of_signals,
    _layers.UpSampling2D: data_movement.upsampling,
    _layers.Resizing: data_movement.resizing,
}
# By class name, as Keras does not export the classes of its operations.
_OPERATIONS: dict[str, Lowering] = {
    "Add": elementwise.arithmetic,
    "Subtract": elementwise.arithmetic,
    "Multiply": elementwise.arithmetic,
    "Divide": elementwise.arithmetic,
    "TrueDivide": elementwise.arithmetic,
    "Negative": elementwise.arithmetic,
    "Matmul": elementwise.product,
    "Relu": elementwise.activation_function("relu"),
    "Relu6": elementwise.activation_function("relu6"),
    # `keras.activations.relu`, in contrast to `keras.ops.relu`.
    "ReLU": elementwise.relu,
    "Sigmoid": elementwise.activation_function("sigmoid"),
    "Silu": elementwise.activation_function("silu"),
    "Tanh": elementwise.activation_function("tanh"),
    "Gelu": elementwise.compute_values,
    "HardSilu": elementwise.activation_function("hard_silu"),
    "LeakyRelu": elementwise.compute_values,
    "Softmax": elementwise.softmax,
    "Append": functions.along_axis(elementwise.compute_values),
    "Concatenate": functions.along_axis(elementwise.compute_values),
    "Hstack": functions.hstack,
    "Stack": functions.along_axis(functions.stack),
    "Split": functions.along_axis(functions.split),
    "Unstack": functions.along_axis(functions.split),
    "Take": functions.along_axis(functions.take),
    "GetItem": functions.get_item,
    "Flip": functions.flip,
    "Repeat": functions.along_axis(functions.repeat),
    "Tile": functions.repeat,
    "Pad": functions.pad,
    "MaxPool": functions.pool(_layers.MaxPooling2D),
    "AveragePool": functions.pool(_layers.AveragePooling2D),
    "Amax": functions.maximum_of_axes,
    "Max": functions.maximum_of_axes,
    "Mean": functions.mean,
    "Resize": data_movement.resizing,
    "Moveaxis": data_movement.move_values,
    "Reshape": data_movement.move_values,
    "Swapaxes": data_movement.move_values,
    "Transpose": data_movement.move_values,
    "ExpandDims": data_movement.move_values,
    "Squeeze": data_movement.move_values,
}
