"""Lowers a layer that computes in floating point between integer layers.

A layer without an integer kernel in TFLite runs as in training: in floating point, with weights
that the file stores as the trained integers. Its output is quantized again where the next integer kernel
reads it.
"""

from typing import Any

import keras

from dqmq_tf.errors import UnsupportedLayerError
from dqmq_tf.graph import Node, kernels
from dqmq_tf.graph.cloning import clone_layer, copy_state
from dqmq_tf.lowering.builder import LoweringBuilder
from dqmq_tf.lowering.stored_weights import DEQUANTIZED, StoredWeights


def lower(builder: LoweringBuilder, node: Node, reason: str) -> None:
    """Adds one node of the graph to the lowered model, in floating point.

    Args:
        builder: `LoweringBuilder`.
        node: `dqmq_tf.graph.Node`.
        reason: Why it has no integer form.

    Raises:
        UnsupportedLayerError: If the layer cannot be rebuilt from its config.
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


def _layer(builder: LoweringBuilder, node: Node) -> Any:
    """Returns the copy of a layer; all calls of a shared layer use the same copy."""
    key = (node.path, "float")
    if key not in builder.layers:
        name = f"float_{len(builder.layers)}"
        try:
            builder.layers[key] = clone_layer(node.layer, _prepared, name)
        except ValueError as error:
            raise UnsupportedLayerError(node.path, type(node.layer).__name__, str(error)) from error
    return builder.layers[key]


def _prepared(config: Any) -> Any:
    """Returns a layer's config for export: float32, with loops over time unrolled.

    TFLite's loops and LSTM kernels keep state from the previous input, or hide weights in
    separate subgraphs.
    """
    if isinstance(config, dict):
        kept = {key: _prepared(value) for key, value in config.items() if key != "dtype"}
        return kept | {"unroll": True} if "unroll" in kept else kept
    if isinstance(config, (list, tuple)):
        return type(config)(_prepared(value) for value in config)
    return config


def _fill(builder: LoweringBuilder, node: Node) -> None:
    """Sets the weights of the copy: those of the layer, or the values of their integers."""
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
