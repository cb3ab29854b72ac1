"""What is in front of a network: the images that it gets, and the runs behind it."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from helpers.small_networks import network
from study import datasets, fronts, runs, scoring


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    light = np.linspace(0.2, 1, 40)[:, None, None, None]
    return (light * random.integers(40, 216, (40, 16, 16, 3))).astype("uint8")


def test_standardized_images_have_the_same_mean_and_spread(images):
    found = fronts.standardized(images.astype("float32"))
    assert np.ptp(images.mean(axis=(1, 2, 3))) > 100
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), 128, atol=1)
    np.testing.assert_allclose(found.std(axis=(1, 2, 3)), 64, atol=1)


def test_an_image_without_contrast_becomes_gray():
    flat = np.full((1, 8, 8, 3), 7, "uint8")
    assert (fronts.standardized_pixels(flat) == 128).all()


def test_equalized_images_have_contrast_in_each_tile(images):
    # Half of each image lies in the shade.
    shaded = np.concatenate([images[:, :, :8] // 8, images[:, :, 8:]], axis=2)
    found = fronts.equalized(shaded)
    assert found.dtype == "uint8" and found.shape == images.shape
    for half in (np.s_[:, :, :8], np.s_[:, :, 8:]):
        before, after = (values[half].std(axis=(1, 2, 3)) for values in (shaded, found))
        assert after.mean() > 1.1 * before.mean()
    np.testing.assert_array_equal(fronts.equalized(shaded[3:4]), found[3:4])


def test_a_network_beside_exposure_begins_with_the_mean_of_both(images):
    x = images.astype("float32")
    model = network()
    widened = fronts.beside(model, x)
    assert widened.get_layer("wide").kernel.shape[2] == 6
    mean = (x + widened.get_layer("exposure")(x)) / 2
    assert np.abs(mean - x).max() > 10
    np.testing.assert_allclose(widened(x), model(mean), atol=1e-4)


def test_pixels_are_rounded_and_the_same_in_parts_and_in_batches(images, monkeypatch):
    whole = fronts.standardized_pixels(images)
    exact = fronts.standardized(images.astype("float32"))
    assert whole.dtype == "uint8" and np.abs(whole - exact).max() <= 0.5
    monkeypatch.setattr(fronts, "_PART", 7)
    np.testing.assert_array_equal(fronts.standardized_pixels(images), whole)
    data = tf.data.Dataset.from_tensor_slices((images.astype("float32"), np.arange(40))).batch(8)
    parts = list(fronts.standardized_batches(data).as_numpy_iterator())
    np.testing.assert_array_equal(np.concatenate([x for x, _ in parts]), whole)
    np.testing.assert_array_equal(np.concatenate([y for _, y in parts]), np.arange(40))


def test_a_run_behind_a_standardization_trains_and_tests_on_standardized_images(images, tmp_path):
    zeros = np.zeros(len(images), "int32")
    plain = datasets.Images(x=images, y=zeros, kind=zeros + 3, severity=zeros + 1)

    class Mixtures:
        def training(self, seed, steps):
            return plain

        test = validation = lambda self, name: plain

    bench = runs.Bench(None, tmp_path, None, tmp_path)
    bench.mixtures = Mixtures()
    run = runs.Run(network="resnet8", method="dqmq", front=fronts.STANDARDIZATION)
    trial = dataclasses.replace(run, tuning=True)
    seen = bench.training(run), *bench.images(run).values(), bench.images(trial)["validation"]
    for found in seen:
        np.testing.assert_array_equal(found.x, fronts.standardized_pixels(images))
        assert (found.kind == 3).all() and (found.severity == 1).all()
    # `Exposure` is part of the network, which gets the images as they are.
    for front in (None, fronts.EXPOSURE):
        assert bench.training(dataclasses.replace(run, front=front)) is plain


def test_the_last_batch_is_shuffled_within_itself():
    class Encoder:
        def call(self, x):
            return x

    class Model:
        encoder = Encoder()

        def get_layer(self, name):
            return self.encoder

    model = Model()
    values = tf.range(315)[:, None]
    with scoring.shuffled(model):
        found = model.encoder.call(values).numpy()[:, 0]
    assert sorted(found) == list(range(315)) and (found != np.arange(315)).mean() > 0.9
