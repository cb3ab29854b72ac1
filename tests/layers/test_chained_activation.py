"""Compares an activation in one loop with its neighbors with the layers one after the other."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.needed_operations import needed_operations

from dqmq_tf.layers import (
    ActivationQuantizer,
    ChainedActivation,
    FusedBatchNormalization,
    is_chainable,
)
from dqmq_tf.policy.decision_tensor import FIELDS

BITS = (2, 4, 8)
SHAPE = (2, 56, 56, 24)


def random_tensor(seed, mean=0.0, spread=1.0):
    return tf.constant(np.random.default_rng(seed).normal(mean, spread, SHAPE), tf.float32)


def new_layers(activation, rounds_gate=False):
    """Returns a batch normalization, a calibrated quantizer, an activation and its quantizer."""
    norm = keras.layers.BatchNormalization()
    norm.build((None, *SHAPE[1:]))
    norm.gamma.assign(np.random.default_rng(2).uniform(1.0, 3.0, SHAPE[-1]))
    first, second = ActivationQuantizer(BITS, column=0), ActivationQuantizer(BITS, column=1)
    function = keras.activations.get(activation)
    values = random_tensor(3, spread=2.0)
    for quantizer, seen in ((first, values), (second, function(values))):
        quantizer.observe()
        quantizer(seen)
        quantizer.calibrate()
    layer = ChainedActivation(keras.layers.Activation(activation), rounds_gate)
    return FusedBatchNormalization(norm, compiled=True), first, layer, second


def output_and_gradients(layers, sources, decision, upstream, together):
    """Runs the layers in a graph, together or one after the other; the input is the first source."""
    arguments = ({"training": True}, {"decision": decision}, {}, {"decision": decision})

    @tf.function
    def run():
        with tf.GradientTape() as tape:
            tape.watch(sources)
            found = sources[0]
            for layer, kwargs in zip(layers, arguments):
                # A copy of a tensor does not know the normalization that it comes from.
                found = layer(found if together else tf.identity(found), **kwargs)
        gradients = tape.gradient(found, sources, upstream)
        return [found, *(g for g in gradients if g is not None)]

    return run()


@pytest.mark.parametrize("fields", [1, FIELDS])
@pytest.mark.parametrize("activation", ["silu", "gated silu", "hard_silu", "sigmoid"])
def test_one_loop_computes_what_the_layers_compute_one_after_the_other(activation, fields):
    x, upstream = random_tensor(4, 5.0, 3.0), random_tensor(5)
    row = tf.constant([8.0, 4.0, 8.0, 0.3, 6.0][:fields])
    decision = tf.tile(row[None, None], (SHAPE[0], 2, 1))
    results = []
    for together in (True, False):
        gated = activation == "gated silu"
        layers = norm, first, _, second = new_layers("silu" if gated else activation, gated)
        sources = [x, decision, norm.layer.gamma.value, norm.layer.beta.value]
        sources += [first.log_step.value, second.log_step.value]
        results.append(output_and_gradients(layers, sources, decision, upstream, together))
    assert len(results[0]) == 7 - (fields == 1)
    for value, reference in zip(*results, strict=True):
        scale = np.abs(reference).max()
        off = np.abs(value - reference) / scale > 1e-3
        # Values between two integers may be rounded to either of them.
        assert np.mean(off) < 1e-3


def test_the_loop_leaves_out_the_tensors_between_the_layers():
    layers = new_layers("silu")
    decision = tf.fill((SHAPE[0], 2, 1), 8.0)

    @tf.function(input_signature=[tf.TensorSpec(SHAPE)])
    def run(x):
        norm, first, activation, second = layers
        y = activation(first(norm(x, training=True), decision=decision))
        return second(y, decision=decision)

    types = [op.type for op in needed_operations(run.get_concrete_function().graph)]
    # The statistics and the loop.
    assert len([t for t in types if "PartitionedCall" in t]) == 2 and "Sigmoid" not in types


def test_without_a_normalization_it_is_the_layer():
    layer = keras.layers.Activation("silu", name="act")
    chained, x = ChainedActivation(layer), random_tensor(0)
    np.testing.assert_array_equal(chained(x), layer(x))
    config = keras.saving.serialize_keras_object(chained)
    loaded = keras.saving.deserialize_keras_object(config)
    assert loaded.name == chained.name == "act" and loaded.layer.activation is layer.activation


def test_the_gate_of_a_silu_is_rounded_as_int8_kernels_do():
    layer = ChainedActivation(keras.layers.Activation("silu", name="act"), rounds_gate=True)
    x = random_tensor(0, spread=4.0)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y, expected = layer(x), keras.ops.silu(x)
    gate = np.clip(np.round(256 * tf.sigmoid(x).numpy()), 0, 255) / 256
    np.testing.assert_array_equal(y, x * gate)
    # The gradient is that of a silu, but for the rounding of the gate, whose largest value is 255.
    gradients = [tape.gradient(z, x).numpy() for z in (y, expected)]
    is_clipped = tf.sigmoid(x).numpy() > 255 / 256
    assert 0.01 < np.mean(is_clipped) < 0.2
    gradients[1][is_clipped] = 255 / 256
    np.testing.assert_allclose(*gradients, atol=1 / 256 + 1e-5)
    assert np.abs(y - expected).max() > 0.005
    loaded = ChainedActivation.from_config(layer.get_config())
    np.testing.assert_array_equal(loaded(x), y)


def test_the_gradient_of_a_rounded_silu_keeps_its_input_alone():
    layer = ChainedActivation(keras.layers.Activation("silu", name="act"), rounds_gate=True)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 4])])
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return tape.gradient(y, x, output_gradients=x)

    types = [op.type for op in needed_operations(run.get_concrete_function().graph)]
    # One function of the input, which computes the sigmoid again. Nothing of the forward pass is kept.
    assert len([t for t in types if "PartitionedCall" in t]) == 1 and "Sigmoid" not in types


def test_only_plain_element_wise_activations_can_be_a_part_of_a_loop():
    assert is_chainable(keras.layers.Activation("hard_silu"), "float32")
    assert not is_chainable(keras.layers.Activation("softmax"), "float32")
    assert not is_chainable(keras.layers.Activation("silu"), "float16")
    assert not is_chainable(keras.layers.Activation("silu", dtype="mixed_float16"), "float32")
    regularized = keras.layers.Activation("silu", activity_regularizer="l2")
    assert not is_chainable(regularized, "float32")
    assert not is_chainable(keras.layers.ReLU(), "float32")
