"""The decisions of the policy that are not drawn: at inference, and once bits are settled."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.small_policies import ACTIVATIONS, WEIGHTS, embeddings, make, numpy, prepared
from keras import ops

from dqmq_tf.policy.policy_state import FROZEN, SETTLED


@pytest.mark.parametrize("phase", [None, SETTLED, FROZEN])
@pytest.mark.parametrize("profiles", [1, 3])
def test_inference_on_a_sample_does_not_depend_on_its_batch(phase, profiles):
    policy = prepared(phase, profiles, groups=profiles)
    z = embeddings(30)
    together = numpy(policy(z, training=False))
    assert together["order"].shape == (0,)
    for row in (0, 7, 29):
        alone = numpy(policy(z[row : row + 1], training=False))
        np.testing.assert_array_equal(
            alone["activations"][0], np.broadcast_to(together["activations"], (30, 2, 1))[row]
            if together["activations"].shape[0] == 1 else together["activations"][row],
        )  # fmt: skip
        assert alone["group"][0] == together["group"][row]
        np.testing.assert_array_equal(alone["weights"], together["weights"])
    np.testing.assert_array_equal(numpy(policy(z))["activations"], together["activations"])


@pytest.mark.parametrize("phase", [None, SETTLED, FROZEN])
def test_samples_are_routed_by_the_thresholds_on_their_score(phase):
    policy = prepared(phase)
    z = embeddings(60)
    score = ops.convert_to_numpy(policy.score(z))
    expected = (score > -0.3).astype(int) + (score > 0.4)
    assert set(expected) == {0, 1, 2}
    np.testing.assert_array_equal(numpy(policy(z))["group"], expected)


def test_search_inference_takes_the_nearest_candidates():
    policy = prepared(None)
    z = embeddings(40)
    decision = numpy(policy(z))
    means = ops.convert_to_numpy(policy.means(z))
    at_groups = ops.convert_to_numpy(policy.means(policy.centroids[:3]))
    for table, rows, start, candidates in (
        ("activations", means, 0, ACTIVATIONS), ("weights", at_groups, 2, WEIGHTS),
    ):  # fmt: skip
        for point, allowed in enumerate(candidates):
            nearest = [
                min(allowed, key=lambda b, m=m: (abs(np.float32(b) - m), b))
                for m in rows[:, start + point]
            ]
            np.testing.assert_array_equal(decision[table][:, point, 0], nearest)


@pytest.mark.parametrize("training", [False, True])
def test_settled_weights_are_assigned_and_activations_follow_the_shifted_mean(training):
    policy = prepared(SETTLED)
    z = embeddings(40)
    decision = numpy(policy(z, training=training))
    np.testing.assert_array_equal(decision["weights"][..., 0], [[2, 4, 8], [3, 4, 8], [8, 8, 8]])
    bits = [decision["activations"][:, :, 0].mean()]
    for shift in (-2.0, 2.0):
        policy.shift.assign(shift)
        bits.append(numpy(policy(z, training=training))["activations"][:, :, 0].mean())
    assert bits[1] < bits[0] < bits[2]


@pytest.mark.parametrize("training", [False, True])
def test_frozen_bits_are_all_assigned(training):
    policy = prepared(FROZEN)
    z = embeddings(40)
    decision = numpy(policy(z, training=training))
    rows = np.array([[2, 2], [5, 4], [8, 8]])[decision["group"]]
    np.testing.assert_array_equal(decision["activations"][..., 0], rows)
    single = prepared(FROZEN, profiles=1)
    np.testing.assert_array_equal(numpy(single(z))["activations"], np.full((40, 2, 1), 2))
    assert set(numpy(single(z))["group"]) == {0}


@pytest.mark.parametrize("phase", [SETTLED, FROZEN])
def test_settled_samples_have_the_same_groups_in_training_and_inference(phase):
    policy = prepared(phase)
    z = embeddings(40)
    trained, inferred = numpy(policy(z, training=True)), numpy(policy(z))
    order = trained["order"] if len(trained["order"]) else np.arange(40)
    np.testing.assert_array_equal(trained["group"], inferred["group"][order])


def test_the_groups_of_inference_follow_the_groups_of_training():
    policy = make(2)
    draw = tf.function(lambda z: policy(z, training=True)["group"])
    for seed in range(60):
        draw(tf.constant(embeddings(64, seed)))
    group = numpy(policy(embeddings(1000, 99)))["group"]
    assert 0.4 < group.mean() < 0.6
    score = ops.convert_to_numpy(policy.score(policy.centroids[:2]))
    assert score[0] < score[1]
