"""Compares a batch normalization and what follows it in one loop with Keras's, one after the other."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.needed_operations import needed_operations

from dqmq_tf.layers import (
    ActivationQuantizer,
    FusedBatchNormalization,
    QualityAffine,
    RectifiedQuantizer,
)
from dqmq_tf.layers.normalization import Normalization, normalization_of
from dqmq_tf.policy.decision_tensor import FIELDS

BITS = (2, 4, 8)
SHAPE = (4, 56, 56, 24)


def random_tensor(seed, mean=0.0, spread=1.0, shape=SHAPE):
    return tf.constant(np.random.default_rng(seed).normal(mean, spread, shape), tf.float32)


def decisions(count, fields):
    random = np.random.default_rng(1)
    low = random.choice(2, count)
    ends = np.array(BITS)[low], np.array(BITS)[low + 1]
    executed = np.where(random.random(count) < 0.5, *ends)
    rows = np.stack([executed, *ends, np.full(count, 0.4), np.mean(ends, axis=0)], axis=-1)
    return tf.constant(rows[:, None, :fields], tf.float32)


def new_layers(by_quality, ceiling):
    """Returns a batch normalization, the affine behind it or None, and a quantizer with a ReLU."""
    random = np.random.default_rng(2)
    layer = keras.layers.BatchNormalization()
    layer.build((None, *SHAPE[1:]))
    layer.gamma.assign(random.uniform(0.5, 1.5, SHAPE[-1]))
    layer.beta.assign(random.normal(0.3, 0.5, SHAPE[-1]))
    affine = None
    if by_quality:
        affine = QualityAffine()
        affine.build((None, *SHAPE[1:]), (None, 5))
        for weight in affine.trainable_weights:
            weight.assign(random.uniform(-0.3, 0.3, weight.shape))
    quantizer = ActivationQuantizer(BITS, column=0)
    quantizer.observe()
    quantizer(tf.nn.relu(random_tensor(3, 0.3)))
    quantizer.calibrate()
    return layer, affine, quantizer, RectifiedQuantizer(quantizer, ceiling)


def output_and_gradients(parts, sources, decision, upstream, quality):
    """Runs the layers in a graph, together or one after the other; the input is the first source."""
    norm, rectifier, together = parts

    @tf.function
    def run():
        with tf.GradientTape() as tape:
            tape.watch(sources)
            y = norm(sources[0], training=True, **quality)
            assert normalization_of(y) is not None
            # A copy of a tensor does not know the normalization that it comes from.
            found = rectifier(y if together else tf.identity(y), decision=decision)
        gradients = tape.gradient(found, sources, upstream)
        return [found, *(g for g in gradients if g is not None)]

    return run()


@pytest.mark.parametrize("fields", [1, FIELDS])
@pytest.mark.parametrize("by_quality", [False, True])
@pytest.mark.parametrize("ceiling", [np.inf, 6.0])
def test_one_loop_computes_what_the_layers_compute_one_after_the_other(fields, by_quality, ceiling):
    x, upstream = random_tensor(4, 5.0, 3.0), random_tensor(5)
    z, decision = random_tensor(6, shape=(SHAPE[0], 5)), decisions(SHAPE[0], fields)
    results = []
    for together in (True, False):
        layer, affine, quantizer, rectifier = new_layers(by_quality, ceiling)
        fused = FusedBatchNormalization(layer, affine, compiled=True)
        weights = [layer.gamma, layer.beta, *(affine.trainable_weights if affine else [])]
        sources = [x, decision, quantizer.log_step.value, *(w.value for w in weights)]
        parts = fused, rectifier, together
        found = output_and_gradients(parts, sources, decision, upstream, {"z": z} if affine else {})
        results.append([*found, layer.moving_variance])
    for value, reference in zip(*results, strict=True):
        scale = np.abs(reference).max()
        np.testing.assert_allclose(value / scale, reference / scale, atol=1e-4)


def test_the_gradient_keeps_no_activation_but_the_input():
    layer, _, _, rectifier = new_layers(False, np.inf)
    fused = FusedBatchNormalization(layer, compiled=True)
    decision = decisions(SHAPE[0], 1)

    @tf.function(input_signature=[tf.TensorSpec(SHAPE), tf.TensorSpec(SHAPE)])
    def gradient(x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = rectifier(fused(x, training=True), decision=decision)
        return tape.gradient(y, x, upstream)

    needed = needed_operations(gradient.get_concrete_function().graph)
    calls = [operation for operation in needed if "PartitionedCall" in operation.type]
    # The statistics and the gradient: neither the normalized tensor nor the quantized one.
    assert len(calls) == 2


def test_statistics_are_those_of_the_batch():
    x = random_tensor(7, 50.0, 0.5)
    ones = tf.ones(SHAPE[-1])
    normalization = Normalization(x, ones, ones, 0.001)
    np.testing.assert_allclose(normalization.mean, np.mean(x, (0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(normalization.variance, np.var(x, (0, 1, 2)), rtol=1e-3)
    assert normalization_of(x) is None
