"""A layer that computes in floating point, amid integers.

What TFLite has no integer kernel for runs as in training: in floating point, on weights that stand
in the file as the integers of training. Its output goes back to its grid where the next integer
kernel reads it.
"""

import keras

from dqmq_tf.errors import UnsupportedLayerError
from dqmq_tf.graph import kernels
from dqmq_tf.graph.cloning import clone_layer, copy_state
from dqmq_tf.lowering.stored_weights import DEQUANTIZED, StoredWeights


def lower(builder, node, reason):
    """Adds one node of the graph to the lowered, in floating point.

    Args:
        builder: `LoweringBuilder`.
        node: `dqmq_tf.graph.Node`.
        reason: Why it is not in integers.

    Raises:
        UnsupportedLayerError: If the layer cannot be built anew from its config.
    """
    args, kwargs = node.arguments(builder.values)
    if isinstance(node.layer, keras.layers.Layer):
        layer = _layer(builder, node)
        # Its state may be needed for the call, but some layers have variables only after it.
        is_filled = layer.built
        if is_filled:
            _fill(builder, node)
        results = layer(*args, **kwargs)
        if not is_filled:
            _fill(builder, node)
    else:
        results = node.layer(*args, **kwargs)
    builder.float_layers[node.path] = reason
    for tensor, value in zip(node.outputs, keras.tree.flatten(results)):
        builder.emit(tensor, value, floating=builder.graph.dtypes[tensor].startswith("float"))


def _layer(builder, node):
    """The layer's double, the same for each call of a shared layer."""
    key = (node.path, "float")
    if key not in builder.layers:
        name = f"float_{len(builder.layers)}"
        try:
            builder.layers[key] = clone_layer(node.layer, _prepared, name)
        except ValueError as error:
            raise UnsupportedLayerError(node.path, type(node.layer).__name__, str(error)) from error
    return builder.layers[key]


def _prepared(config):
    """A layer's config for a file: float32, and loops over time written out step by step.

    TFLite's own loops and LSTM kernels keep what was computed for the last input, or hide weights
    in graphs of their own.
    """
    if isinstance(config, dict):
        kept = {key: _prepared(value) for key, value in config.items() if key != "dtype"}
        return kept | {"unroll": True} if "unroll" in kept else kept
    if isinstance(config, (list, tuple)):
        return type(config)(_prepared(value) for value in config)
    return config


def _fill(builder, node):
    """Gives the double its weights: those of the layer, or the values of their integers."""
    double = builder.layers[node.path, "float"]
    if double is node.layer:
        return
    copy_state(node.layer, double)
    precisions = builder.precision.weights.get(node.path, {})
    named = kernels.variable_names(node.layer)
    for name, own in zip(named, double.weights):
        if name not in precisions:
            continue
        key = f"{node.path}:{name}"
        if key not in builder.weights:
            builder.weights[key] = StoredWeights.of(node.path, name, DEQUANTIZED, precisions[name])
        own.assign(builder.weights[key].values)
