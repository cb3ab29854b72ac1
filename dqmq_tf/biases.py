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


def snap_biases(body, precision):
    """Moves each bias, or the batch norm after the layer, to the nearest int32 value.

    Args:
        body: The float model whose variables the network uses; changed in place.
        precision: The `Precision` that is to be deployed.
    """
    graph = trace(body)
    norms = {site: norm for norm, site in graph.folds.items()}
    layers = {node.site: node.layer for node in graph.nodes}
    calls = {}
    for node in graph.nodes:
        calls.setdefault(node.site, []).append(node)
    for site, variables in precision.weights.items():
        steps = {precision.activations.get(node.inputs[0]) for node in calls[site]}
        if len(variables) != 1 or len(steps) != 1 or not _has_one_bias(layers[site]):
            continue
        (source,), (weight,) = steps, variables.values()
        if source is None:
            continue
        unit = np.float64(source.step) * weight.step.astype("float64").ravel()
        if site in norms:
            _snap_norm(layers[norms[site]], layers[site], unit)
        elif layers[site].use_bias:
            bias = _float64(layers[site].bias)
            layers[site].bias.assign(np.round(bias / unit) * unit)


def _has_one_bias(layer):
    kinds = (
        keras.layers.Conv1D,
        keras.layers.Conv2D,
        keras.layers.Dense,
        keras.layers.DepthwiseConv1D,
        keras.layers.DepthwiseConv2D,
    )
    return isinstance(layer, kinds)


def _snap_norm(norm, layer, unit):
    variance = _float64(norm.moving_variance)
    factor = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        factor = factor * _float64(norm.gamma)
    mean = _float64(norm.moving_mean)
    if layer.use_bias:
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
