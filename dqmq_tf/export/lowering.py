"""How each Keras layer is written on the integer road: one function per kind of layer.

A layer type that is not in the table has no counterpart that computes the same integers, and is
refused by name rather than left in floating point.
"""

import keras
import numpy as np

from dqmq_tf.export import folding
from dqmq_tf.export.errors import UnsupportedLayerError
from dqmq_tf.points import is_global_average
from dqmq_tf.precision import ActivationPrecision

# Fused into the operator before them; the tensor in front is never rounded.
_FUSED_ACTIVATIONS = ("linear", "relu", "relu6")
_LONE_ACTIVATIONS = ("softmax", "sigmoid", "tanh", "hard_silu")
# Their kernels write one grid.
_FIXED_GRIDS = {
    "softmax": ActivationPrecision(step=1 / 256, zero_point=0, bit_width=8),
    "sigmoid": ActivationPrecision(step=1 / 256, zero_point=0, bit_width=8),
    "tanh": ActivationPrecision(step=1 / 128, zero_point=128, bit_width=8),
}


def lower(builder, node):
    """Adds one node of the graph to the skeleton.

    Args:
        builder: `dqmq_tf.export.skeleton.Builder`.
        node: `dqmq_tf.graph.Node`.

    Raises:
        UnsupportedLayerError: If the layer has no counterpart on the integer road.
    """
    builder.site = node.site
    _lowering_of(node)(builder, node)


def check_supported(graph):
    """Refuses a graph with a layer that has no counterpart, before any work is done.

    Args:
        graph: `dqmq_tf.graph.Graph`.

    Raises:
        UnsupportedLayerError: For the first such layer.
    """
    for node in graph.nodes:
        _lowering_of(node)


def _lowering_of(node):
    function = _LOWERINGS.get(type(node.layer))
    if function is None and not isinstance(node.layer, keras.Layer):
        function = _OPERATIONS.get(type(node.layer).__name__)
    if function is None:
        supported = sorted({layer.__name__ for layer in _LOWERINGS})
        raise UnsupportedLayerError(
            node.site,
            type(node.layer).__name__,
            "Replace it, keep it outside the converted model, or deploy to target 'simulation'. "
            f"Supported: {', '.join(supported)}.",
        )
    return function


def activation_name(function):
    """Name of an activation function of Keras, or None for any other callable."""
    if function is None:
        return "linear"
    for name in _FUSED_ACTIVATIONS + _LONE_ACTIVATIONS:
        if function is keras.activations.get(name):
            return name
    return None


def _unsupported(node, found, advice):
    return UnsupportedLayerError(node.site, f"{type(node.layer).__name__}: {found}", advice)


def _weighted(kind):
    """Lowering of a layer that has one kernel."""

    def function(builder, node):
        layer, source = node.layer, node.inputs[0]
        _check_data_format(node)
        if getattr(layer, "groups", 1) != 1:
            raise _unsupported(node, f"groups={layer.groups}", "Use groups=1 or DepthwiseConv2D.")
        value = builder.values[source]
        if kind == folding.FULLY_CONNECTED and len(value.shape) != 2:
            raise _unsupported(node, "an input that is not flat", "Flatten the input first.")
        if node.site not in builder.layers:
            config = {**layer.get_config(), "activation": "linear", "use_bias": True}
            clone = type(layer).from_config(_plain(config))
            _fill(builder, node, clone, kind, "kernel", builder.step_of(source), last=True)
        _activate(builder, node, builder.layers[node.site](value), layer.activation)

    return function


def _separable(builder, node):
    """A depthwise convolution, then one of 1 x 1; the tensor between them is rounded too."""
    layer, source, target = node.layer, node.inputs[0], node.outputs[0]
    _check_data_format(node)
    inner = f"{node.site}:depthwise"
    if node.site not in builder.layers:
        depthwise = keras.layers.DepthwiseConv2D(
            layer.kernel_size,
            layer.strides,
            layer.padding,
            layer.depth_multiplier,
            dilation_rate=layer.dilation_rate,
        )
        pointwise = keras.layers.Conv2D(layer.filters, 1)
        step = builder.step_of(source)
        _fill(builder, node, depthwise, folding.DEPTHWISE, "depthwise_kernel", step, key=inner)
        _fill(builder, node, pointwise, folding.CONVOLUTION, "pointwise_kernel", 1.0, last=True)
    value = builder.emit(target, builder.layers[inner](builder.values[source]), inner=True)
    _activate(builder, node, builder.layers[node.site](value), layer.activation)


