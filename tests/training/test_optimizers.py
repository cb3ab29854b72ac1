"""Which optimizer moves what, and how fast."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_networks import network

import dqmq_tf
from dqmq_tf.training import optimizers

IMAGES = np.random.default_rng(0).random((64, 16, 16, 3)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 10, 64)


def quantized(rate=0.0, **config):
    budget = dqmq_tf.Budget(mean_bit_width=3.3)
    model = dqmq_tf.quantize_model(
        network(), target="simulation", budget=budget, config=dqmq_tf.DQMQConfig(**config)
    )
    model.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy")
    return model


def fit(model, **options):
    model.fit(IMAGES, LABELS, batch_size=16, verbose=0, **options)
    return model


def test_each_variable_is_moved_by_one_optimizer():
    model = quantized()
    shared = [v for _, variables in optimizers.shares(model) for v in variables]
    trained = [v for v in model.weights if v.trainable]
    assert sorted(v.path for v in shared) == sorted(v.path for v in trained)
    assert len({id(v) for v in shared}) == len(shared)


def test_what_sees_the_quality_does_not_wait_for_the_networks_rate():
    model = quantized(rate=0.0)
    model.calibrate(IMAGES)
    (_, network_), (_, readers), (_, encoder) = optimizers.shares(model)
    before = {v.path: v.numpy() for v in model.weights}
    fit(model, epochs=3)

    def moved(variables):
        return [bool((v.numpy() != before[v.path]).any()) for v in variables]

    # Ranges follow what the readers change.
    weights = [v for v in network_ if not v.path.endswith("log_step")]
    assert model._parts.affines and len(weights) > 5 and not any(moved(weights))
    assert all(moved(readers)) and all(moved(encoder))


def test_the_encoder_moves_at_a_fifth_of_the_policys_rate():
    model = quantized(policy_learning_rate=0.01)
    rates = [
        float(o.learning_rate)
        for o in (model._training.policy_optimizer, model._training.encoder_optimizer)
    ]
    assert rates == pytest.approx([0.01, 0.002])


class Rates(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.found = {"search": [], "settled": []}

    def on_train_batch_end(self, batch, logs=None):
        rate = float(self.model._training.policy_optimizer.learning_rate)
        self.found[self.model._parts.policy.phase].append(rate)


@pytest.mark.parametrize("rate", [None, 0.03])
def test_the_rate_stays_in_the_search_and_falls_to_nothing_in_the_fine_tuning(rate):
    rates = Rates()
    model = fit(quantized(policy_learning_rate=rate), epochs=10, callbacks=[rates])
    search, settled = rates.found["search"], rates.found["settled"]
    assert len(set(search)) == 1 and len(settled) > 10
    assert rate is None or search[0] == pytest.approx(rate)
    assert (np.diff(settled) < 0).all() and settled[0] <= search[0]
    assert settled[-1] < 0.1 * search[0]
    # A fit that goes on begins at the full rate again.
    again = Rates()
    fit(model, epochs=2, callbacks=[again])
    assert again.found["settled"][0] > settled[-1] and not again.found["search"]


def test_the_rate_suits_the_length_of_data_also_if_that_is_unknown():
    rates = Rates()
    model = quantized()
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(16).filter(lambda x, y: True)
    model.fit(data, epochs=10, verbose=0, callbacks=[rates])
    search, settled = rates.found["search"], rates.found["settled"]
    # In the first epoch, it is that of a loop of the user's.
    assert search[:4] == pytest.approx([0.01] * 4)
    total = model._training.total_steps
    assert search[4:] == pytest.approx([model._training.search.rate(total)] * len(search[4:]))
    assert settled[0] == pytest.approx(search[-1]) and (np.diff(settled) <= 0).all()
    assert settled[-1] < 0.3 * search[-1]


def test_a_search_that_starts_again_in_a_loop_has_the_rate_of_a_loop():
    model = fit(quantized(), epochs=2)
    optimizer = model._training.policy_optimizer
    assert float(optimizer.learning_rate) != pytest.approx(0.01)
    model.resume_search()
    model.train_on_batch(IMAGES[:16], LABELS[:16])
    assert float(optimizer.learning_rate) == pytest.approx(0.01)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_weight_decay_leaves_step_sizes_and_what_the_user_excludes(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = dqmq_tf.quantize_model(network())
    finally:
        keras.config.set_dtype_policy("float32")
    # So little that the steps of kernels are not fitted again.
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.2)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, lambda y, p: 0.0 * keras.ops.sum(p, axis=-1), auto_scale_loss=True)
    model.calibrate(IMAGES)
    biases = [v for v in model.trainable_variables if v.name == "bias"]
    biases[0].assign(biases[0] + 1.0)
    before = {v.path: v.numpy() for v in model.trainable_variables}
    fit(model)
    moved = {v.path for v in model.trainable_variables if (v.numpy() != before[v.path]).any()}
    assert moved and not any("log_step" in path or path.endswith("bias") for path in moved)
    assert all(v.path in moved for v in model.trainable_variables if v.name == "kernel")


def test_a_loss_scale_that_overflows_spoils_neither_policy_nor_encoder():
    model = quantized()
    too_large = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), 3e38)
    model.compile(too_large, "sparse_categorical_crossentropy", run_eagerly=True)
    fit(model, epochs=1)
    for _, variables in optimizers.shares(model):
        assert all(np.isfinite(variable.numpy()).all() for variable in variables)
