"""The terms of the hybrid objective, each a named function.

The objective joins supervised quantization-aware training with model-based and sampled policy
optimisation in one gradient step (after Wang et al. 2023, arXiv 2302.04453):

- supervised: the task loss, which reaches weights and step sizes through the quantizers;
- pathwise: the same loss, which reaches the mean bit-widths through the relaxation of
  `dqmq_tf.layers.lsq.relaxed_quantize`;
- curvature: the square of that gradient's contrast, by which the bits of activations come to differ
  between images (`dqmq_tf.policy.curvature`); all other terms then move what images have in common;
- score function: `score_function`, unbiased where the relaxation is not (Williams 1992);
- model-based: `model_cost`, the exact expectation of a known cost;
- entropy: `entropy_bonus`, which keeps the distributions from closing early.
"""

import keras
from keras import ops

# Pull of the augmented Lagrangian back to the budget, in loss per squared relative excess.
PENALTY = 10.0


def score_function(losses, log_p, baseline, scale):
    """Returns the policy-gradient term and the baseline's regression error.

    Args:
        losses: Task loss `[B]` of each sample under the decisions that were drawn.
        log_p: Log-probability `[B]` of a sample's decisions.
        baseline: Expected loss `[B]` of a sample, whatever is drawn.
        scale: Spread of the advantage, which it is divided by.

    Returns:
        `(term, baseline_error)`, scalars. The cost is no part of the reward: its expectation is
        known, see `model_cost`, and a sample of it would only add variance.
    """
    reward = -ops.stop_gradient(losses)
    advantage = ops.stop_gradient((reward + baseline) / scale)
    return -ops.mean(advantage * log_p), ops.mean(ops.square(reward + baseline))


def model_cost(expected, budget, multiplier):
    """Returns the price of the expected cost: an augmented Lagrangian in its relative excess.

    Args:
        expected: Expected cost under the policy, differentiable.
        budget: The cost allowed, in the same unit.
        multiplier: Lagrange multiplier, raised by dual ascent (see `dual_ascent`).
    """
    excess = expected / budget - 1.0
    return multiplier * excess + 0.5 * PENALTY * ops.square(excess)


def dual_ascent(multiplier, expected, budget, rate=0.02):
    """Returns the next multiplier: it grows while the expected cost is over the budget."""
    return ops.maximum(multiplier + rate * PENALTY * (expected / budget - 1.0), 0.0)


def entropy_bonus(entropies, coefficient):
    """Returns minus the mean entropy of the distributions, times a coefficient."""
    return -coefficient * ops.mean(entropies)


def per_sample_losses(loss, y, y_pred, sample_weight=None, loss_weights=None, names=None):
    """Returns the task loss `[B]` of each sample, outputs added up.

    Args:
        loss: What was given to `compile`: a name, `keras.losses.Loss` or function, or a list or
            dictionary of these, one per output.
        y, y_pred: Targets and predictions.
        sample_weight: Weights `[B, ...]`, one or one per output, or None.
        loss_weights: Weights of the outputs, as given to `compile`.
        names: Names of the outputs, for a dictionary of losses where outputs are a list.
    """
    named = isinstance(y_pred, dict)
    keys = list(y_pred) if named else names
    predictions = (
        [y_pred[key] for key in keys] if isinstance(y_pred, dict) else keras.tree.flatten(y_pred)
    )
    parts = [
        _per_output(structure, keys, len(predictions))
        for structure in (loss, y, sample_weight, loss_weights)
    ]
    total = 0.0
    for prediction, function, target, weight, scale in zip(predictions, *parts):
        if function is None:
            continue
        values = _unreduced(keras.losses.get(function), target, prediction)
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


def _per_output(structure, keys, count):
    """A list with one entry per output of what may be one thing, a list or a dictionary."""
    if isinstance(structure, dict):
        return [structure.get(key) for key in keys]
    if isinstance(structure, (list, tuple)):
        return list(structure)
    return [structure] * count


def _unreduced(function, target, prediction):
    sparse = "sparse" in getattr(function, "name", getattr(function, "__name__", ""))
    if not sparse and len(target.shape) == len(prediction.shape) - 1 and prediction.shape[-1] == 1:
        target = ops.expand_dims(target, -1)
    call = function.call if isinstance(function, keras.losses.Loss) else function
    return ops.cast(call(target, prediction), "float32")
