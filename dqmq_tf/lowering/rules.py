"""How each Keras layer is written into a file: one function per kind of layer.

A layer that is not in the table, or whose options no integer kernel has, computes in floating
point on its integer weights, and the report says so (see `island`).
"""

import keras

from dqmq_tf.errors import FloatOnly, UnsupportedLayerError
from dqmq_tf.graph.aliases import sources_of
from dqmq_tf.lowering import data_movement, elementwise, float_fallback, linear


def lower(builder, node):
    """Adds one node of the graph to the lowered.

    Args:
        builder: `LoweringBuilder`.
        node: `dqmq_tf.graph.Node`.

    Raises:
        UnsupportedLayerError: If the layer has no counterpart in a file.
    """
    builder.path = node.path
    sources = sources_of(builder.graph, node)
    if sources is not None:
        for tensor, source in zip(node.outputs, sources):
            builder.forward(tensor, source)
        return
    try:
        reason = builder.float_reason(node)
        function = _LOWERINGS.get(type(node.layer)) or _OPERATIONS.get(_operation_name(node))
        if function is None:
            reason = reason or f"TFLite has no integer kernel for {type(node.layer).__name__}"
        if reason:
            raise FloatOnly(reason)
        function(builder, node)
    except FloatOnly as only:
        float_fallback.lower(builder, node, str(only))


def check_supported(graph):
    """Refuses a graph with a layer that has no counterpart in a file, before any work is done.

    Args:
        graph: `dqmq_tf.graph.Graph`.

    Raises:
        UnsupportedLayerError: For the first such layer.
    """
    for node in graph.nodes:
        layer = node.layer
        name = type(layer).__name__
        if isinstance(layer, keras.layers.Masking) or getattr(layer, "mask_zero", False):
            raise UnsupportedLayerError(
                node.path,
                f"{name}: it makes a mask",
                "A file has no masks: pad the inputs to one length, and use mask_zero=False.",
            )
        if getattr(layer, "stateful", False):
            raise UnsupportedLayerError(
                node.path,
                f"{name}: stateful=True",
                "A file keeps nothing from one input to the next: use stateful=False, and hand the "
                "state in and out.",
            )
        linear.check_dilation(node)
        data_movement.check_interpolation(node)
        elementwise.check_data_format(node)


def _operation_name(node):
    return None if isinstance(node.layer, keras.Layer) else type(node.layer).__name__


_layers = keras.layers
_LOWERINGS = {
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
    _layers.Add: elementwise.computed,
    _layers.Subtract: elementwise.computed,
    _layers.Multiply: elementwise.computed,
    _layers.Concatenate: elementwise.computed,
    _layers.GlobalAveragePooling1D: data_movement.global_average,
    _layers.GlobalAveragePooling2D: data_movement.global_average,
    _layers.AveragePooling1D: data_movement.local(_layers.AveragePooling2D, "pool_size", "strides"),
    _layers.AveragePooling2D: data_movement.average,
    _layers.MaxPooling1D: data_movement.local(_layers.MaxPooling2D, "pool_size", "strides"),
    _layers.MaxPooling2D: data_movement.move_values,
    _layers.GlobalMaxPooling1D: data_movement.global_max,
    _layers.GlobalMaxPooling2D: data_movement.global_max,
    _layers.Flatten: data_movement.move_values,
    _layers.Reshape: data_movement.move_values,
    _layers.Permute: data_movement.move_values,
    _layers.ZeroPadding1D: data_movement.local(_layers.ZeroPadding2D, "padding"),
    _layers.ZeroPadding2D: data_movement.move_values,
    _layers.Cropping1D: data_movement.local(_layers.Cropping2D, "cropping"),
    _layers.Cropping2D: data_movement.move_values,
    _layers.UpSampling1D: data_movement.upsampling_of_signals,
    _layers.UpSampling2D: data_movement.upsampling,
    _layers.Resizing: data_movement.resizing,
}
# By class name: Keras does not export the classes of its operations.
_OPERATIONS = {
    "Add": elementwise.arithmetic(lambda c, first: 1.0, lambda c, first: c),
    "Subtract": elementwise.arithmetic(
        lambda c, first: -1.0 if first else 1.0, lambda c, first: c if first else -c
    ),
    "Multiply": elementwise.arithmetic(lambda c, first: c, lambda c, first: 0.0),
    "Matmul": elementwise.product,
    "Relu": elementwise.function("relu"),
    "Relu6": elementwise.function("relu6"),
    "Sigmoid": elementwise.function("sigmoid"),
    "Silu": elementwise.function("silu"),
    "Tanh": elementwise.function("tanh"),
    "Gelu": elementwise.computed,
    "LeakyRelu": elementwise.computed,
    "Reshape": data_movement.move_values,
    "Transpose": data_movement.move_values,
    "ExpandDims": data_movement.move_values,
    "Squeeze": data_movement.move_values,
}
