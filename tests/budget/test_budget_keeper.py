"""Bits that are fixed keep the budget of the real file, whatever became of the weights since."""

import keras
import numpy as np
import pytest
from helpers.small_networks import compiled, images, network

import dqmq_tf
from dqmq_tf.flatbuffer import bit_packing

BYTES = 6_000


def fill(qmodel, exponent):
    """Fills the kernels with numbers that deflate makes the more of, the larger the exponent."""
    random = np.random.default_rng(1)
    for wrapper in qmodel._parts.wrappers.values():
        kernel = wrapper.layer.kernel
        drawn = random.uniform(-1, 1, kernel.shape)
        kernel.assign(0.2 * np.sign(drawn) * np.abs(drawn) ** exponent)


def file_bytes(qmodel, folder):
    report = dqmq_tf.convert(qmodel, folder / "m.tflite", data=images(), verify=False)
    return report.download_bytes


@pytest.fixture
def settled():
    budget = dqmq_tf.Budget(download_bytes=BYTES)
    qmodel = dqmq_tf.quantize_model(network(), target="android", budget=budget)
    fill(qmodel, 4.0)
    qmodel.calibrate(images())
    qmodel._training.settle()
    return qmodel


@pytest.mark.parametrize("kind, most", [("download_bytes", BYTES), ("size_bytes", 9_000)])
def test_a_search_begins_at_the_bits_of_a_file(kind, most):
    budget = dqmq_tf.Budget(**{kind: most})
    qmodel = dqmq_tf.quantize_model(network(), target="android_small", budget=budget)
    compiled(qmodel)
    qmodel.calibrate(images())
    # What a file takes beside its weights is seen in one.
    qmodel._parts.policy.file_constant = 0.6 * most
    qmodel._training.begin(100)
    means = qmodel._parts.policy.mean.numpy()
    assert 0.9 * most <= qmodel._parts.costs.of_file(means, []) <= most
    assert (means == means.round()).all()
    qmodel._training.settle()
    assert (qmodel._parts.policy.assigned.numpy()[0] >= means).all()
    # A search that has begun goes on where it is.
    qmodel._parts.policy.mean.assign(means - 1)
    qmodel._parts.policy.search_step.assign(3.0)
    qmodel._training.begin(100)
    np.testing.assert_array_equal(qmodel._parts.policy.mean.numpy(), means - 1)


def test_settled_bits_use_the_budget_of_the_file(settled, tmp_path):
    assert 0.95 * BYTES <= file_bytes(settled.freeze(), tmp_path) <= BYTES


def test_weights_that_compress_worse_lose_bits(settled, tmp_path):
    before = settled._parts.policy.assigned.numpy()[0]
    fill(settled, 1.0)
    settled._training.keep_budget()
    after = settled._parts.policy.assigned.numpy()[0]
    assert (after <= before).all() and (after < before).any()
    settled.freeze()
    np.testing.assert_array_equal(settled._parts.policy.assigned.numpy()[0], after)
    assert file_bytes(settled, tmp_path) <= BYTES


def test_so_they_do_when_they_are_only_frozen(settled, tmp_path):
    before = settled._parts.policy.assigned.numpy()[0]
    fill(settled, 1.0)
    # What the network was trained at counts, not what the policy would choose by now.
    settled._parts.policy.mean.assign([2.0, 8.0, 8.0, 2.0])
    settled.freeze()
    after = settled._parts.policy.assigned.numpy()[0]
    assert (after <= before).all() and (after >= before - 2).all() and (after < before).any()
    assert file_bytes(settled, tmp_path) <= BYTES


def test_bits_of_a_kept_budget_stay(settled):
    before = settled._parts.policy.assigned.numpy()
    settled._training.keep_budget()
    np.testing.assert_array_equal(settled._parts.policy.assigned.numpy(), before)


def test_kernels_lie_in_a_file_as_they_are_weighed(settled, tmp_path):
    file_bytes(settled.freeze(), tmp_path)
    file = (tmp_path / "m.tflite").read_bytes()
    bits, costs = settled._parts.policy.assigned.numpy()[0].astype(int), settled._parts.costs
    stored = [kernel.stored for kernel in costs.bytes.compressed(bits)]
    assert len(stored) == len(costs.weights)
    assert all(data in file for data in stored)
    assert sorted(stored, key=file.find) == sorted(
        stored, key=bit_packing.byte_entropy, reverse=True
    )


def test_operations_are_brought_back_when_the_encoder_has_moved():
    budget = dqmq_tf.Budget(mean_bit_width=4.5)
    qmodel = dqmq_tf.quantize_model(network(), target="simulation", budget=budget)
    directions = np.random.default_rng(3).normal(0, 0.3, qmodel._parts.policy.direction.shape)
    qmodel._parts.policy.direction.assign(directions)
    qmodel.calibrate(images())
    embeddings = keras.ops.convert_to_numpy(qmodel._parts.encoder(images()))
    qmodel._parts.policy(embeddings, training=True)
    qmodel._training.settle()

    def cost():
        found = qmodel._parts.policy(qmodel._parts.policy.seen.values(), training=False)
        weights = found["weights"].numpy()[:, :, 0]
        return qmodel._parts.costs.exact(weights, found["activations"].numpy()[..., 0])

    assert 4.3 <= cost() <= 4.5
    qmodel._parts.policy.direction.assign(-2.0 * directions)
    assert not 4.3 <= cost() <= 4.5
    qmodel._training.keep_budget()
    assert 4.3 <= cost() <= 4.5


def test_step_sizes_follow_the_weights_where_no_bits_are_fixed(settled):
    policy, points = settled._parts.policy, settled._parts.costs.weights
    bits = policy.assigned.numpy()[0, policy.activation_count :].astype(int)
    wrappers = [settled._parts.wrappers[point.path] for point in points]

    def steps():
        return [
            {b: wrapper.step(point.variable, b) for b in point.bit_widths}
            for wrapper, point in zip(wrappers, points)
        ]

    for wrapper in wrappers:
        wrapper.fit_steps()
    before = steps()
    settled._training.measure()
    for found, expected in zip(steps(), before):
        np.testing.assert_equal(found, expected)
    for wrapper, point in zip(wrappers, points):
        kernel = wrapper.kernel(point.variable)
        kernel.assign(10 * kernel)
    settled._training.measure()
    for found, expected, fixed in zip(steps(), before, bits):
        for b, step in found.items():
            factor = 1 if b == fixed else 10
            np.testing.assert_allclose(step, factor * expected[b], rtol=1e-4)
    policy.phase = "search"
    kernel.assign(0.01 * kernel)
    settled._training.measure()
    for b, step in steps()[-1].items():
        np.testing.assert_allclose(step, 0.1 * before[-1][b], rtol=1e-4)
