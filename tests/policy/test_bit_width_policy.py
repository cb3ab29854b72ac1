"""What the policy draws and what its draws learn from."""

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
    found = numpy(policy(z, training=True))
    assert found["activations"].shape == (13, 2, FIELDS)
    assert found["weights"].shape == (groups, 3, FIELDS)
    assert found["order"].shape == ((0,) if groups == 1 else (13,))
    spec = policy.compute_output_spec(keras.KerasTensor((None, SIZE)))
    for key, value in found.items():
        assert str(value.dtype) == spec[key].dtype
        assert len(value.shape) == len(spec[key].shape)
    for table, candidates in (("activations", ACTIVATIONS), ("weights", WEIGHTS)):
        for point, allowed in enumerate(candidates):
            for field in (EXECUTED, LOW, HIGH):
                assert set(found[table][:, point, field]) <= set(allowed)
            low, high, mean = (found[table][:, point, f] for f in (LOW, HIGH, MEAN))
            assert np.all((low <= mean) & (mean <= high))
            slope = found[table][:, point, SLOPE]
            assert np.all(np.isfinite(slope) & (slope >= 0))
            if len(allowed) == 1:
                assert np.all(slope == 0)


@pytest.mark.parametrize("groups,batch,expected", [
    (2, 8, [4, 4]), (2, 9, [4, 5]), (3, 8, [2, 2, 4]), (4, 4, [1, 1, 1, 1]), (1, 5, [5]),
])  # fmt: skip
def test_a_batch_is_sorted_by_score_and_cut_into_equal_groups(groups, batch, expected):
    policy = make(groups)
    z = embeddings(batch)
    found = numpy(policy(z, training=True))
    if groups > 1:
        assert sorted(found["order"]) == list(range(batch))
        np.testing.assert_array_equal(found["embedding"], z[found["order"]])
        assert np.all(np.diff(policy.score(found["embedding"])) >= 0)
    assert np.all(np.diff(found["group"]) >= 0)
    np.testing.assert_array_equal(np.bincount(found["group"], minlength=groups), expected)
    for g, row in enumerate(found["weights"]):
        middle = found["embedding"][found["group"] == g].mean(0, keepdims=True)
        np.testing.assert_allclose(row[:, MEAN], policy.means(middle)[0, 2:], rtol=1e-5)


def test_equal_scores_are_sorted_without_loss():
    found = numpy(make(3)(np.zeros((7, SIZE), "float32"), training=True))
    assert sorted(found["order"]) == list(range(7))


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches_smaller_than_the_groups_are_drawn_too(groups, batch):
    policy = make(groups)
    found = numpy(policy(embeddings(batch), training=True))
    assert found["weights"].shape[0] == groups
    assert np.all(np.isfinite(found["weights"])) and np.all(np.isfinite(found["activations"]))
    assert found["group"].max() < groups
    assert set(found["order"]) == set(range(batch))
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


def test_pathwise_gradient_is_unbiased_for_a_quadratic_loss_between_two_neighbours():
    # The loss sees the executed bits only; its difference over the pair is what the mean gets.
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
            found = policy(z, training=True)
            loss = ops.sum(found["activations"][..., MEAN]) + ops.sum(found["weights"][..., MEAN])
        return tape.gradient(loss, [z, *parameters])

    policy.curvature = False
    assert all(g is not None and np.any(g != 0) for g in gradients())
    policy.pathwise = False
    assert all(g is None or np.all(tf.convert_to_tensor(g) == 0) for g in gradients())


def test_with_curvature_how_activation_bits_differ_is_its_own():
    policy = make()
    z = tf.constant(embeddings(256))

    def gradients(*names):
        with tf.GradientTape() as tape:
            found = policy(z, training=True)["activations"]
            # Contrasts that grow with an entry of the embedding.
            loss = ops.sum(found[..., MEAN] * found[..., SLOPE] * ops.exp(z[:, :1]))
        return tape.gradient(loss, [getattr(policy, name).value for name in names])

    mean, direction = gradients("mean", "direction")
    count = policy.activation_count
    assert np.any(mean[:count] != 0) and np.any(direction[:count] != 0)
    # What grows with it gets more bits; what all have in common moves the mean alone.
    assert np.sum(direction[:count, 0]) < 0
    policy.pathwise = False
    mean, again = gradients("mean", "direction")
    assert mean is None or np.all(mean == 0)
    assert np.any(again != 0)


@pytest.mark.parametrize("curvature", [False, True])
def test_draws_carry_no_gradient_but_through_the_mean(curvature):
    policy = make()
    policy.curvature = curvature
    z = tf.constant(embeddings(8))

    def gradient(weight):
        with tf.GradientTape() as tape:
            tape.watch(z)
            found = policy(z, training=True)
            draws = [found[name][..., :MEAN] for name in ("activations", "weights")]
            loss = weight * sum(ops.sum(draw) for draw in draws)
        found = tape.gradient(loss, z)
        return np.zeros_like(z) if found is None else np.asarray(tf.convert_to_tensor(found))

    # The pull back to the static bits is there whatever the loss, and with curvature alone.
    np.testing.assert_array_equal(gradient(1.0), gradient(0.0))
    assert gradient(0.0).any() == curvature


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("batch", [3, 64, 700])
def test_what_was_observed_is_a_fair_sample_of_the_batches(groups, batch):
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


def test_inference_observes_nothing():
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

    found = numpy(run(tf.constant(embeddings(8))))
    assert np.all(np.isfinite(found["activations"]))
    assert set(found["activations"][:, 1, 0]) <= {2, 4, 8}


def test_batch_size_may_be_unknown():
    policy = make(2)

    @tf.function(input_signature=[tf.TensorSpec((None, SIZE))])
    def run(z):
        return policy(z, training=True)

    for batch in (8, 5, 2, 1):
        assert run(embeddings(batch))["group"].shape[0] in (batch, 2)


def test_a_policy_of_weights_alone():
    policy = BitWidthPolicy([], WEIGHTS, groups=2)
    z = embeddings(6)
    for training in (True, False):
        found = numpy(policy(z, training=training))
        assert found["activations"].shape[:2] == (6, 0)
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


def test_policy_learns_within_its_constraints():
    policy = make()
    optimizer = keras.optimizers.SGD(100.0)
    variables = policy.trainable_variables
    optimizer.build(variables)
    optimizer.apply([ops.ones_like(v) for v in variables], variables)
    means = ops.convert_to_numpy(policy.mean)
    assert list(means) == [2, 2, 2, 4, 8]
    np.testing.assert_allclose(np.exp(policy.log_sigma), 0.1, rtol=1e-5)


def test_config_and_weights_go_around(tmp_path):
    z = keras.Input((SIZE,))
    policy = BitWidthPolicy(ACTIVATIONS, WEIGHTS, groups=2, initial_sigma=0.5, seed=3)
    model = keras.Model(z, policy(z))
    for seed in range(3):
        policy(embeddings(16, seed), training=True)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    found, wanted = (numpy(m(embeddings(9))) for m in (again, model))
    for key in wanted:
        np.testing.assert_array_equal(found[key], wanted[key])
    copy = BitWidthPolicy.from_config(policy.get_config())
    assert (copy.activation_candidates, copy.weight_candidates, copy.groups) == (
        ACTIVATIONS,
        WEIGHTS,
        2,
    )
    assert (copy.initial_sigma, copy.seed) == (0.5, 3)
