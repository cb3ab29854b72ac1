"""`Exposure` in floating point: what it does to images, how it starts, learns and is saved."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dqmq_tf.layers import Exposure

LEVEL, SPREAD = 100.0, 40.0
GRAY_NOISE = np.random.default_rng(0).uniform(-2, 2, (1, 16, 16, 1))


def images_of(means, spreads, channels=3):
    """Images of one pattern with given means and spreads, one for each pair."""
    pattern = np.repeat(GRAY_NOISE - GRAY_NOISE.mean(), channels, axis=-1)
    pattern = pattern / np.abs(pattern).mean()
    return np.concatenate([m + s * pattern for m, s in zip(means, spreads)]).astype("float32")


def mean_of(images):
    return np.asarray(images).mean(axis=(1, 2, 3))


def spread_of(images):
    return np.abs(np.asarray(images) - mean_of(images)[:, None, None, None]).mean(axis=(1, 2, 3))


def layer_of(strength=1.0, **options):
    return Exposure(strength, level=LEVEL, spread=SPREAD, **options)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_a_usual_image_passes_unchanged(strength):
    images = images_of([LEVEL], [SPREAD])
    np.testing.assert_allclose(layer_of(strength)(images), images, atol=1e-3)


def test_strength_0_changes_nothing():
    images = images_of([5, 100, 248], [0, 40, 3])
    np.testing.assert_array_equal(layer_of(0.0)(images), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_strength_1_gives_all_images_one_mean_and_spread(channels):
    images = images_of([8, 60, 120, 230], [3.5, 12, 58, 12], channels)
    exposed = layer_of()(images)
    np.testing.assert_allclose(spread_of(exposed), SPREAD, rtol=0.08)
    np.testing.assert_allclose(mean_of(exposed), LEVEL, rtol=0.08)


@pytest.mark.parametrize("knots, tolerance", [(8, 8.0), (16, 2.0)])
def test_strength_1_is_plain_standardization(knots, tolerance):
    random = np.random.default_rng(0)
    noise = random.normal(size=(16, 32, 32, 1))
    noise = (noise - noise.mean((1, 2, 3), keepdims=True)) / noise.std((1, 2, 3), keepdims=True)
    contrasts = np.geomspace(6, 80, 16)[:, None, None, None]
    images = (random.uniform(20, 230, (16, 1, 1, 1)) + contrasts * noise).astype("float32")
    standardized = np.clip(64 * noise + 128, 0, 255)
    # The mean absolute deviation of a normal distribution of standard deviation 1.
    spread = 64 * np.sqrt(2 / np.pi)
    exposed = np.asarray(Exposure(level=128, spread=spread, knots=knots)(images))
    assert np.abs(exposed - standardized).mean(axis=(1, 2, 3)).max() < tolerance


def test_outputs_are_clipped_to_black_and_white_as_images_are():
    bright_spot = images_of([20], [5])
    bright_spot[0, 3, 3] = 250
    assert layer_of()(bright_spot).numpy().max() == 255
    signed = Exposure(value_range=(-1, 1), level=0, spread=0.3)(bright_spot / 255 - 1)
    assert np.asarray(signed).max() > 1


def test_a_strength_between_brings_images_closer():
    images = images_of([10, 200], [4, 25])
    exposed = layer_of(0.5)(images)
    assert mean_of(exposed)[0] > 20 and mean_of(exposed)[1] < 190
    np.testing.assert_allclose(spread_of(exposed), np.sqrt(SPREAD * np.array([4, 25])), rtol=0.08)


def test_black_white_and_flat_images_stay_finite():
    layer, images = layer_of(), tf.constant(images_of([0, 255, 128], [0, 0, 0.5]))
    with tf.GradientTape() as tape:
        tape.watch(images)
        exposed = layer(images)
        loss = tf.reduce_sum(exposed**2)
    gradients = tape.gradient(loss, [images, *layer.trainable_variables])
    np.testing.assert_allclose(mean_of(exposed), LEVEL, rtol=0.01)
    # Noise is not amplified without bounds.
    assert spread_of(exposed)[2] < 0.5 * 13
    assert all(np.isfinite(np.asarray(gradient)).all() for gradient in gradients)


def test_training_changes_the_strengths_and_leaves_what_is_measured():
    images = images_of([8, 60, 120, 230], [3.5, 12, 58, 12])
    model = keras.Sequential([keras.Input((16, 16, 3)), layer_of(), layers.Flatten()])
    layer = model.layers[0]
    before = {weight.path: np.array(weight) for weight in layer.weights}
    assert len(before) == 8
    model.compile(keras.optimizers.Adam(0.01), "mse")
    # To undo what the layer does at the start.
    losses = model.fit(images, images.reshape(4, -1), epochs=30, verbose=0).history["loss"]
    moved = {w.path for w in layer.weights if np.any(np.array(w) != before[w.path])}
    assert {path.split("exposure")[-1].split("/", 1)[1] for path in moved} == {
        "center/kernel", "reach/kernel", "reach/bias", "gain/kernel", "gain/bias",
    }  # fmt: skip
    assert losses[-1] < 0.9 * losses[0]


def test_freezing_and_unfreezing_leave_what_is_measured_fixed():
    layer = Exposure(trainable=False)
    layer(images_of([20], [5]))
    assert not layer.trainable_weights
    model = keras.Sequential([keras.Input((16, 16, 3)), layer])
    model.trainable = False
    model.trainable = True
    trainable = {weight.path.split("/")[-2] for weight in layer.trainable_weights}
    assert trainable == {"center", "reach", "gain"} and len(layer.trainable_weights) == 5
    model.trainable = False
    assert not layer.trainable_weights


def test_adapt_measures_a_usual_image():
    images = images_of([20, 40, 90], [5, 15, 30])
    layer = Exposure()
    layer(images)
    layer.adapt(images, batch_size=2)
    assert layer.level == pytest.approx(50, abs=0.1) and layer.spread == pytest.approx(15, abs=0.1)
    np.testing.assert_allclose(spread_of(layer(images)), 15, rtol=0.08)
    batches = tf.data.Dataset.from_tensor_slices((images, [0, 1, 2])).batch(2)
    other = Exposure()
    other.adapt(batches)
    assert (other.level, other.spread) == pytest.approx((layer.level, layer.spread))
    np.testing.assert_allclose(other(images), layer(images), rtol=1e-5)


def test_channels_are_last_whatever_keras_is_set_to():
    images = images_of([20, 40, 90], [5, 15, 30])
    expected = layer_of()(images)
    keras.config.set_image_data_format("channels_first")
    try:
        np.testing.assert_array_equal(layer_of()(images), expected)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_the_range_of_the_values_is_an_argument():
    images = images_of([8, 60, 120, 230], [3.5, 12, 58, 12])
    exposed = Exposure(value_range=(0, 1))(images / 255)
    np.testing.assert_allclose(np.asarray(exposed) * 255, Exposure()(images), atol=1e-2)


def test_large_images_are_measured_in_blocks():
    layer = layer_of()
    fine = np.random.default_rng(0).normal(size=(1, 64, 64, 1)).astype("float32")
    images = LEVEL + SPREAD * np.kron(GRAY_NOISE, np.ones((1, 4, 4, 1))).astype("float32")
    exposed = layer(images + 30 * fine)
    assert layer.gray.kernel.shape == (2, 2, 1, 1)
    # The noise of single pixels counts for less than half.
    assert spread_of(exposed) > 1.1 * SPREAD
    assert layer_of()(np.ones((1, 40, 80, 3))).shape == (1, 40, 80, 3)


def test_a_saved_model_is_the_same(tmp_path):
    images = images_of([20, 40, 90], [5, 15, 30])
    layer = Exposure(0.7, knots=5, name="exposure")
    layer.adapt(images)
    model = keras.Sequential([keras.Input((16, 16, 3)), layer])
    layer.center.kernel.assign([[[[0.4]]]])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), model(images))
    assert loaded.layers[0].get_config() == layer.get_config()
    assert not loaded.layers[0].curve.trainable


@pytest.mark.parametrize(
    "options, message",
    [
        ({"strength": 1.5}, "strength=1.5"),
        ({"value_range": (1, 1)}, "value_range"),
        ({"value_range": (0, np.inf)}, "value_range"),
        ({"level": np.nan}, "level=nan"),
        ({"knots": 1}, "knots=1"),
        ({"knots": 2.7}, "knots=2.7"),
        ({"spread": 0.0}, "spread=0.0"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Exposure(**options)


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match="takes images"):
        Exposure()(np.ones((2, 8)))
    with pytest.raises(ValueError, match="uint8.*Rescaling"):
        Exposure()(np.ones((2, 8, 8, 3), "uint8"))
    with pytest.raises(ValueError, match=r"adapts to images.*\(2, 8, 8\).*images\[\.\.\., None\]"):
        Exposure().adapt(np.ones((2, 8, 8)))
    with pytest.raises(ValueError, match=r"range=\(0, 1\), .* from 20 to 240. Give it their range"):
        Exposure(value_range=(0, 1)).adapt(np.linspace(20, 240, 192).reshape(1, 8, 8, 3))
    with pytest.raises(ValueError, match="images with NaN"):
        Exposure().adapt(np.full((2, 8, 8, 3), np.nan))
    with pytest.raises(ValueError, match="without contrast"):
        Exposure().adapt(np.ones((2, 8, 8, 3)))
