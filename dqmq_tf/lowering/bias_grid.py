"""Rounds the biases of the Keras model to the values that a file can store.

A file stores the bias of a linear layer, with the batch norm folded in, as int32 in units of
`input_step * weight_step`. With few weight bits these units are coarse: a float bias can differ
from the stored one by a large part of an output step, and the error grows from layer to layer.
Rounding the biases when the bits are frozen makes the Keras model compute what the file will
compute.
"""

from typing import Any

import keras
import numpy as np

from dqmq_tf.graph import Node, trace
from dqmq_tf.graph.fold_rules import einsum_output_axes
from dqmq_tf.graph.kernels import is_linear
from dqmq_tf.lowering.folding import as_float64, batch_norm_affine
from dqmq_tf.precision import Precision


def snap_biases(body: keras.Model, precision: Precision) -> None:
    """Rounds the folded bias of each linear layer to a whole number of units.

    The variable that changes is the beta of a batch norm that is folded into the layer, its moving
    mean if it has no beta, or else the bias of the layer. If a rescaling is folded into the layer,
    the rescaled bias is rounded.

    Args:
        body: The float model, changed in place.
        precision: The `Precision` to deploy.
    """
    graph = trace(body)
    layers = {node.path: node.layer for node in graph.nodes}
    folded_layers = {linear: layers[path] for path, linear in graph.folds.items()}
    calls: dict[str, list[Node]] = {}
    for node in graph.nodes:
        calls.setdefault(node.path, []).append(node)
    for path, variables in precision.weights.items():
        layer = layers[path]
        input_precisions = {precision.activations.get(node.inputs[0]) for node in calls[path]}
        if len(variables) != 1 or len(input_precisions) != 1 or not is_linear(layer):
            continue
        (input_precision,), (weight,) = input_precisions, variables.values()
        if input_precision is None:
            continue
        unit = bias_unit(layer, input_precision.step, weight.step)
        if unit is None:
            continue
        folded = folded_layers.get(path)
        if isinstance(folded, keras.layers.BatchNormalization):
            _snap_batch_norm(folded, layer, unit)
        elif layer.bias is not None:
            scale, offset = (1.0, 0.0) if folded is None else (folded.scale, folded.offset)
            bias = as_float64(layer.bias) * scale + offset
            grid = unit * abs(scale)
            layer.bias.assign((np.round(bias / grid) * grid - offset) / scale)


def bias_unit(layer: Any, input_step: float, weight_step: np.ndarray) -> np.ndarray | None:
    """Returns the unit of a layer's int32 bias.

    Args:
        layer: A linear layer.
        input_step: The step of its input.
        weight_step: The step of its kernel, of the kernel's rank.

    Returns:
        A float64 array in the shape of the bias. None if the bias has no unit.
    """
    unit = np.float64(input_step) * weight_step.astype("float64")
    if not isinstance(layer, keras.layers.EinsumDense):
        return unit.ravel()
    axes = einsum_output_axes(layer)
    if not axes:
        return None
    unit = unit.reshape([weight_step.shape[axis] for axis in axes])
    # A bias value that several channels with different steps share has no single unit.
    has_other_shape = layer.bias is not None and tuple(layer.bias.shape) != unit.shape
    return None if unit.size > 1 and has_other_shape else unit


def _snap_batch_norm(batch_norm: Any, layer: Any, unit: np.ndarray) -> None:
    """Changes a batch norm so that the folded bias is a whole number of units.

    Args:
        batch_norm: The `BatchNormalization` that is folded into the layer, changed in place.
        layer: The linear layer.
        unit: The unit of its bias without the batch norm (see `bias_unit`).
    """
    multiplier = batch_norm_affine(batch_norm).multiplier
    mean = as_float64(batch_norm.moving_mean)
    if layer.bias is not None:
        mean = mean - as_float64(layer.bias)
    beta = as_float64(batch_norm.beta) if batch_norm.center else np.zeros_like(mean)
    bias = beta - mean * multiplier
    grid = unit * np.abs(multiplier)
    # A channel whose gamma is 0 has no unit, and its bias stays as it is.
    has_unit = grid > 0
    rounded = np.round(bias / np.where(has_unit, grid, 1.0)) * grid
    change = np.where(has_unit, rounded - bias, 0.0)
    if batch_norm.center:
        batch_norm.beta.assign(beta + change)
    else:
        batch_norm.moving_mean.assign(
            as_float64(batch_norm.moving_mean) - change / np.where(has_unit, multiplier, 1.0)
        )
