"""The search in a training loop of the user's, with a `tf.GradientTape`."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf import inputs
from dqmq_tf.training import optimizers
from dqmq_tf.training.update_functions import shared_updates


class CustomTraining:
    """Trains network and policy in the user's loop; returned by `DQMQModel.custom_training`.

    It settles the bits at the same share of the training as `fit`.

    Args:
        model: A calibrated `DQMQModel`.
        steps: The total number of training steps, including the fine-tuning.

    Raises:
        ValueError: If `steps` is not a positive integer.
    """

    def __init__(self, model: keras.Model, steps: int) -> None:
        if not isinstance(steps, (int, np.integer)) or steps < 1:
            raise ValueError(f"steps={steps!r}: pass the number of training steps, 1 or more.")
        self._model, self._training, self._steps = model, model._training, steps
        self._steps_done = 0

    def __enter__(self) -> "CustomTraining":
        optimizers.compile_own(self._model)
        self._training.parts.policy.loss_scale.assign(1.0)
        if self._training.is_searching:
            self._training.begin(self._steps)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        if self._training.is_searching:
            self._training.settle()
        self._training.keep_budget()

    def apply_gradients(
        self, tape: tf.GradientTape, loss: tf.Tensor, x: Any, optimizer: keras.optimizers.Optimizer
    ) -> None:
        """Applies one training step to the network, the policy and the encoder.

        The gradient of `loss` reaches the bit-widths through the relaxation between neighboring
        ones. The terms of the objective that do not need the loss of each sample are added: expected
        cost and entropy.

        Args:
            tape: The `tf.GradientTape` that recorded the loss.
            loss: A scalar, the loss of `model(x, training=True)`. With a `LossScaleOptimizer` it is
                `optimizer.scale_loss(loss)`, as in Keras.
            x: The inputs of this step, in the structure that the model takes.
            optimizer: The optimizer of the network's variables, `model.trainable_variables`. Policy
                and encoder have optimizers of their own.

        Raises:
            RuntimeError: In a `tf.function`.
        """
        if not tf.executing_eagerly():
            raise RuntimeError(
                "apply_gradients was called in a tf.function, but it decides about the bits in "
                "Python. Call it outside, and put @tf.function around the forward pass alone, such "
                "as `forward = tf.function(lambda x: qmodel(x, training=True))`."
            )
        training, parts = self._training, self._training.parts
        if training.is_searching and training.progress() >= parts.config.settle:
            training.settle()
        searching = training.is_searching
        optimizers.spare_steps(optimizer, self._model.trainable_variables)
        shares = [(optimizer, self._model.trainable_variables), *optimizers.shares(self._model)[1:]]
        variables = [v for _, share in shares for v in share]
        gradients = tape.gradient(loss, variables)
        scale = optimizer.scale_loss(ops.ones(()))
        if searching:
            gradients = [*map(_sum, gradients, self._policy_gradients(x, variables, scale))]
        gradient_of = training.search.gated(zip(gradients, variables))
        for share_optimizer, share in shares:
            pairs = [(gradient_of[id(v)], v) for v in share if id(v) in gradient_of]
            if share_optimizer is not optimizer:
                pairs = optimizers.unscaled(pairs, scale, optimizer)
            if pairs:
                with shared_updates(share_optimizer):
                    share_optimizer.apply_gradients(pairs)
        # The next forward pass needs the factor of its loss.
        parts.policy.loss_scale.assign(optimizer.scale_loss(ops.ones(())))
        self._steps_done += 1
        training.prepare(x)
        training.follow_values(self._steps_done - 1, self._steps_done)
        if searching:
            training.search.advance()
            parts.encoder.adapt(inputs.first_input(x, self._model))
        else:
            settled_at = parts.config.settle * self._steps
            faded = (self._steps_done - settled_at) / max(self._steps - settled_at, 1)
            training.set_rate(self._steps, float(np.clip(faded, 0.0, 1.0)))

    def _policy_gradients(self, x: Any, variables: list[Any], scale: Any) -> list[Any]:
        """Returns the gradients of expected cost and entropy times `scale`, None where there is none."""
        parts = self._training.parts
        with tf.GradientTape() as tape:
            first = inputs.first_input(x, self._model)
            z = parts.encoder(ops.convert_to_tensor(first))
            decision = parts.policy(z, training=True)
            terms, _ = self._training.search.terms(decision, None)
            total = sum(terms.values(), ops.zeros(())) * scale
        return tape.gradient(total, variables)


def _sum(one: Any, other: Any) -> Any:
    """Returns the sum of two gradients, either of which may be None."""
    if one is None or other is None:
        return other if one is None else one
    return one + other
