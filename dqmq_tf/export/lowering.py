"""How each Keras layer is written into a file: one function per kind of layer.

A layer that is not in the table, or whose options no integer kernel has, computes in floating
point on its integer weights, and the report says so (see `island`).
"""

import keras

from dqmq_tf.export import elementwise, island, linear, movement
from dqmq_tf.export.errors import FloatOnly, UnsupportedLayerError


def lower(builder, node):
    """Adds one node of the graph to the skeleton.

    Args:
        builder: `dqmq_tf.export.skeleton.Builder`.
        node: `dqmq_tf.graph.Node`.

    Raises:
        UnsupportedLayerError: If the layer has no counterpart in a file.
    """
    builder.site = node.site
    try:
        reason = builder.why_float(node)
        function = _LOWERINGS.get(type(node.layer)) or _OPERATIONS.get(_operation_name(node))
        if function is None:
            reason = reason or f"TFLite has no integer kernel for {type(node.layer).__name__}"
        if reason:
            raise FloatOnly(reason)
        function(builder, node)
    except FloatOnly as only:
        island.lower(builder, node, str(only))


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
                node.site,
                f"{name}: it makes a mask",
                "A file has no masks: pad the inputs to one length, and use mask_zero=False.",
            )
        if getattr(layer, "stateful", False):
            raise UnsupportedLayerError(
                node.site,
                f"{name}: stateful=True",
                "A file keeps nothing from one input to the next: use stateful=False, and hand the "
                "state in and out.",
            )
        linear.check_dilation(node)
        movement.check_interpolation(node)
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
    _layers.GlobalAveragePooling1D: movement.global_average,
    _layers.GlobalAveragePooling2D: movement.global_average,
    _layers.AveragePooling1D: movement.local(_layers.AveragePooling2D, "pool_size", "strides"),
    _layers.AveragePooling2D: movement.average,
    _layers.MaxPooling1D: movement.local(_layers.MaxPooling2D, "pool_size", "strides"),
    _layers.MaxPooling2D: movement.moved,
    _layers.GlobalMaxPooling1D: movement.global_max,
    _layers.GlobalMaxPooling2D: movement.global_max,
    _layers.Flatten: movement.moved,
    _layers.Reshape: movement.moved,
    _layers.Permute: movement.moved,
    _layers.ZeroPadding1D: movement.local(_layers.ZeroPadding2D, "padding"),
    _layers.ZeroPadding2D: movement.moved,
    _layers.Cropping1D: movement.local(_layers.Cropping2D, "cropping"),
    _layers.Cropping2D: movement.moved,
    _layers.UpSampling1D: movement.upsampling_of_signals,
    _layers.UpSampling2D: movement.upsampling,
    _layers.Resizing: movement.resizing,
    _layers.Dropout: movement.same,
    _layers.SpatialDropout1D: movement.same,
    _layers.SpatialDropout2D: movement.same,
    _layers.AlphaDropout: movement.same,
    _layers.GaussianDropout: movement.same,
    _layers.GaussianNoise: movement.same,
    _layers.ActivityRegularization: movement.same,
    _layers.Identity: movement.same,
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
    "Reshape": movement.moved,
    "Transpose": movement.moved,
    "ExpandDims": movement.moved,
    "Squeeze": movement.moved,
}
