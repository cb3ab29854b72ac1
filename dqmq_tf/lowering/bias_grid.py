"""Rounds biases to the grid on which int8 kernels store them.

A file stores the bias of a convolution as int32 in units of input step x weight step, with the
batch norm folded in. With few weight bits these units are coarse: a float bias can differ from the stored
one by a large part of an output step, and the error grows from layer to layer. Rounding the biases
when the bits are frozen makes the Keras model compute what the file will compute.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from dqmq_tf.graph import Node, trace
from dqmq_tf.graph.fold_rules import einsum_output_axes
from dqmq_tf.graph.kernels import is_linear
from dqmq_tf.lowering.folding import batch_norm_affine
from dqmq_tf.precision import Precision


def snap_biases(body: keras.Model, precision: Precision) -> None:
    """Moves each bias, or the batch norm after the layer, to the nearest int32 value.

    A rescaling after the layer is part of the kernel, so the layer's bias is moved such that the
    rescaled bias lies on the grid.

    Args:
        body: The float model whose variables the network uses; changed in place.
        precision: The `Precision` to deploy.
    """
    graph = trace(body)
    norms = {path: norm for norm, path in graph.folds.items()}
    layers = {node.path: node.layer for node in graph.nodes}
    calls: dict[str, list[Node]] = {}
    for node in graph.nodes:
        calls.setdefault(node.path, []).append(node)
    for path, variables in precision.weights.items():
        steps = {precision.activations.get(node.inputs[0]) for node in calls[path]}
        if len(variables) != 1 or len(steps) != 1 or not is_linear(layers[path]):
            continue
        (source,), (weight,) = steps, variables.values()
        unit = None if source is None else _unit(layers[path], source.step, weight.step)
        if unit is None:
            continue
        norm = layers[norms[path]] if path in norms else None
        if isinstance(norm, keras.layers.BatchNormalization):
            _snap_norm(norm, layers[path], unit)
        elif layers[path].bias is not None:
            scale, offset = (1.0, 0.0) if norm is None else (norm.scale, norm.offset)
            bias = _float64(layers[path].bias) * scale + offset
            grid = unit * abs(scale)
            layers[path].bias.assign((np.round(bias / grid) * grid - offset) / scale)


def _unit(layer: Any, input_step: float, weight_step: np.ndarray) -> np.ndarray | None:
    """Returns the value of one bias integer, shaped like the bias; None if there is none."""
    unit = np.float64(input_step) * weight_step.astype("float64")
    if not isinstance(layer, keras.layers.EinsumDense):
        return unit.ravel()
    axes = einsum_output_axes(layer)
    if not axes:
        return None
    unit = unit.reshape([weight_step.shape[axis] for axis in axes])
    # A bias that several channels with different steps share has no common grid.
    apart = unit.size > 1 and layer.bias is not None
    return None if apart and tuple(layer.bias.shape) != unit.shape else unit


def _snap_norm(norm: Any, layer: Any, unit: np.ndarray) -> None:
    """Moves the offset of a batch norm so that the folded bias lies on the int32 grid."""
    factor = batch_norm_affine(norm).multiplier
    mean = _float64(norm.moving_mean)
    if layer.bias is not None:
        mean = mean - _float64(layer.bias)
    beta = _float64(norm.beta) if norm.center else np.zeros_like(mean)
    bias = beta - mean * factor
    grid = unit * np.abs(factor)
    live = grid > 0
    moved = np.where(live, np.round(bias / np.where(live, grid, 1.0)) * grid - bias, 0.0)
    if norm.center:
        norm.beta.assign(beta + moved)
    else:
        norm.moving_mean.assign(_float64(norm.moving_mean) - moved / np.where(live, factor, 1.0))


def _float64(variable: Any) -> np.ndarray:
    return ops.convert_to_numpy(variable).astype("float64")
