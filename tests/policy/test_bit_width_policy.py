"""The draws of the policy and the gradients that train them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_policies import ACTIVATIONS, SIZE, WEIGHTS, embeddings, make, numpy
from keras import ops

from dqmq_tf.policy.bit_width_policy import BitWidthPolicy
from dqmq_tf.policy.decision_tensor import EXECUTED, FIELDS, HIGH, LOW, MEAN, SLOPE
from dqmq_tf.policy.policy_state import FROZEN
from dqmq_tf.policy.seen_embeddings import CAPACITY


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_drawn_decisions_have_the_documented_form(groups):
    policy = make(groups)
    z = embeddings(13)
    decision = numpy(policy(z, training=True))
    assert decision["activations"].shape == (13, 2, FIELDS)
    assert decision["weights"].shape == (groups, 3, FIELDS)
    assert decision["order"].shape == ((0,) if groups == 1 else (13,))
    spec = policy.compute_output_spec(keras.KerasTensor((None, SIZE)))
    for key, value in decision.items():
        assert str(value.dtype) == spec[key].dtype
        assert len(value.shape) == len(spec[key].shape)
    for table, candidates in (("activations", ACTIVATIONS), ("weights", WEIGHTS)):
        for point, allowed in enumerate(candidates):
            for field in (EXECUTED, LOW, HIGH):
                assert set(decision[table][:, point, field]) <= set(allowed)
            low, high, mean = (decision[table][:, point, f] for f in (LOW, HIGH, MEAN))
            assert np.all((low <= mean) & (mean <= high))
            slope = decision[table][:, point, SLOPE]
            assert np.all(np.isfinite(slope) & (slope >= 0))
            if len(allowed) == 1:
                assert np.all(slope == 0)


@pytest.mark.parametrize("groups,batch,expected", [
    (2, 8, [4, 4]), (2, 9, [4, 5]), (3, 8, [2, 2, 4]), (4, 4, [1, 1, 1, 1]), (1, 5, [5]),
])  # fmt: skip
def test_a_batch_is_sorted_by_score_and_cut_into_equal_groups(groups, batch, expected):
    policy = make(groups)
    z = embeddings(batch)
    decision = numpy(policy(z, training=True))
    if groups > 1:
        assert sorted(decision["order"]) == list(range(batch))
        np.testing.assert_array_equal(decision["embedding"], z[decision["order"]])
        assert np.all(np.diff(policy.score(decision["embedding"])) >= 0)
    assert np.all(np.diff(decision["group"]) >= 0)
    np.testing.assert_array_equal(np.bincount(decision["group"], minlength=groups), expected)
    for g, row in enumerate(decision["weights"]):
        middle = decision["embedding"][decision["group"] == g].mean(0, keepdims=True)
        np.testing.assert_allclose(row[:, MEAN], policy.means(middle)[0, 2:], rtol=1e-5)


def test_sorting_equal_scores_keeps_every_sample():
    decision = numpy(make(3)(np.zeros((7, SIZE), "float32"), training=True))
    assert sorted(decision["order"]) == list(range(7))


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_batch_may_have_fewer_samples_than_groups(groups, batch):
    policy = make(groups)
    decision = numpy(policy(embeddings(batch), training=True))
    assert decision["weights"].shape[0] == groups
    assert np.all(np.isfinite(decision["weights"])) and np.all(np.isfinite(decision["activations"]))
    assert decision["group"].max() < groups
    assert set(decision["order"]) == set(range(batch))
    assert np.all(np.isfinite(policy.seen.values()))


def test_score_is_the_mean_number_of_bits_above_the_static_mean():
    policy = make(spread=0.1)
    z = embeddings(20)
    policy.mean.assign([5.0, 5.0, 5.0, 6.0, 8.0])
    direction = ops.convert_to_numpy(policy.direction)
    np.testing.assert_allclose(policy.score(z), (z @ direction.T).mean(1), rtol=1e-4, atol=1e-6)


def test_means_stay_in_the_range_and_their_gradient_comes_back():
    policy = make(spread=10.0)
    z = embeddings(50)
    with tf.GradientTape() as tape:
        means = policy.means(z)
        loss = ops.sum(means)
    for point, allowed in enumerate(ACTIVATIONS + WEIGHTS):
        assert np.min(means[:, point]) >= allowed[0] - 1e-5
        assert np.max(means[:, point]) <= allowed[-1] + 1e-5
    np.testing.assert_allclose(tape.gradient(loss, policy.mean.value), np.full(5, 50.0))


def test_draws_follow_the_distributions_and_differ_each_time():
    policy = make(groups=1, spread=0.0, initial_sigma=1.0)
    policy.mean.assign([4.4, 4.0, 5.0, 6.0, 8.0])
    z = np.zeros((5000, SIZE), "float32")
    bits = numpy(policy(z, training=True))["activations"][..., EXECUTED]
    assert np.any(bits != numpy(policy(z, training=True))["activations"][..., EXECUTED])
    p = np.exp(policy.log_probabilities(policy.means(z[:1])))[0]
    for point in range(2):
        seen = np.array([(bits[:, point] == b).mean() for b in policy.bit_widths])
        np.testing.assert_allclose(seen, p[point], atol=0.03)


def test_a_narrower_temperature_draws_nearer_to_the_mean():
    policy = make(groups=1, spread=0.0, initial_sigma=1.0)
    policy.mean.assign([4.4, 4.0, 5.0, 6.0, 8.0])
    z = np.zeros((500, SIZE), "float32")
    wide = numpy(policy(z, training=True))["activations"][:, 0, EXECUTED]
    policy.temperature.assign(0.2)
    narrow = numpy(policy(z, training=True))["activations"][:, 0, EXECUTED]
    assert narrow.std() < 0.5 * wide.std()


def test_pathwise_gradient_is_unbiased_for_a_quadratic_loss_between_two_neighbors():
    # The loss depends on the executed bits only. The mean gets its difference between neighbors.
    policy = BitWidthPolicy([(4, 5)], [(8,)], groups=1, initial_sigma=0.6)
    policy.build((None, SIZE))
    policy.mean.assign([4.4, 8.0])
    count = 4000
    fields = numpy(policy(np.zeros((count, SIZE), "float32"), training=True))["activations"][:, 0]
    output = fields[:, EXECUTED]  # as if Q_b(x) = b
    upstream = 2 * (output - 3.0)
    gradient = upstream * fields[:, SLOPE] * (fields[:, HIGH] - fields[:, LOW])
    assert gradient.mean() == pytest.approx((5 - 3) ** 2 - (4 - 3) ** 2, rel=0.05)


def test_the_mean_of_a_decision_carries_gradients_to_policy_and_embedding():
    policy = make()
    z = tf.constant(embeddings(8) * 0.1)
    parameters = [policy.mean.value, policy.direction.value]

    def gradients():
        with tf.GradientTape() as tape:
            tape.watch(z)
            decision = policy(z, training=True)
            loss = ops.sum(decision["activations"][..., MEAN]) + ops.sum(
                decision["weights"][..., MEAN]
            )
        return tape.gradient(loss, [z, *parameters])

    policy.curvature = False
    assert all(g is not None and np.any(g != 0) for g in gradients())
    policy.pathwise = False
    assert all(g is None or np.all(tf.convert_to_tensor(g) == 0) for g in gradients())


def test_with_curvature_the_differences_between_samples_have_a_gradient_of_their_own():
    policy = make()
    z = tf.constant(embeddings(256))

    def gradients(*names):
        with tf.GradientTape() as tape:
            activations = policy(z, training=True)["activations"]
            # The contrasts grow with the first entry of the embedding.
            loss = ops.sum(activations[..., MEAN] * activations[..., SLOPE] * ops.exp(z[:, :1]))
        return tape.gradient(loss, [getattr(policy, name).value for name in names])

    mean, direction = gradients("mean", "direction")
    count = policy.activation_count
    assert np.any(mean[:count] != 0) and np.any(direction[:count] != 0)
    # Samples with larger contrasts get more bits. What all have in common moves only the mean.
    assert np.sum(direction[:count, 0]) < 0
    policy.pathwise = False
    mean, direction = gradients("mean", "direction")
    assert mean is None or np.all(mean == 0)
    assert np.any(direction != 0)


@pytest.mark.parametrize("curvature", [False, True])
def test_draws_have_a_gradient_only_through_the_mean(curvature):
    policy = make()
    policy.curvature = curvature
    z = tf.constant(embeddings(8))

    def gradient(weight):
        with tf.GradientTape() as tape:
            tape.watch(z)
            decision = policy(z, training=True)
            draws = [decision[name][..., :MEAN] for name in ("activations", "weights")]
            loss = weight * sum(ops.sum(draw) for draw in draws)
        dz = tape.gradient(loss, z)
        return np.zeros_like(z) if dz is None else np.asarray(tf.convert_to_tensor(dz))

    # The pull towards the static bits does not depend on the loss. It exists only with curvature.
    np.testing.assert_array_equal(gradient(1.0), gradient(0.0))
    assert gradient(0.0).any() == curvature


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("batch", [3, 64, 700])
def test_seen_embeddings_are_a_fair_sample_of_the_batches(groups, batch):
    policy = make(groups)
    assert len(policy.seen.values()) == 0
    draw = tf.function(lambda z: policy(z, training=True)["group"])
    for step in range(30):
        draw(tf.constant(embeddings(batch, step)))
    seen = policy.seen.values()
    assert seen.shape == (CAPACITY, SIZE) or len(seen) == 30 * batch
    everything = np.concatenate([embeddings(batch, step) for step in range(30)])
    assert {tuple(row) for row in seen} <= {tuple(row) for row in everything}
    if batch >= 64:
        score, expected = (ops.convert_to_numpy(policy.score(x)) for x in (seen, everything))
        np.testing.assert_allclose(
            np.quantile(score, [0.1, 0.5, 0.9]), np.quantile(expected, [0.1, 0.5, 0.9]), atol=0.15
        )


def test_inference_changes_no_variable():
    policy = make()
    before = policy.get_weights()
    policy(embeddings(8))
    for a, b in zip(before, policy.get_weights()):
        np.testing.assert_array_equal(a, b)


def test_baseline_does_not_train_the_embedding():
    policy = make()
    policy.baseline_direction.assign(np.ones(SIZE))
    z = tf.constant(embeddings(5))
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = policy.baseline(z)
    np.testing.assert_allclose(value, np.sum(z, axis=1), rtol=1e-5)
    assert tape.gradient(value, z) is None


@pytest.mark.parametrize("how", ["graph", "jit"])
@pytest.mark.parametrize("training", [False, True])
def test_policy_runs_in_compiled_functions(how, training):
    policy = make(2)

    @tf.function(jit_compile=how == "jit")
    def run(z):
        return policy(z, training=training)

    decision = numpy(run(tf.constant(embeddings(8))))
    assert np.all(np.isfinite(decision["activations"]))
    assert set(decision["activations"][:, 1, 0]) <= {2, 4, 8}


def test_batch_size_may_be_unknown():
    policy = make(2)

    @tf.function(input_signature=[tf.TensorSpec((None, SIZE))])
    def run(z):
        return policy(z, training=True)

    for batch in (8, 5, 2, 1):
        assert run(embeddings(batch))["group"].shape[0] in (batch, 2)


def test_a_policy_may_have_weights_only():
    policy = BitWidthPolicy([], WEIGHTS, groups=2)
    z = embeddings(6)
    for training in (True, False):
        decision = numpy(policy(z, training=training))
        assert decision["activations"].shape[:2] == (6, 0)
    policy.phase = FROZEN
    assert numpy(policy(z))["activations"].shape[1] == 0


@pytest.mark.parametrize("activations, groups", [([], 1), ([], 2), (ACTIVATIONS, 1)])
def test_static_bits_do_not_follow_the_mean_embedding(activations, groups):
    policy = BitWidthPolicy(activations, WEIGHTS, groups=groups)
    policy.build((None, SIZE))
    policy.direction.assign(np.random.default_rng(0).normal(size=policy.direction.shape))
    z = embeddings(6) + 0.5
    policy.set_groups(np.zeros(groups - 1), np.tile(z.mean(axis=0), (groups, 1)))
    means = ops.convert_to_numpy(policy.group_means(z))
    moved = np.abs(means - ops.convert_to_numpy(policy.mean)).max() > 0.1
    followed = bool(activations) or groups > 1
    assert moved == followed
    bits = numpy(policy(z))["weights"][0, :, 0]
    nearest = [min(c, key=lambda b, m=m: (abs(b - m), b)) for c, m in zip(
        WEIGHTS, ops.convert_to_numpy(policy.mean)[len(activations) :]
    )]  # fmt: skip
    assert (list(bits) != nearest) == followed


def test_learned_means_and_widths_stay_within_their_bounds():
    policy = make()
    optimizer = keras.optimizers.SGD(100.0)
    variables = policy.trainable_variables
    optimizer.build(variables)
    optimizer.apply([ops.ones_like(v) for v in variables], variables)
    means = ops.convert_to_numpy(policy.mean)
    assert list(means) == [2, 2, 2, 4, 8]
    np.testing.assert_allclose(np.exp(policy.log_sigma), 0.1, rtol=1e-5)


def test_policy_can_be_saved_and_loaded(tmp_path):
    z = keras.Input((SIZE,))
    policy = BitWidthPolicy(ACTIVATIONS, WEIGHTS, groups=2, initial_sigma=0.5, seed=3)
    model = keras.Model(z, policy(z))
    for seed in range(3):
        policy(embeddings(16, seed), training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    restored, original = (numpy(m(embeddings(9))) for m in (loaded, model))
    for key in original:
        np.testing.assert_array_equal(restored[key], original[key])
    copy = BitWidthPolicy.from_config(policy.get_config())
    assert (copy.activation_candidates, copy.weight_candidates, copy.groups) == (
        ACTIVATIONS,
        WEIGHTS,
        2,
    )
    assert (copy.initial_sigma, copy.seed) == (0.5, 3)
