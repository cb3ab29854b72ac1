"""A new network meets the smallest budget that `quantize_model` accepts, after training."""

import re

import keras
import numpy as np
import pytest
from keras import layers

import dqmq_tf
from dqmq_tf.budget.typical_values import typical_values


def network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, use_bias=False, name="first")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2D(6, 3, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(6, name="head")(x), name="network")


@pytest.mark.parametrize(
    "target, kind", [("android", "download_bytes"), ("microcontroller", "size_bytes")]
)
def test_the_smallest_budget_of_a_new_network_is_met_after_training(target, kind, tmp_path):
    with pytest.raises(ValueError, match="the cost is") as error:
        dqmq_tf.quantize_model(network(), target=target, budget=dqmq_tf.Budget(**{kind: 1}))
    # Bytes are whole.
    found = re.search(r"the cost is ([\d,]+)\. ", str(error.value))[1]
    smallest = int(found.replace(",", ""))
    budget = dqmq_tf.Budget(**{kind: smallest + 1})
    qmodel = dqmq_tf.quantize_model(network(), target=target, budget=budget)
    qmodel.compile(keras.optimizers.Adam(1e-2), "mse", run_eagerly=True)
    random = np.random.default_rng(0)
    images, labels = random.normal(size=(8, 8, 8, 3)), random.normal(size=(8, 6))
    qmodel.fit(images, labels, batch_size=4, epochs=1, verbose=0)
    report = dqmq_tf.convert(qmodel, tmp_path / "model.tflite", verify=False)
    assert getattr(report, kind) <= smallest + 1


def test_typical_values_return_and_leave_what_is_set():
    qmodel = dqmq_tf.quantize_model(network(), target="simulation")
    body = qmodel._parts.body
    conv = body.get_layer("second")
    conv.bias.assign(np.arange(6))
    before = [w.copy() for w in qmodel.get_weights()]
    with typical_values(qmodel._parts):
        np.testing.assert_array_equal(conv.bias, np.arange(6))
        assert np.all(body.layers[-1].bias.numpy() != 0)
        assert np.all(qmodel._parts.quantizers[0].log_step.numpy() != 0)
    for value, expected in zip(qmodel.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)
