"""The search in a training loop of the user's, beside that of `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_networks import network

import dqmq_tf
from dqmq_tf.training import optimizers

IMAGES = np.random.default_rng(0).random((16, 16, 16, 3)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 10, 16)


def trained(optimizer, steps=3):
    """A model that a loop of the user's has trained."""
    keras.utils.set_random_seed(0)
    budget = dqmq_tf.Budget(mean_bit_width=3.3)
    model = dqmq_tf.quantize_model(network(), target="simulation", budget=budget)
    loss_of = keras.losses.SparseCategoricalCrossentropy()
    with model.custom_training(steps=steps, data=IMAGES) as training:
        # Only the first forward pass does not know it.
        model._parts.policy.loss_scale.assign(optimizer.scale_loss(1.0))
        for _ in range(steps):
            with tf.GradientTape() as tape:
                loss = optimizer.scale_loss(loss_of(LABELS, model(IMAGES, training=True)))
            training.apply_gradients(tape, loss, IMAGES, optimizer)
    return model


def test_a_scaled_loss_trains_policy_and_encoder_as_an_unscaled_one():
    plain = trained(keras.optimizers.SGD(0.01))
    scaled = trained(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), 2.0**12))
    for (_, expected), (_, found) in zip(optimizers.shares(plain), optimizers.shares(scaled)):
        assert len(expected) == len(found)
        for one, other in zip(expected, found):
            assert other.numpy() == pytest.approx(one.numpy(), rel=1e-3, abs=1e-4), one.path


def test_a_loss_scale_that_overflows_spoils_neither_policy_nor_encoder():
    model = trained(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), 3e38))
    for _, variables in optimizers.shares(model):
        assert all(np.isfinite(variable.numpy()).all() for variable in variables)
