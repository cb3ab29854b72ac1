import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from dqmq_tf.policy import discrete_gaussian
from dqmq_tf.training import objective

GRID = np.array([2, 3, 4], "float32")
ALLOWED = np.ones((2, 3), "float32")
SIGMA = np.array([0.7, 1.1], "float32")
# A reward with a kink and an interaction: no relaxation could be exact on it.
LOSSES = np.array([[2.0, 1.2, 1.1], [0.4, 0.9, 0.2], [0.5, 0.3, 0.25]], "float32")


def true_gradient(mean):
    """Of the enumerated expected loss, by automatic differentiation."""
    mean = tf.constant(mean)
    with tf.GradientTape() as tape:
        tape.watch(mean)
        p = tf.exp(discrete_gaussian.log_probabilities(mean[None], SIGMA, GRID, ALLOWED))[0]
        expected = tf.einsum("i,j,ij->", p[0], p[1], LOSSES)
    return tape.gradient(expected, mean).numpy()


def enumerated_estimate(mean, baseline, scale=1.0):
    """Expectation and second moment of the score-function gradient over all decisions."""
    first, second = np.zeros(2), 0.0
    for i, j in itertools.product(range(3), repeat=2):
        mean_ = tf.constant(mean)
        with tf.GradientTape() as tape:
            tape.watch(mean_)
            log_p = discrete_gaussian.log_probabilities(mean_[None], SIGMA, GRID, ALLOWED)[0]
            drawn = (log_p[0, i] + log_p[1, j])[None]
            term, _ = objective.score_function(
                tf.constant([LOSSES[i, j]]), drawn, tf.constant([baseline]), scale
            )
        gradient = tape.gradient(term, mean_).numpy()
        p = np.exp(drawn.numpy()[0])
        first += p * gradient
        second += p * np.sum(gradient**2)
    return first, second


@pytest.mark.parametrize("baseline", [0.0, 0.8, -3.0])
@pytest.mark.parametrize("mean", [(3.2, 2.4), (2.0, 4.0)])
def test_score_function_is_unbiased_whatever_the_baseline(mean, baseline):
    mean = np.array(mean, "float32")
    found, _ = enumerated_estimate(mean, baseline)
    np.testing.assert_allclose(found, true_gradient(mean), rtol=1e-3, atol=1e-5)
    scaled, _ = enumerated_estimate(mean, baseline, scale=2.0)
    np.testing.assert_allclose(2 * scaled, found, rtol=1e-4, atol=1e-6)


def test_a_baseline_near_the_loss_lowers_the_variance():
    mean = np.array([3.2, 2.4], "float32")
    moments = [enumerated_estimate(mean, b)[1] for b in (0.0, 0.6, 10.0)]
    assert moments[1] < moments[0] < moments[2]


def test_score_function_averages_over_samples_and_leaves_losses_and_baseline_alone():
    losses, log_p, baseline = (tf.constant(v) for v in ([1.0, 3.0], [-0.5, -0.2], [1.5, 1.5]))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([losses, log_p, baseline])
        term, error = objective.score_function(losses, log_p, baseline, 2.0)
    # Descending on the term makes the better decision likelier and the worse one less likely.
    np.testing.assert_allclose(tape.gradient(term, log_p), [-0.125, 0.375])
    assert tape.gradient(term, losses) is None
    assert tape.gradient(term, baseline) is None
    np.testing.assert_allclose(error, (0.25 + 2.25) / 2)
    np.testing.assert_allclose(tape.gradient(error, baseline), [0.5, -1.5])


def test_model_cost_pulls_to_the_budget_from_both_sides():
    def pull(expected, multiplier):
        value = tf.constant(expected)
        with tf.GradientTape() as tape:
            tape.watch(value)
            price = objective.model_cost(value, 4.0, multiplier)
        return float(tape.gradient(price, value))

    assert pull(5.0, 0.0) > 0
    assert pull(3.0, 0.0) < 0
    assert pull(4.0, 0.0) == 0
    assert pull(4.0, 1.0) == pytest.approx(0.25)
    # In relative units: a budget in bytes and one in bits weigh the same.
    np.testing.assert_allclose(
        objective.model_cost(5e6, 4e6, 0.3), objective.model_cost(5.0, 4.0, 0.3)
    )


def test_dual_ascent_rises_over_the_budget_and_never_below_zero():
    assert objective.dual_ascent(1.0, 5.0, 4.0) > 1.0
    assert objective.dual_ascent(1.0, 3.0, 4.0) < 1.0
    assert objective.dual_ascent(1.0, 4.0, 4.0) == 1.0
    assert objective.dual_ascent(0.0, 1.0, 4.0) == 0.0


def test_model_cost_and_dual_ascent_meet_the_budget():
    # minimise 1 / bits under bits <= 4: the multiplier finds the price of a bit.
    @tf.function
    def descend(bits, multiplier):
        with tf.GradientTape() as tape:
            tape.watch(bits)
            loss = 1.0 / bits + objective.model_cost(bits, 4.0, multiplier)
        bits = bits - 0.05 * tape.gradient(loss, bits)
        return bits, objective.dual_ascent(multiplier, bits, 4.0)

    bits, multiplier = tf.constant(6.0), tf.constant(0.0)
    for _ in range(1500):
        bits, multiplier = descend(bits, multiplier)
    assert float(bits) == pytest.approx(4.0, abs=0.01)
    assert float(multiplier) == pytest.approx(0.25, abs=0.01)


