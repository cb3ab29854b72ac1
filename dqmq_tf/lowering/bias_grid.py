"""Biases on the grid that an int8 kernel holds them on.

A file stores the bias of a convolution as int32 in units of input step x weight step, the batch
norm folded in. With few weight bits these units are coarse: a float bias would differ from the
stored one by a good part of an output quantum, and the network by more from layer to layer. Put
on the grid when the bits are frozen, the Keras model computes what the file will.
"""

import keras
import numpy as np
from keras import ops

from dqmq_tf.graph import trace
from dqmq_tf.graph.fold_rules import einsum_output_axes
from dqmq_tf.graph.kernels import is_linear


def snap_biases(body, precision):
    """Moves each bias, or the batch norm after the layer, to the nearest int32 value.

    A rescaling after the layer is part of the kernel: its bias is moved so that it lies on the grid
    behind it.

    Args:
        body: The float model whose variables the network uses; changed in place.
        precision: The `Precision` that is to be deployed.
    """
    graph = trace(body)
    norms = {path: norm for norm, path in graph.folds.items()}
    layers = {node.path: node.layer for node in graph.nodes}
    calls = {}
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


def _unit(layer, input_step, weight_step):
    """What one of a bias's integers stands for, shaped like the bias; None if there is no such."""
    unit = np.float64(input_step) * weight_step.astype("float64")
    if not isinstance(layer, keras.layers.EinsumDense):
        return unit.ravel()
    axes = einsum_output_axes(layer)
    if not axes:
        return None
    unit = unit.reshape([weight_step.shape[axis] for axis in axes])
    # A bias that several channels share has no grid of its own.
    apart = unit.size > 1 and layer.bias is not None
    return None if apart and tuple(layer.bias.shape) != unit.shape else unit


def _snap_norm(norm, layer, unit):
    variance = _float64(norm.moving_variance)
    factor = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        factor = factor * _float64(norm.gamma)
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


def _float64(variable):
    return ops.convert_to_numpy(variable).astype("float64")
