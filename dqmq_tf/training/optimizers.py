"""The user's optimizer trains the network; the encoder and the policy have optimizers of their own.

The learning rate that suits a network, such as 0.001 for one or 0.1 with momentum for another, says
nothing about how fast its bit-widths should adapt to the quality.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from dqmq_tf.training.update_functions import shared_updates

# The encoder's learning rate relative to the policy's. The policy and the quality normalization read
# the encoder's output, so it has to change more slowly than they do.
_ENCODER_PACE = 0.2


def compile_own(model: keras.Model) -> None:
    """Creates the optimizers of policy and encoder, and builds all optimizers of a model.

    Args:
        model: A `DQMQModel`.
    """
    training = model._training
    training.policy_optimizer, training.encoder_optimizer = (
        keras.optimizers.Adam(beta_1=0.9, beta_2=0.99) for _ in range(2)
    )
    # Keras saves the state of optimizers that are attributes of the model.
    policy_name, encoder_name = model._optimizer_names
    setattr(model, policy_name, training.policy_optimizer)
    setattr(model, encoder_name, training.encoder_optimizer)
    training.set_rate(0)
    for optimizer, variables in shares(model):
        if optimizer is not None:
            spare_steps(optimizer, variables)
            optimizer.build(variables)


def spare_steps(optimizer: Any, variables: Sequence[Any]) -> None:
    """Takes step sizes out of the weight decay of an optimizer, which would pull their logarithms to 0.

    Args:
        optimizer: A `keras.optimizers.Optimizer`.
        variables: The variables that it trains.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not getattr(optimizer, "weight_decay", None):
        return
    # `exclude_from_weight_decay` would replace what the user excludes.
    known = vars(optimizer).setdefault("_exclude_from_weight_decay_cache", {})
    for variable in variables:
        if variable.name.startswith("log_step"):
            known[optimizer._var_key(variable)] = False


def set_rate(model: keras.Model, rate: float) -> None:
    """Sets the learning rate of policy and quality normalization, and the encoder's in proportion.

    Args:
        model: A `DQMQModel`.
        rate: The learning rate of the policy.
    """
    model._training.policy_optimizer.learning_rate = rate
    model._training.encoder_optimizer.learning_rate = _ENCODER_PACE * rate


def shares(model: keras.Model) -> list[tuple[Any, list[Any]]]:
    """Returns `(optimizer, variables)` of each optimizer, which together cover all that is trained.

    Args:
        model: A `DQMQModel`. The first optimizer is the user's, None if the model is not compiled.
    """
    training, parts = model._training, model._parts
    quality_readers = [parts.policy, *parts.affines]
    return [
        (getattr(model, "optimizer", None), model.trainable_variables),
        (training.policy_optimizer, [v for x in quality_readers for v in x.trainable_variables]),
        (training.encoder_optimizer, parts.encoder.trainable_variables),
    ]


def unscaled(
    pairs: Sequence[tuple[Any, Any]], scale: Any, optimizer: keras.optimizers.Optimizer
) -> list[tuple[Any, Any]]:
    """Returns the gradients of policy or encoder without the factor of the loss.

    A `LossScaleOptimizer` raises its factor until gradients overflow. All of them are 0 then.

    Args:
        pairs: `(gradient, variable)` for each variable.
        scale: The factor by which the user's optimizer scaled the loss.
        optimizer: The optimizer of the user.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        are_finite = [ops.all(ops.isfinite(gradient)) for gradient, _ in pairs]
        is_finite = functools.reduce(ops.logical_and, are_finite, True)
        pairs = [(ops.where(is_finite, g, 0.0), v) for g, v in pairs]
    return [(g / scale, v) for g, v in pairs]


def apply(
    model: keras.Model, gradients: Mapping[int, Any], scale: Any, searching: bool | tf.Tensor
) -> None:
    """Updates every variable that has a gradient.

    Args:
        model: A `DQMQModel`.
        gradients: `{id of variable: gradient}`. If terms of the objective are switched off, or once
            the bits are settled, some variables, or all of one optimizer, have none.
        scale: The factor by which the user's optimizer scaled the loss. That optimizer removes it
            from its own gradients; for the others it is removed here. A `LossScaleOptimizer` leaves
            out a step whose gradients overflow, and so do the others then.
        searching: Whether the bits are still being learned, a bool or a scalar tensor. If not, policy
            and encoder keep their values, which an optimizer changes by its momentum alone.
    """
    deciding = [*model._parts.policy.trainable_variables, *model._parts.encoder.trainable_variables]
    kept = [] if isinstance(searching, bool) else [(v, ops.copy(v)) for v in deciding]
    for optimizer, variables in shares(model):
        pairs = [(gradients[id(v)], v) for v in variables if id(v) in gradients]
        if optimizer is not model.optimizer:
            pairs = unscaled(pairs, scale, model.optimizer)
        if pairs:
            with shared_updates(optimizer):
                optimizer.apply_gradients(pairs)
    for variable, value in kept:
        variable.assign(ops.where(searching, variable, value))