def test_entropy_bonus_falls_as_entropy_rises():
    entropies = tf.constant([[0.5, 1.0], [1.5, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch(entropies)
        bonus = objective.entropy_bonus(entropies, 0.2)
    assert float(bonus) == pytest.approx(-0.2)
    assert np.all(tape.gradient(bonus, entropies) < 0)


LABELS = np.array([0, 2, 1], "int32")
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.3, 0.3, 0.4]], "float32")
CROSS_ENTROPY = -np.log(PROBABILITIES[np.arange(3), LABELS])


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.SparseCategoricalCrossentropy(reduction="sum"),
        keras.losses.sparse_categorical_crossentropy,
        lambda y, p: keras.losses.sparse_categorical_crossentropy(y, p),
    ],
)
@pytest.mark.parametrize("column", [False, True])
def test_per_sample_losses_of_every_form_of_a_loss(loss, column):
    y = LABELS[:, None] if column else LABELS
    found = objective.per_sample_losses(loss, tf.constant(y), tf.constant(PROBABILITIES))
    np.testing.assert_allclose(found, CROSS_ENTROPY, rtol=1e-5)


@pytest.mark.parametrize(
    "loss", ["mse", "mae", keras.losses.MeanSquaredError(), keras.losses.Huber()]
)
@pytest.mark.parametrize("y_column", [False, True])
def test_regression_targets_with_and_without_a_last_axis(loss, y_column):
    y, p = np.array([0.0, 1.0, 4.0], "float32"), np.array([[0.5], [1.0], [2.0]], "float32")
    target = tf.constant(y[:, None] if y_column else y)
    found = objective.per_sample_losses(loss, target, tf.constant(p))
    whole = keras.losses.get(loss)
    each = [np.mean(whole(y[i : i + 1, None], p[i : i + 1])) for i in range(3)]
    np.testing.assert_allclose(found, each, rtol=1e-5)


def test_binary_and_one_hot_targets():
    one_hot = tf.one_hot(LABELS, 3)
    found = objective.per_sample_losses("categorical_crossentropy", one_hot, PROBABILITIES)
    np.testing.assert_allclose(found, CROSS_ENTROPY, rtol=1e-5)
    p = tf.constant([[0.9], [0.2]])
    found = objective.per_sample_losses("binary_crossentropy", tf.constant([1, 0]), p)
    np.testing.assert_allclose(found, -np.log([0.9, 0.8]), rtol=1e-4)


def test_positions_of_an_output_are_averaged():
    y, p = np.zeros((2, 3, 4, 5), "float32"), np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    found = objective.per_sample_losses("mse", y, tf.constant(p, tf.float32))
    np.testing.assert_allclose(found, np.square(p).mean((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_sample_weights_scale_each_sample(shape):
    weight = tf.reshape(tf.constant([0.0, 1.0, 2.0]), shape)
    found = objective.per_sample_losses(
        "sparse_categorical_crossentropy", LABELS, tf.constant(PROBABILITIES), weight
    )
    np.testing.assert_allclose(found, CROSS_ENTROPY * [0, 1, 2], rtol=1e-5)
    positions = objective.per_sample_losses(
        "mse", np.zeros((3, 4, 2)), tf.ones((3, 4, 2)), tf.constant([0.0, 1.0, 2.0])
    )
    np.testing.assert_allclose(positions, [0, 1, 2])


@pytest.mark.parametrize("structure", ["list", "dict"])
def test_losses_of_several_outputs_are_added(structure):
    p = {"label": tf.constant(PROBABILITIES), "size": tf.constant([[1.0], [2.0], [3.0]])}
    y = {"label": tf.constant(LABELS), "size": tf.constant([1.0, 1.0, 1.0])}
    loss = {"label": "sparse_categorical_crossentropy", "size": "mse"}
    if structure == "list":
        p, y, loss = (list(x.values()) for x in (p, y, loss))
    found = objective.per_sample_losses(loss, y, p)
    np.testing.assert_allclose(found, CROSS_ENTROPY + [0, 1, 4], rtol=1e-5)


def test_one_loss_for_all_outputs_and_none_for_some():
    y, p = [tf.zeros((2, 1))] * 2, [tf.ones((2, 1)), 2 * tf.ones((2, 1))]
    np.testing.assert_allclose(objective.per_sample_losses("mse", y, p), [5, 5])
    np.testing.assert_allclose(objective.per_sample_losses([None, "mse"], y, p), [4, 4])


def test_mean_of_per_sample_losses_is_what_keras_trains_on():
    inputs = keras.Input((3,))
    outputs = keras.layers.Softmax()(inputs)
    model = keras.Model(inputs, outputs)
    model.compile(loss="sparse_categorical_crossentropy")
    x = np.log(PROBABILITIES)
    trained_on = model.compute_loss(x, LABELS, model(x))
    found = objective.per_sample_losses(model.loss, LABELS, model(x))
    np.testing.assert_allclose(ops.mean(found), trained_on, rtol=1e-5)