def _fill(builder, node, clone, kind, variable, input_step, last=False, key=None):
    """Gives a fresh layer its folded kernel and bias; the last one of a node takes the bias."""
    layer, key = node.layer, key or node.site
    kernel = keras.ops.convert_to_numpy(getattr(layer, variable))
    bias = keras.ops.convert_to_numpy(layer.bias) if last and layer.use_bias else None
    norm = builder.norm_after(node.site) if last else None
    affine = folding.batch_norm_affine(norm) if norm is not None else None
    precision = builder.precision.weights.get(node.site, {}).get(variable)
    if precision is None:
        kernel, bias = folding.fold_floats(kind, kernel, bias, affine)
        builder.float_sites.append(key)
    else:
        weights = folding.fold_weights(
            node.site, variable, kind, precision, bias, affine, input_step
        )
        kernel, bias = folding.keras_kernel(weights, kernel.shape), weights.bias
        builder.weights[key] = weights
    clone.build((None, None, None, kernel.shape[2]) if kernel.ndim == 4 else (None, len(kernel)))
    clone.kernel.assign(kernel)
    clone.bias.assign(bias)
    builder.layers[key] = clone


def _plain(config):
    """A layer's config without its name and type, and without what only training needs."""
    training = ("_regularizer", "_constraint")
    dropped = ("name", "dtype")
    return {k: v for k, v in config.items() if k not in dropped and not k.endswith(training)}


def _check_data_format(node):
    if getattr(node.layer, "data_format", "channels_last") != "channels_last":
        raise _unsupported(node, "data_format='channels_first'", "Use channels_last.")


def _activate(builder, node, value, function):
    """Ends a node with its activation; the tensor before a lone one is rounded too."""
    name = activation_name(function)
    if name is None:
        raise _unsupported(
            node,
            f"activation {getattr(function, '__name__', function)!r}",
            f"Use one of {', '.join(_FUSED_ACTIVATIONS + _LONE_ACTIVATIONS)}.",
        )
    target = node.outputs[0]
    if name in _LONE_ACTIVATIONS:
        value = builder.emit(target, value, inner=True)
    if name != "linear":
        value = keras.layers.Activation(name)(value)
    if node.site in builder.folded_sites.values():
        builder.values[target] = value  # The batch norm behind it is in there: it emits the tensor.
    else:
        builder.emit(target, value, fixed=_FIXED_GRIDS.get(name))


def _batch_norm(builder, node):
    source, target = node.inputs[0], node.outputs[0]
    if node.site in builder.folded_sites:
        builder.emit(target, builder.values[source])
        return
    rank = len(builder.values[source].shape)
    if node.layer.axis not in (-1, rank - 1):
        raise _unsupported(node, f"axis={node.layer.axis}", "Normalize the last axis.")
    _affine(builder, node, "gamma", folding.batch_norm_affine(node.layer))


def _rescaling(builder, node):
    channels = builder.values[node.inputs[0]].shape[-1]
    scale = np.broadcast_to(np.asarray(node.layer.scale, np.float64), (channels,))
    offset = np.broadcast_to(np.asarray(node.layer.offset, np.float64), (channels,))
    _affine(builder, node, "scale", folding.Affine(scale, offset))


def _affine(builder, node, variable, affine):
    """A lone per-channel map: a depthwise convolution of 1 x 1, which rounds nothing."""
    source, target = node.inputs[0], node.outputs[0]
    value = builder.values[source]
    if len(value.shape) != 4:
        raise _unsupported(
            node,
            f"an input of rank {len(value.shape)} that no layer before it can absorb",
            "Put it directly behind a Dense layer without activation, or on images.",
        )
    if node.site not in builder.layers:
        weights = folding.affine_weights(node.site, variable, affine, builder.step_of(source))
        layer = keras.layers.DepthwiseConv2D(1)
        layer.build((None, 1, 1, value.shape[-1]))
        layer.kernel.assign(weights.values.reshape(layer.kernel.shape))
        layer.bias.assign(weights.bias)
        builder.layers[node.site] = layer
        builder.weights[node.site] = weights
    builder.emit(target, builder.layers[node.site](value))


def _activation(builder, node):
    _lone_activation(builder, node, node.layer.activation)


def _lone_activation(builder, node, function):
    source, target = node.inputs[0], node.outputs[0]
    name = activation_name(function)
    if name is None:
        raise _unsupported(
            node,
            f"activation {getattr(function, '__name__', function)!r}",
            f"Use one of {', '.join(_FUSED_ACTIVATIONS + _LONE_ACTIVATIONS)}.",
        )
    value = builder.values[source]
    if name == "linear":
        builder.emit(target, value, like=source)
    else:
        builder.emit(target, keras.layers.Activation(name)(value), fixed=_FIXED_GRIDS.get(name))


def _relu(builder, node):
    layer = node.layer
    if layer.negative_slope or layer.threshold or layer.max_value not in (None, 6):
        raise _unsupported(
            node,
            f"max_value={layer.max_value}, negative_slope={layer.negative_slope}, "
            f"threshold={layer.threshold}",
            "Use a plain ReLU or one with max_value=6.",
        )
    name = "relu" if layer.max_value is None else "relu6"
    _lone_activation(builder, node, keras.activations.get(name))


