"""The search in a training loop that the user writes, with a `tf.GradientTape`."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.training import optimizers


class CustomTraining:
    """What `DQMQModel.custom_training` gives: moves network and policy, and settles in time.

    Args:
        model: The calibrated `DQMQModel`.
        steps: Training steps in all, fine-tuning included.
    """

    def __init__(self, model: keras.Model, steps: int) -> None:
        self._model, self._training, self._steps = model, model._training, steps
        self._taken = 0

    def __enter__(self) -> "CustomTraining":
        optimizers.compile_own(self._model)
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
        """Takes one step: moves the network by an optimizer, and what decides the bits by its own.

        The task's loss reaches the bit-widths through the relaxation between neighboring ones.
        The terms that do not need the task's loss per sample are added: expected cost and entropy.

        Args:
            tape: The tape that recorded the loss.
            loss: Scalar loss of `model(x, training=True)`.
            x: The inputs of this step, in the structure in which the model takes them.
            optimizer: Moves the network's variables, `model.trainable_variables`.
        """
        training, parts = self._training, self._training.parts
        if training.is_searching and training.progress() >= parts.config.settle:
            training.settle()
        searching = training.is_searching
        shares = [(optimizer, self._model.trainable_variables), *optimizers.shares(self._model)[1:]]
        variables = [v for _, share in shares for v in share]
        gradients = tape.gradient(loss, variables)
        if searching:
            gradients = [*map(_sum, gradients, self._policy_gradients(x, variables))]
        found = training.search.gated(zip(gradients, variables))
        for one, share in shares:
            pairs = [(found[id(v)], v) for v in share if id(v) in found]
            if pairs:
                one.apply_gradients(pairs)
        self._taken += 1
        if searching:
            training.search.advance()
            parts.encoder.adapt(keras.tree.flatten(x)[0])
        else:
            settled_at = parts.config.settle * self._steps
            faded = (self._taken - settled_at) / max(self._steps - settled_at, 1)
            training.set_rate(self._steps, float(np.clip(faded, 0.0, 1.0)))

    def _policy_gradients(self, x: Any, variables: list[Any]) -> list[Any]:
        parts = self._training.parts
        with tf.GradientTape() as tape:
            z = parts.encoder(ops.convert_to_tensor(keras.tree.flatten(x)[0]))
            decision = parts.policy(z, training=True)
            terms, _ = self._training.search.terms(decision, None)
            total = sum(terms.values(), ops.zeros(()))
        return tape.gradient(total, variables)


def _sum(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    return one + other
