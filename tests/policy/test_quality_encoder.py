import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from dqmq_tf import quality
from dqmq_tf.policy.quality_encoder import QualityEncoder


@pytest.fixture(scope="module")
def digits():
    """Returns 200 real images, float32, shape `[200, 32, 32, 3]`, values from 0 to 1."""
    images, _ = next(iter(quality.digits("train").batch(200)))
    return images.numpy().astype("float32") / 255.0


def calibrated(x, **kwargs):
    encoder = QualityEncoder(**kwargs)
    encoder(x)
    encoder.calibrate(x)
    return encoder


def degraded(digits):
    kinds = ("gaussian_noise", "gaussian_blur", "low_light")
    return [digits, *(np.array(quality.degrade(digits, kind, 3)) for kind in kinds)]


def probe(features, labels):
    """Returns the accuracy of a linear least-squares classifier on rows that it was not fitted on."""
    rows = np.random.default_rng(0).permutation(len(labels))
    features = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    train, test = rows[::2], rows[1::2]
    targets = np.eye(labels.max() + 1)[labels]
    weights, *_ = np.linalg.lstsq(features[train], targets[train], rcond=None)
    return np.mean((features[test] @ weights).argmax(1) == labels[test])


def test_embedding_separates_qualities_before_any_training(digits):
    keras.utils.set_random_seed(0)
    parts = degraded(digits)
    encoder = calibrated(np.concatenate(parts))
    clean, *others = (ops.convert_to_numpy(encoder(part)) for part in parts)
    assert clean.shape == (200, 8)
    assert np.all(np.abs(clean) < 1)
    # The digits have 8 x 8 pixels before resizing, so blur changes them little.
    for other, accuracy in zip(others, (0.97, 0.7, 0.97)):
        assert probe(np.concatenate([clean, other]), np.repeat([0, 1], 200)) > accuracy
    assert probe(np.concatenate([clean, *others]), np.repeat(np.arange(4), 200)) > 0.8


def test_embedding_moves_with_severity(digits):
    encoder = calibrated(np.concatenate(degraded(digits)))
    clean = np.mean(encoder(digits), axis=0)
    for kind in ("gaussian_noise", "gaussian_blur"):
        away = []
        for severity in (1, 3, 5):
            z = encoder(np.array(quality.degrade(digits, kind, severity)))
            away.append(np.linalg.norm(np.mean(z, axis=0) - clean))
        assert away[0] < away[1] < away[2]


def test_embedding_does_not_depend_on_the_scale_of_the_pixels(digits):
    small = calibrated(digits)
    large = QualityEncoder()
    large(digits)
    large.set_weights(small.get_weights())
    large.calibrate(digits * 255.0)
    np.testing.assert_allclose(large(digits * 255.0), small(digits), atol=2e-3)


def test_samples_are_encoded_one_by_one(digits):
    encoder = calibrated(digits)
    np.testing.assert_allclose(encoder(digits[:1])[0], encoder(digits[:16])[0], atol=1e-5)


def test_embedding_of_inputs_unlike_the_training_data_is_finite(digits):
    encoder = calibrated(digits)
    for image in (np.zeros((1, 32, 32, 3)), np.full((1, 32, 32, 3), 1e6), -1e6 * digits[:1]):
        z = ops.convert_to_numpy(encoder(image.astype("float32")))
        assert np.all(np.isfinite(z)) and np.all(np.abs(z) <= 1)
    flat = np.full((4, 8, 8, 1), 0.5, "float32")
    assert np.all(np.isfinite(calibrated(flat)(flat)))


@pytest.mark.parametrize(
    "shape", [(7,), (9, 3), (8, 6, 1), (8, 6, 3), (4, 5, 6, 2), (None,), (None, 3), (None, None, 3),
              (None, 5, 6, 2), (None, None, None, 2)],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_inputs_of_any_rank_known_or_not(shape, dtype):
    inputs = keras.Input(shape, dtype=dtype)
    encoder = QualityEncoder(size=5)
    model = keras.Model(inputs, encoder(inputs))
    assert model.output_shape == (None, 5)
    x = np.random.default_rng(0).integers(0, 99, (3, *[n or 6 for n in shape])).astype(dtype)
    encoder.calibrate(x)
    z = tf.function(model)(tf.constant(x))
    assert z.shape == (3, 5)
    assert np.all(np.isfinite(z))


def test_adapt_moves_the_normalization_towards_the_data(digits):
    encoder = calibrated(digits)
    dark = np.array(quality.degrade(digits, "low_light", 4))
    before = ops.convert_to_numpy(encoder.feature_mean).copy()
    target = calibrated(digits)
    target.set_weights(encoder.get_weights())
    scale = ops.convert_to_numpy(target.input_scale).copy()
    for _ in range(5):
        encoder.adapt(dark, momentum=0.5)
    np.testing.assert_array_equal(encoder.input_scale, scale)
    target.adapt(dark, momentum=0.0)
    goal = ops.convert_to_numpy(target.feature_mean)
    after = ops.convert_to_numpy(encoder.feature_mean)
    np.testing.assert_allclose(after - goal, (before - goal) / 32, atol=1e-4)


def test_encoder_learns(digits):
    encoder = calibrated(digits)
    with tf.GradientTape() as tape:
        loss = ops.sum(encoder(digits[:8])[:, 0])
    gradients = tape.gradient(loss, [v.value for v in encoder.trainable_variables])
    assert len(gradients) == 4
    assert all(np.any(g != 0) and np.all(np.isfinite(g)) for g in gradients)


@pytest.mark.parametrize(
    "shape", [(None, 32, 32, 3), (None, 224, 224, 3), (None, 28, 28, 1), (None, 16)]
)
def test_encoder_costs_at_most_a_fiftieth_of_the_model(shape):
    bit_ops = 50e6 * 64
    encoder = QualityEncoder.for_model(shape, bit_ops, 8)
    assert encoder.bit_operations(shape) <= 0.02 * bit_ops
    smallest = QualityEncoder.for_model(shape, 1, 4)
    assert (smallest.filters, smallest.stride) == (4, 16)


def test_multiply_accumulates_are_the_sum_over_its_layers():
    encoder = QualityEncoder(size=8, filters=4, stride=2)
    filters, dense = 5 * 4 * 9 * 3 * 4, 10 * 16 + 16 * 8
    assert encoder.multiply_accumulates((None, 9, 8, 3)) == filters + dense
    assert encoder.bit_operations((None, 9, 8, 3)) == 64 * (filters + dense)


def test_encoder_can_be_saved_and_loaded(digits, tmp_path):
    inputs = keras.Input((32, 32, 3))
    encoder = QualityEncoder(size=6, filters=4, stride=2)
    model = keras.Model(inputs, encoder(inputs))
    encoder.calibrate(digits)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(digits[:5]), model(digits[:5]))


@pytest.mark.parametrize("shape", [(), (6,), (6, 5), (3, 4, 5, 2)])
def test_inputs_of_any_rank_and_of_unknown_size_have_embeddings(shape):
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    encoder = calibrated(x, size=8, filters=8, stride=1)
    # As in a dataset of sequences that are padded to the longest of their batch.
    unknown = [None] * (len(shape) - 1) if len(shape) > 1 else [None] * len(shape)
    signature = [tf.TensorSpec([None, *unknown, *shape[len(unknown) :]])]
    run = tf.function(encoder, input_signature=signature)
    np.testing.assert_allclose(run(x), encoder(x), atol=1e-6)