def _softmax(builder, node):
    rank = len(builder.values[node.inputs[0]].shape)
    if node.layer.axis not in (-1, rank - 1):
        raise _unsupported(node, f"axis={node.layer.axis}", "Use the last axis.")
    _lone_activation(builder, node, keras.activations.softmax)


def _same(builder, node):
    """Inference-time no-operation."""
    builder.emit(node.outputs[0], builder.values[node.inputs[0]], like=node.inputs[0])


def _moved(builder, node):
    """A layer that only moves or selects values: it keeps the quantization of its input."""
    _check_data_format(node)
    builder.emit(node.outputs[0], _again(builder, node), like=node.inputs[0])


def _computed(builder, node):
    """A layer without weights whose output has a quantization of its own."""
    _check_data_format(node)
    builder.emit(node.outputs[0], _again(builder, node))


def _again(builder, node):
    args, kwargs = node.arguments(builder.values)
    layer = node.layer
    if isinstance(layer, keras.Layer):
        layer = type(layer).from_config(_plain(layer.get_config()))
    return layer(*args, **kwargs)


def _upsampling(builder, node):
    if node.layer.interpolation != "nearest":
        raise _unsupported(
            node, f"interpolation={node.layer.interpolation!r}", "Use interpolation='nearest'."
        )
    _check_data_format(node)
    value = builder.values[node.inputs[0]]
    size = [n * factor for n, factor in zip(value.shape[1:3], node.layer.size)]
    # UpSampling2D repeats by TILE, which has no int8 form; a resize by whole factors is the same.
    result = keras.ops.image.resize(value, size, interpolation="nearest")
    builder.emit(node.outputs[0], result, like=node.inputs[0])


def _average(builder, node):
    """A pool over the whole image becomes a mean, which has a scale of its own."""
    if not is_global_average(builder.graph, node):
        return _moved(builder, node)
    pool = keras.layers.GlobalAveragePooling2D(keepdims=True)
    builder.emit(node.outputs[0], pool(builder.values[node.inputs[0]]))


def _global_max(builder, node):
    value = builder.values[node.inputs[0]]
    result = keras.layers.MaxPooling2D(value.shape[1:3], strides=1)(value)
    if not node.layer.keepdims:
        result = keras.layers.Reshape((value.shape[-1],))(result)
    builder.emit(node.outputs[0], result, like=node.inputs[0])


def _operation(builder, node):
    """An operator between tensors, such as `x + y`."""
    if len(node.inputs) != 2:
        raise _unsupported(node, "an operand that is a constant", "Use layers, such as Rescaling.")
    _computed(builder, node)


def _function(activation):
    """Lowering of an activation that is called as a function, such as `keras.ops.relu(x)`."""
    return lambda builder, node: _lone_activation(builder, node, activation)


_layers = keras.layers
_LOWERINGS = {
    _layers.Conv2D: _weighted(folding.CONVOLUTION),
    _layers.DepthwiseConv2D: _weighted(folding.DEPTHWISE),
    _layers.Dense: _weighted(folding.FULLY_CONNECTED),
    _layers.SeparableConv2D: _separable,
    _layers.BatchNormalization: _batch_norm,
    _layers.Rescaling: _rescaling,
    _layers.Activation: _activation,
    _layers.ReLU: _relu,
    _layers.Softmax: _softmax,
    _layers.Add: _computed,
    _layers.Subtract: _computed,
    _layers.Multiply: _computed,
    _layers.Concatenate: _computed,
    _layers.GlobalAveragePooling2D: _moved,
    _layers.AveragePooling2D: _average,
    _layers.MaxPooling2D: _moved,
    _layers.GlobalMaxPooling2D: _global_max,
    _layers.Flatten: _moved,
    _layers.Reshape: _moved,
    _layers.Permute: _moved,
    _layers.ZeroPadding2D: _moved,
    _layers.Cropping2D: _moved,
    _layers.UpSampling2D: _upsampling,
    _layers.Dropout: _same,
    _layers.SpatialDropout2D: _same,
    _layers.AlphaDropout: _same,
    _layers.GaussianDropout: _same,
    _layers.GaussianNoise: _same,
    _layers.ActivityRegularization: _same,
    _layers.Identity: _same,
}
_OPERATIONS = {
    "Add": _operation,
    "Subtract": _operation,
    "Multiply": _operation,
    "Relu": _function(keras.activations.relu),
    "Relu6": _function(keras.activations.relu6),
    "Sigmoid": _function(keras.activations.sigmoid),
    "Tanh": _function(keras.activations.tanh),
}
