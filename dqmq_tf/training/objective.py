"""The terms of the hybrid objective, one function each.

The objective combines supervised quantization-aware training with model-based and sampled policy
optimization in one gradient step (after Wang et al. 2023, arXiv 2302.04453):

- supervised: the task loss, which reaches weights and step sizes through the quantizers;
- pathwise: the same loss, which reaches the mean bit-widths through the relaxation of
  `dqmq_tf.layers.lsq.relaxed_quantize`;
- curvature: the square of that gradient's contrast, which makes the bits of activations differ
  between images (`dqmq_tf.policy.curvature`). While it is on, the other terms train only the part of
  the means that all images have in common;
- score function: `score_function`, which is unbiased where the relaxation is not (Williams 1992);
- model-based: `model_cost`, the exact expectation of a known cost;
- entropy: `entropy_bonus`, which keeps the distributions from narrowing too early.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

# Strength of the penalty in the augmented Lagrangian, in loss per squared relative excess.
PENALTY = 10.0


def score_function(
    losses: tf.Tensor, log_p: tf.Tensor, baseline: tf.Tensor, scale: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the policy-gradient term and the regression error of the baseline.

    The cost is not part of the reward. Its expectation is known (see `model_cost`), so a sample of
    it would only add variance.

    Args:
        losses: The task loss of each sample under the sampled decisions, shape `[B]`.
        log_p: The log-probability of each sample's decisions, shape `[B]`.
        baseline: The expected loss of each sample over all decisions, shape `[B]`.
        scale: A scalar, the spread of the advantage. The advantage is divided by it.

    Returns:
        `(term, baseline_error)`, two scalars.
    """
    reward = -ops.stop_gradient(losses)
    advantage = ops.stop_gradient((reward + baseline) / scale)
    return -ops.mean(advantage * log_p), ops.mean(ops.square(reward + baseline))


def model_cost(expected: Any, budget: float, multiplier: Any) -> Any:
    """Returns the price of the expected cost: an augmented Lagrangian in its relative excess.

    Args:
        expected: A scalar, the expected cost under the policy. It is differentiable.
        budget: The allowed cost, in the same unit.
        multiplier: A scalar, the Lagrange multiplier, which `dual_ascent` updates.

    Returns:
        A scalar.
    """
    excess = expected / budget - 1.0
    return multiplier * excess + 0.5 * PENALTY * ops.square(excess)


def dual_ascent(multiplier: Any, expected: Any, budget: float, rate: float = 0.02) -> Any:
    """Returns the next multiplier, which rises while the expected cost exceeds the budget."""
    return ops.maximum(multiplier + rate * PENALTY * (expected / budget - 1.0), 0.0)


def entropy_bonus(entropies: tf.Tensor, coefficient: float) -> tf.Tensor:
    """Returns the negative mean entropy of the distributions, times a coefficient."""
    return -coefficient * ops.mean(entropies)


def per_sample_losses(
    loss: Any,
    y: Any,
    y_pred: Any,
    sample_weight: Any = None,
    loss_weights: Any = None,
    names: Sequence[str] | None = None,
    separately: bool = False,
) -> Any:
    """Returns the task loss of each sample, summed over outputs.

    A loss may reduce a batch to one value. That is then the loss of each sample or, if these are to be
    independent of each other, the loss of a sample is that of a batch of this sample alone.

    Args:
        loss: The `loss` that was passed to `compile`: a name, a `keras.losses.Loss` or a function,
            or a list or dictionary of these, one per output.
        y, y_pred: The targets and predictions.
        sample_weight: Weights of shape `[B, ...]`, one array or one per output, or None.
        loss_weights: The weights of the outputs that were passed to `compile`.
        names: The names of the outputs. They are needed if `loss` is a dictionary and `y_pred` is a
            list.
        separately: Whether to compute a loss that reduces a batch to one value for one sample at a
            time. It needs eager execution.

    Returns:
        A tensor of shape `[B]`. A scalar if every loss reduces a batch to one value and is not
        computed separately.
    """
    keys = list(y_pred) if isinstance(y_pred, dict) else list(names or ())
    predictions = (
        [y_pred[key] for key in keys] if isinstance(y_pred, dict) else keras.tree.flatten(y_pred)
    )
    arguments = [
        _per_output(structure, keys, len(predictions))
        for structure in (loss, y, sample_weight, loss_weights)
    ]
    total: Any = 0.0
    for prediction, function, target, weight, scale in zip(predictions, *arguments):
        if function is None:
            continue
        function = keras.losses.get(function)
        values = _unreduced(function, target, prediction)
        if separately and not len(values.shape):
            rows = [slice(index, index + 1) for index in range(len(prediction))]
            values = ops.stack([_unreduced(function, target[r], prediction[r]) for r in rows])
        if weight is not None:
            weight = ops.cast(weight, values.dtype)
            shape = tuple(weight.shape)[: len(values.shape)]
            extra = len(values.shape) - len(shape)
            weight = ops.reshape(weight, (-1, *shape[1:], *(1,) * extra))
            values = values * weight
        if len(values.shape) > 1:
            values = ops.mean(values, axis=tuple(range(1, len(values.shape))))
        total = total + values * (1.0 if scale is None else scale)
    return total


def _per_output(structure: Any, keys: list[str], count: int) -> list[Any]:
    """Converts a single value, a list or a dictionary to a list with one entry per output."""
    if isinstance(structure, dict):
        return [structure.get(key) for key in keys]
    if isinstance(structure, (list, tuple)):
        return list(structure)
    return [structure] * count


def _unreduced(function: Any, target: Any, prediction: Any) -> Any:
    """Returns a loss before its mean or sum over samples, in float32."""
    sparse = "sparse" in getattr(function, "name", getattr(function, "__name__", ""))
    if not sparse and len(target.shape) == len(prediction.shape) - 1 and prediction.shape[-1] == 1:
        target = ops.expand_dims(target, -1)
    call = function.call if isinstance(function, keras.losses.Loss) else function
    return ops.cast(call(target, prediction), "float32")
