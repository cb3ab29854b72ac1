"""Sets the ranges of activations, for predictions or for training.

The two differ where a batch normalization is trained: at inference, it uses its moving statistics, in
training those of the batch. Ranges must fit the values that follow:

- A new network is about to be trained. Its moving statistics (mean 0 and variance 1) say nothing
  about its values then, so ranges are for the statistics of the calibration data.
- The moving statistics of a trained network are those that it predicts with, whatever the
  calibration data is like. Without training, ranges are for them alone, so that predictions are those
  of the float model. Before a training, ranges are for both: the first validations, and the
  predictions after a short fine-tuning, still use the moving statistics.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from dqmq_tf.graph import Graph
from dqmq_tf.graph.cloning import layers_inside
from dqmq_tf.graph.samples_at_once import samples_at_once

# Values by the id of the variable that has them.
State = Mapping[int, Any]
# The first step of training after which ranges follow the values; a power of two.
_FIRST_FOLLOWED = 8


def set_ranges(parts: Any, x: Any, for_training: bool) -> State:
    """Sets the ranges and step sizes of activations from data. No other variable changes.

    Args:
        parts: The `ModelParts` of a model.
        x: Inputs, in the structure that the model takes.
        for_training: Whether a training follows at once.

    Returns:
        The moving statistics for which the ranges fit predictions, where the model has others:
        those of the data, for new batch normalizations.
    """
    are_new = [_is_new(norm) for norm, _ in _trained_norms(parts.graph)]
    layers = [*parts.quantizers, *parts.wrappers.values()]
    state: list[tuple[keras.Variable, Any]] = []
    for layer in layers:
        layer.observe()
    fits_batches = for_training or any(are_new)
    in_parts = _in_parts(parts.graph, x)
    try:
        if fits_batches:
            scopes = [_call(parts, part, training=True) for part in in_parts]
            state = _batch_statistics(parts.graph, scopes)
        if not fits_batches or not all(are_new):
            for part in in_parts:
                _call(parts, part, training=False, state=state)
    finally:
        for layer in layers:
            layer.calibrate(for_training)
    return {id(variable): value for variable, value in state}


def is_followed(before: int, after: int) -> bool:
    """Returns whether training came to a step at which ranges follow the values.

    From the eighth step on, they do whenever the number of steps has doubled: a change is noticed
    before training has taken twice as long.

    Args:
        before, after: The number of steps that training had taken, and has taken now.

    Example:

    >>> [step for step in range(100) if is_followed(step - 1, step)]
    [8, 16, 32, 64]
    """
    return after >= _FIRST_FOLLOWED and after.bit_length() > before.bit_length()


def follow_values(parts: Any, x: Any) -> None:
    """Fits the ranges again that values have left since they were set.

    Gradients move a range by about 0.1 % in a step, and its zero point not at all. Values that grow
    faster, such as the logits of a new network, would be clipped, and what is clipped hardly learns.

    Args:
        parts: The `ModelParts` of a calibrated model.
        x: A few inputs, in the structure that the model takes.
    """
    try:
        for layer in (*parts.quantizers, *parts.wrappers.values()):
            layer.observe()
        _call(parts, x, training=True)
    finally:
        # Also after an interruption, no layer may go on observing.
        for wrapper in parts.wrappers.values():
            wrapper.calibrate(for_training=True)
        observed = [quantizer.take_observed() for quantizer in parts.quantizers]
    for quantizer, values in zip(parts.quantizers, observed):
        quantizer.follow(values)


def has_new_statistics(parts: Any) -> bool:
    """Returns whether batch normalizations of a model have not been trained."""
    return any(_is_new(norm) for norm, _ in _trained_norms(parts.graph))


def _in_parts(graph: Graph, x: Any) -> list[Any]:
    """Returns inputs in parts of about equal size that can be computed at once."""
    arrays = keras.tree.flatten(x)
    count = len(arrays[0])
    parts = -(-count // samples_at_once(graph, arrays))
    ends = [i * count // parts for i in range(parts + 1)]
    return [
        keras.tree.pack_sequence_as(x, [array[start:end] for array in arrays])
        for start, end in itertools.pairwise(ends)
    ]


def _call(
    parts: Any, x: Any, training: bool, state: list[tuple[keras.Variable, Any]] | None = None
) -> keras.StatelessScope:
    """Calls the quantized model in a scope that discards the updates of all variables."""
    with keras.StatelessScope(state_mapping=state) as scope:
        parts.instrumented(x, training=training)
    return scope


def _trained_norms(graph: Graph) -> list[tuple[keras.layers.BatchNormalization, int]]:
    """Returns the batch normalizations that use batch statistics in training, with their calls."""
    return [
        (layer, graph.calls[node.path])
        for node in graph.nodes
        for layer in layers_inside(node.layer)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]


def _is_new(norm: keras.layers.BatchNormalization) -> bool:
    """Returns whether the moving statistics are those of a new layer: mean 0, variance 1."""
    mean, variance = map(ops.convert_to_numpy, (norm.moving_mean, norm.moving_variance))
    return bool(np.all(mean == 0.0) and np.all(variance == 1.0))


def _batch_statistics(
    graph: Graph, scopes: Sequence[keras.StatelessScope]
) -> list[tuple[keras.Variable, Any]]:
    """Returns the statistics of the data that a model was called on with `training=True`.

    With momentum `u`, a call changes the moving statistics from `before` to
    `u * before + (1 - u) * batch`.

    Args:
        graph: The graph of the float model.
        scopes: The scope of each call, all from the same moving statistics. Means and variances are
            averaged over them, as training averages those of its batches.

    Returns:
        A list of `(moving mean or variance, value)` of the new batch normalizations.
    """
    statistics = []
    for norm, calls in _trained_norms(graph):
        kept = norm.momentum**calls
        if kept >= 1 or not _is_new(norm):
            continue
        for variable in (norm.moving_mean, norm.moving_variance):
            values = [scope.get_current_value(variable) for scope in scopes]
            if all(value is not None for value in values):
                after = sum(values) / len(values)
                batch = (after - kept * variable.value) / (1 - kept)
                is_variance = variable is norm.moving_variance
                statistics.append((variable, ops.maximum(batch, 0.0) if is_variance else batch))
    return statistics
