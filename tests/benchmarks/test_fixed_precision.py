"""The baselines PACT and DoReFa at fixed bits: their quantizers and their training."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_networks import compiled, training_data
from hypothesis import given, settings
from hypothesis import strategies as st
from study import assignments, fixed_precision

from dqmq_tf import quality

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
RESNET = SHARED / "models" / "mlperf_tiny" / "pretrainedResnet.h5"
CIFAR = SHARED / "data" / "tfds"

BITS = st.integers(2, 8)
arrays = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).normal(size=(3, 3, 4, 6)).astype("float32")
)
alphas = st.floats(0.0625, 20.0, width=32)


@pytest.fixture(scope="module")
def costs(float_network):
    return assignments.cost_model(float_network)


@pytest.fixture(scope="module")
def quantize(float_network, costs, clean_images):
    def build(method, weight_bits, activation_bits):
        bits = assignments.uniform(costs, weight_bits, activation_bits)
        return fixed_precision.quantized(float_network, costs, bits, method, clean_images[0])

    return build


@settings(max_examples=40, deadline=None)
@given(x=arrays, alpha=alphas, bits=BITS, signed=st.booleans())
def test_a_clip_has_a_level_at_zero_and_at_most_two_to_the_bits_levels(x, alpha, bits, signed):
    y = fixed_precision.learned_clip(x * alpha, alpha, bits, signed).numpy()
    levels = np.unique(np.append(y, 0.0))
    assert len(levels) <= 2**bits
    step = alpha * (2 if signed else 1) / (2**bits - 1)
    np.testing.assert_allclose(levels / step, np.round(levels / step), atol=1e-2)
    # Inside the range no value is off by more than half a step.
    inside = (x * alpha > (-alpha + step if signed else 0)) & (x * alpha < alpha - step)
    assert np.all(np.abs(y - x * alpha)[inside] <= step / 2 * (1 + 1e-3))


@settings(max_examples=40, deadline=None)
@given(x=arrays, alpha=alphas, bits=BITS, signed=st.booleans())
def test_a_clip_does_not_change_values_that_are_quantized_already(x, alpha, bits, signed):
    once = fixed_precision.learned_clip(x * alpha, alpha, bits, signed)
    twice = fixed_precision.learned_clip(once, alpha, bits, signed)
    np.testing.assert_allclose(twice, once, atol=1e-5 * alpha)


@settings(max_examples=40, deadline=None)
@given(x=arrays, alpha=alphas, bits=BITS)
def test_the_gradients_of_a_clip_are_those_of_the_pact_paper(x, alpha, bits):
    x = tf.constant(x * alpha)
    alpha = tf.constant(alpha)
    upstream = tf.random.stateless_normal(x.shape, seed=(0, bits))
    with tf.GradientTape() as tape:
        tape.watch([x, alpha])
        y = fixed_precision.learned_clip(x, alpha, bits, signed=False)
    to_x, to_alpha = tape.gradient(y, [x, alpha], upstream)
    above = x.numpy() >= alpha.numpy()
    np.testing.assert_allclose(to_alpha, upstream.numpy()[above].sum(), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(to_x, np.where(above | (x.numpy() < 0), 0.0, upstream))


def test_values_beyond_either_end_widen_a_signed_clip():
    alpha = tf.constant(1.0)
    for x, slope in ((5.0, 1.0), (-5.0, -1.0), (0.3, 0.0)):
        with tf.GradientTape() as tape:
            tape.watch(alpha)
            y = fixed_precision.learned_clip(tf.constant([x]), alpha, 4, signed=True)
        assert tape.gradient(y, alpha).numpy() == slope


@settings(max_examples=40, deadline=None)
@given(latent=arrays, bits=BITS, per_channel=st.booleans())
def test_dorefa_weights_are_on_the_levels_of_the_paper(latent, bits, per_channel):
    axes = (0, 1, 2) if per_channel else (0, 1, 2, 3)
    y = fixed_precision.dorefa_weights(tf.constant(latent), bits, axes).numpy()
    squashed = np.tanh(latent)
    exact = squashed / np.abs(squashed).max(axes, keepdims=True)
    integers = (y + 1) / 2 * (2**bits - 1)
    np.testing.assert_allclose(integers, np.round(integers), atol=1e-3)
    assert np.abs(y).max() <= 1 + 1e-6
    assert np.all(np.abs(y - exact) <= 1 / (2**bits - 1) + 1e-5)


@settings(max_examples=20, deadline=None)
@given(weights=arrays, scale=st.floats(1e-3, 5.0))
def test_latent_weights_represent_the_original_weights(weights, scale):
    weights = np.float32(weights * scale)
    latent = tf.constant(fixed_precision.latent_weights(weights, (0, 1, 2)))
    largest = np.abs(weights).max((0, 1, 2), keepdims=True)
    y = fixed_precision.dorefa_weights(latent, 16, (0, 1, 2)).numpy() * largest
    np.testing.assert_allclose(y, weights, atol=2e-4 * largest.max())


@pytest.mark.parametrize("values", [np.array([0.0, 0.0]), np.array([-3.0, 2.0, 1.0])])
def test_the_limit_with_the_least_error_is_positive_and_at_most_the_largest_value(values):
    limit = fixed_precision.least_error_limit(values.astype("float32"), 4)
    assert 0 < limit <= max(1.0, np.abs(values).max())


@pytest.mark.parametrize("method", fixed_precision.METHODS)
def test_activations_and_kernels_have_the_assigned_bits(quantize, clean_images, method):
    model = quantize(method, 2, 3)
    clips = {layer.name: layer for layer in model.layers if layer.name.endswith("_clip")}
    assert {name: clip.bits for name, clip in clips.items()} == {
        "image_clip": 8, "relu_0_clip": 3, "relu_1_clip": 3, "pool_clip": 8
    }  # fmt: skip
    tensors = keras.Model(model.input, {n: clip.output for n, clip in clips.items()})
    for name, y in tensors.predict(clean_images[0], verbose=0).items():
        assert len(np.unique(y)) <= 2 ** clips[name].bits
    for name, bits in (("conv_0", 8), ("conv_1", 2), ("conv_2", 2), ("classes", 8)):
        kernel = model.get_layer(name).quantized_kernel("kernel").numpy()
        for channel in kernel.reshape(-1, kernel.shape[-1]).T:
            assert len(np.unique(channel)) <= 2**bits


@pytest.mark.parametrize("method", fixed_precision.METHODS)
def test_training_lowers_the_loss_and_does_not_change_the_float_network(
    quantize, float_network, clean_images, method
):
    images, labels = clean_images
    before, answers = float_network.get_weights(), float_network.predict(images, verbose=0)
    model = compiled(quantize(method, 3, 3), 1e-3)
    start = model.evaluate(images, labels, verbose=0)[0]
    clips = {x.name: x.alpha for x in model.layers if isinstance(x, fixed_precision.Clip)}
    means = model.get_layer("norm_1").moving_mean.numpy()
    model.fit(training_data(repeat=1), verbose=0)
    assert model.evaluate(images, labels, verbose=0)[0] < start
    assert np.abs(model.get_layer("norm_1").moving_mean.numpy() - means).max() > 0
    trained = {name for name, alpha in clips.items() if model.get_layer(name).alpha != alpha}
    # Both methods keep the clip of the input image fixed.
    assert trained == (set(clips) - {"image_clip"} if method == "pact" else set())
    for old, new in zip(before, float_network.get_weights()):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(float_network.predict(images, verbose=0), answers)


def test_the_weight_decay_of_alpha_is_part_of_the_loss(quantize):
    model = quantize("pact", 4, 4)
    clips = [x for x in model.layers if isinstance(x, fixed_precision.Clip)]
    alphas = [clip.alpha for clip in clips if clip.scale is not None]
    assert len(alphas) == 3
    decay = sum(float(loss) for loss in model.losses)
    np.testing.assert_allclose(decay, 1e-4 * sum(a**2 for a in alphas), rtol=1e-5)


def test_an_unknown_method_or_a_point_without_bits_is_an_error(float_network, costs, clean_images):
    with pytest.raises(ValueError, match="'lsq'"):
        fixed_precision.quantized(float_network, costs, {}, "lsq", clean_images[0])
    with pytest.raises(ValueError, match="no entry for 'image'"):
        fixed_precision.quantized(float_network, costs, {}, "pact", clean_images[0])


@pytest.mark.skipif(not RESNET.exists(), reason=f"no {RESNET}")
@pytest.mark.skipif(not (CIFAR / "cifar10").is_dir(), reason=f"no prepared CIFAR-10 in {CIFAR}")
@pytest.mark.parametrize("method", fixed_precision.METHODS)
def test_resnet8_at_8_bits_predicts_what_it_predicts_in_float(method):
    model = keras.models.load_model(RESNET, compile=False)
    data, _ = quality.load("cifar10", split="test[:600]", data_dir=str(CIFAR))
    images = np.float32(next(iter(data.batch(600)))[0])
    costs = assignments.cost_model(model)
    bits = assignments.uniform(costs, 8, 8)
    baseline = fixed_precision.quantized(model, costs, bits, method, images[:100])
    answers = [m.predict(images[100:], verbose=0).argmax(-1) for m in (model, baseline)]
    assert np.mean(answers[0] == answers[1]) >= 0.97
