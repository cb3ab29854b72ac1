import pathlib

import numpy as np
import pytest
from study import datasets, float_networks

from dqmq_tf import quality

DATA = pathlib.Path("../shared/data/tfds")
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="CIFAR-10 is not available")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return datasets.Mixtures(str(DATA), tmp_path_factory.mktemp("mixtures"))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Mixtures of the first 1,000 images of each split."""

    class Few(datasets.Mixtures):
        def _raw(self, split):
            return super()._raw(split).take(1_000)

    return Few(str(DATA), tmp_path_factory.mktemp("few"))


def test_no_kind_is_both_in_training_and_among_the_unseen_kinds():
    assert not set(datasets.SEEN) & set(datasets.UNSEEN)
    assert set(datasets.SEEN) | set(datasets.UNSEEN) == set(quality.KINDS)
    assert len(datasets.SEEN) >= 6


def test_each_test_has_all_test_images_with_the_stated_degradations(made, few):
    clean = made.test("c")
    assert len(clean) == 10_000 and not clean.kind.any()
    mixed = made.test("d")
    assert set(mixed.severity) == {0, 5}
    assert abs((mixed.severity == 0).mean() - 0.5) < 0.02
    np.testing.assert_array_equal(mixed.y, clean.y)
    untouched = mixed.severity == 0
    np.testing.assert_array_equal(mixed.x[untouched], clean.x[untouched])
    for name, kinds in (("a", datasets.SEEN), ("b", datasets.UNSEEN)):
        found = few.test(name)
        assert {quality.KINDS[k - 1] for k in found.kind} == set(kinds)
        assert set(found.severity) == {1, 2, 3, 4, 5}


def test_training_images_depend_on_the_seed_and_are_cached(few):
    first, again = few.training(0, 3), few.training(0, 3)
    np.testing.assert_array_equal(first.x, again.x)
    assert len(first) == 3 * datasets.BATCH
    other = few.training(1, 3)
    assert (first.y != other.y).any()
    assert 0.1 < (first.kind == 0).mean() < 0.3


def test_streamed_training_images_equal_the_cached_ones_and_begin_a_longer_training(few):
    kept = few.training(0, 3)
    streamed = np.concatenate([x for x, _ in few.stream(0, 5)])
    assert len(streamed) == 5 * datasets.BATCH
    np.testing.assert_array_equal(streamed[: len(kept)], kept.x.astype("float32"))


def test_validation_images_are_never_trained_on(made):
    for network, split, skipped in (
        ("mobilenet_v2", "train", 45_000),
        # The published weights of ResNet-8 have seen all training images.
        ("resnet8", "test", 0),
    ):
        validation = made.validation(float_networks.VALIDATION[network])
        assert len(validation) == 5_000
        raw = list(quality.load("cifar10", split, str(DATA))[0].skip(skipped).take(20))
        labels = [int(label) for _, label in raw]
        np.testing.assert_array_equal(validation.y[:20], labels)


def test_tuning_degrades_the_test_images_differently_than_the_test(few):
    tuned, tested = few.validation(float_networks.VALIDATION["resnet8"]), few.test("a")
    same = (tuned.x == tested.x[: len(tuned)]).all(axis=(1, 2, 3))
    assert same.mean() < 0.05


def test_batches_keep_the_order_of_the_images():
    random = np.random.default_rng(0)
    count = 2 * datasets.BATCH + 7
    images = datasets.Images(
        x=random.integers(0, 256, (count, 4, 4, 3)).astype("uint8"),
        y=np.arange(count),
        kind=np.zeros(count, int),
        severity=np.zeros(count, int),
    )
    found = list(datasets.batches(images))
    assert [x.shape[0] for x, _ in found] == [datasets.BATCH] * 2
    np.testing.assert_array_equal(np.concatenate([y for _, y in found]), images.y[:-7])
