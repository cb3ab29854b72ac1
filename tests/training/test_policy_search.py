"""Each term of the objective feeds a gradient, and its switch turns just that gradient off."""

import keras
import numpy as np
import pytest
from helpers.small_networks import network

import dqmq_tf
from dqmq_tf.training.policy_search import PolicySearch

OFF = {
    "supervised": False,
    "pathwise": False,
    "curvature": False,
    "score_function": False,
    "model_cost": False,
    "entropy": False,
}
IMAGES = np.random.default_rng(0).random((32, 16, 16, 3)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 10, 32)


def moved(in_bytes=False, profiles=1, traced=False, **on):
    """`{variable: whether two training steps moved it}` with only some terms on.

    Tracing takes longer than these steps. Where no term is on, and where the one with a gradient of
    its own is, functions are traced as users do.
    """
    config = dqmq_tf.DQMQConfig(
        terms=dqmq_tf.ObjectiveTerms(**{**OFF, **on}), profiles=profiles, initial_sigma=0.6
    )
    budget = dqmq_tf.Budget(**{"download_bytes": 6_000} if in_bytes else {"mean_bit_width": 3.3})
    target = "android" if in_bytes else "simulation"
    qmodel = dqmq_tf.quantize_model(network(), target=target, budget=budget, config=config)
    qmodel.compile(
        keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", run_eagerly=not traced
    )
    qmodel.calibrate(IMAGES)
    policy = qmodel._parts.policy
    wrapper = qmodel._parts.wrappers["conv_1"]
    variables = {
        "kernel": wrapper.layer.kernel,
        "weight_step": wrapper.log_steps[0],
        "activation_step": qmodel._parts.quantizers[1].log_step,
        "mean": policy.mean,
        "direction": policy.direction,
        "sigma": policy.log_sigma,
        "baseline": policy.baseline_bias,
        "encoder": qmodel._parts.encoder.hidden_kernel,
    }
    before = {name: variable.numpy() for name, variable in variables.items()}
    for _ in range(2):
        qmodel.train_on_batch(IMAGES, LABELS)
    return {name: bool((v.numpy() != before[name]).any()) for name, v in variables.items()}


@pytest.fixture(scope="module")
def nothing():
    return moved(traced=True)


def test_without_any_term_nothing_moves(nothing):
    assert not any(nothing.values()), nothing


@pytest.mark.parametrize(
    "term, fed, not_fed",
    [
        ("supervised", ["kernel", "weight_step", "activation_step"], ["mean", "sigma", "baseline"]),
        ("pathwise", ["mean", "direction"], ["kernel", "sigma", "baseline"]),
        ("curvature", ["direction"], ["kernel", "mean", "sigma", "baseline"]),
        ("score_function", ["mean", "direction", "sigma", "baseline"], ["kernel"]),
        ("model_cost", ["mean", "direction", "sigma"], ["kernel", "baseline"]),
        ("entropy", ["sigma"], ["kernel", "baseline"]),
    ],
)
def test_a_term_alone_feeds_its_own_gradients(term, fed, not_fed):
    result = moved(traced=term == "score_function", **{term: True})
    assert all(result[name] for name in fed), result
    assert not any(result[name] for name in not_fed), result


def test_in_bytes_static_bits_do_not_follow_the_quality():
    on = {"pathwise": True, "score_function": True, "model_cost": True}
    alone, several = (moved(in_bytes=True, profiles=n, **on) for n in (1, 2))
    assert alone["mean"] and several["mean"] and several["direction"]
    assert not alone["direction"]


def test_files_are_searched_at_half_the_rate():
    rates = []
    for target, budget in (
        ("simulation", dqmq_tf.Budget(mean_bit_width=4)),
        ("android", dqmq_tf.Budget(download_bytes=6_000)),
    ):
        config = dqmq_tf.DQMQConfig(settle=0.6)
        qmodel = dqmq_tf.quantize_model(network(), target=target, budget=budget, config=config)
        rates.append(PolicySearch(qmodel._parts).rate(300))
    # As far as it can get: a bit and a half in half of 300 steps.
    assert rates == pytest.approx([0.01, 0.005])


def test_a_loss_of_one_value_for_a_batch_can_train_several_profiles():
    config = dqmq_tf.DQMQConfig(profiles=2)
    qmodel = dqmq_tf.quantize_model(network(), target="simulation", config=config)

    def loss(y, y_pred):
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, y_pred))

    qmodel.compile("sgd", loss, run_eagerly=True)
    assert np.isfinite(qmodel.train_on_batch(IMAGES, LABELS))
