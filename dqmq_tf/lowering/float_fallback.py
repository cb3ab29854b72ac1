"""Lowers a layer without an integer kernel: it computes in floating point.

The layer runs as in training. The file stores its weights as the trained integers. If an integer
kernel reads its output, the output is quantized there.
"""

import re
from typing import Any

import keras
import tensorflow as tf

from dqmq_tf.errors import UnsupportedLayerError
from dqmq_tf.graph import Node
from dqmq_tf.graph.cloning import clone_layer, copy_state, has_variables
from dqmq_tf.graph.plain_classes import keras_name
from dqmq_tf.lowering import elementwise
from dqmq_tf.lowering.builder import LoweringBuilder
from dqmq_tf.lowering.separate_layers import separate_layers
from dqmq_tf.lowering.stored_weights import DEQUANTIZED, StoredWeights
from dqmq_tf.lowering.whole_kernels import use_whole_kernels

_INDICES = {"Argmax": tf.argmax, "Argmin": tf.argmin}


def lower(builder: LoweringBuilder, node: Node, reason: str) -> None:
    """Adds one node of the graph to the lowered model, in floating point.

    Args:
        builder: The `LoweringBuilder`, changed in place.
        node: The `dqmq_tf.graph.Node`.
        reason: Why it has no integer kernel.

    Raises:
        UnsupportedLayerError: If the layer cannot be rebuilt from its config.
    """
    args, kwargs = node.arguments(builder.values)
    if isinstance(node.layer, keras.layers.Layer):
        layer = _clone_of(builder, node)
        # A call may need the layer's state, so it is copied before. Some layers create their
        # variables in the first call only: for these it is copied after.
        is_ready = has_variables(node.layer, layer)
        if is_ready:
            _copy_weights(builder, node)
        results = elementwise.call(layer, args, kwargs)
        if not is_ready:
            _copy_weights(builder, node)
    else:
        results = elementwise.call(_for_file(node.layer), args, kwargs)
    builder.float_layers[node.path] = reason
    for tensor, value in zip(node.outputs, keras.tree.flatten(results)):
        builder.emit(tensor, value, floating=builder.graph.dtypes[tensor].startswith("float"))


def _for_file(operation: Any) -> Any:
    """Returns an operation, or a layer that computes the same from operators that a file can hold.

    To find the index of the largest value, Keras tells -0.0 from 0.0, by the bits of the numbers.
    """
    function = _INDICES.get(keras_name(operation))
    if function is None or operation.axis is None:
        return operation

    def index(x: tf.Tensor) -> tf.Tensor:
        result = function(x, axis=operation.axis, output_type=tf.int32)
        return tf.expand_dims(result, operation.axis) if operation.keepdims else result

    return keras.layers.Lambda(index)


def _clone_of(builder: LoweringBuilder, node: Node) -> Any:
    """Returns the clone of a node's layer. All calls of a shared layer use the same clone."""
    key = (node.path, "float")
    if key not in builder.layers:
        # The name tells where operators come from (see `operator_origins`), the number makes it unique.
        name = re.sub(r"\W", "_", f"float_{len(builder.layers)}_{node.path}")
        try:
            builder.layers[key] = clone_layer(node.layer, _for_export, name)
        except ValueError as error:
            raise UnsupportedLayerError(node.path, type(node.layer).__name__, str(error)) from error
        use_whole_kernels(builder.layers[key])
        builder.layer_paths[name] = node.path
    return builder.layers[key]


def _for_export(config: Any) -> Any:
    """Returns a layer's config for export: in float32, with loops over time unrolled.

    TFLite's loops and LSTM kernels keep state from the previous input, or hide weights in
    separate subgraphs. Recurrent layers of Keras draw their dropout at inference as well, where they
    do not use it.
    """
    if isinstance(config, dict):
        changed = {key: _for_export(value) for key, value in config.items() if key != "dtype"}
        if "recurrent_dropout" in changed:
            changed |= {"dropout": 0.0, "recurrent_dropout": 0.0}
        return changed | {"unroll": True} if "unroll" in changed else changed
    if isinstance(config, (list, tuple)):
        return type(config)(_for_export(value) for value in config)
    return config


def _copy_weights(builder: LoweringBuilder, node: Node) -> None:
    """Copies the state of a node's layer to its clone, and sets the quantized weights there."""
    clone = builder.layers[node.path, "float"]
    copy_state(node.layer, clone)
    precisions = builder.precision.weights.get(node.path, {})
    stored = []
    for name, variable in zip(builder.weight_names(node), clone.weights):
        if name not in precisions:
            continue
        stored.append(variable)
        key = f"{node.path}:{name}"
        if key not in builder.weights:
            weights = StoredWeights.of(node.path, name, DEQUANTIZED, precisions[name])
            builder.weights[key] = builder.distinct(weights)
        variable.assign(builder.weights[key].values)
    if not builder.simulate:
        separate_layers(clone, stored)
