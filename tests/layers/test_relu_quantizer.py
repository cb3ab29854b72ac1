"""Compares a ReLU inside its quantizer with a ReLU followed by the quantizer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dqmq_tf.layers import ActivationQuantizer, RectifiedQuantizer
from dqmq_tf.policy.decision_tensor import FIELDS

BITS = (2, 4, 8)
# Below and above the size from which XLA compiles the quantizer, with and without blocks.
SHAPES = ((6, 5, 4), (6, 32, 32, 8), (6, 30, 31, 8))


def tensors(shape):
    random = np.random.default_rng(0)
    return [tf.constant(random.normal(1.0, 4.0, shape), tf.float32) for _ in range(2)]


def decisions(count, fields):
    random = np.random.default_rng(1)
    if fields == 1:
        return tf.constant(random.choice(BITS, (count, 1, 1)), tf.float32)
    low = random.choice(2, count)
    ends = np.array(BITS)[low], np.array(BITS)[low + 1]
    executed = np.where(random.random(count) < 0.5, *ends)
    rows = np.stack([executed, *ends, np.full(count, 0.4), np.mean(ends, axis=0)], axis=-1)
    return tf.constant(rows[:, None], tf.float32)


def run(function, quantizer, x, upstream, decision):
    sources = [x, quantizer.log_step.value, decision]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        y = function(x, decision=decision)
    return [y, *tape.gradient(y, sources, upstream)]


@pytest.mark.parametrize("fields", [1, FIELDS])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("ceiling", "relu"), [(np.inf, keras.ops.relu), (6.0, keras.ops.relu6)], ids=["relu", "relu6"]
)
def test_values_and_gradients_are_those_of_a_relu_followed_by_the_quantizer(
    ceiling, relu, shape, fields
):
    x, upstream = tensors(shape)
    quantizer = ActivationQuantizer(BITS, column=0, compiled=True)
    fused = RectifiedQuantizer(quantizer, ceiling)

    def apart(x, decision):
        return quantizer(relu(x), decision=decision)

    for _ in range(2):
        decision = decisions(shape[0], fields)
        found = run(fused, quantizer, x, upstream, decision)
        expected = run(apart, quantizer, x, upstream, decision)
        for value, reference in zip(found, expected, strict=True):
            assert (value is None) == (reference is None)
            if value is not None:
                np.testing.assert_allclose(value, reference, rtol=1e-4, atol=1e-4)
        # The first round runs before calibration, the second after it.
        quantizer.observe()
        np.testing.assert_array_equal(fused(x, decision=decision), relu(x))
        quantizer.calibrate()
    assert quantizer.values(8)[1] == 0 and len(np.unique(found[0])) > 4


def test_it_is_saved_with_its_quantizer():
    fused = RectifiedQuantizer(ActivationQuantizer(BITS, column=3), 6.0, name="relu")
    loaded = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(fused))
    assert (loaded.name, loaded.ceiling, loaded.quantizer.column) == ("relu", 6.0, 3)
    assert loaded.quantizer.bit_widths == BITS
