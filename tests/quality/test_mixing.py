import collections

import numpy as np
import pytest
import tensorflow as tf

from dqmq_tf import quality


@pytest.fixture(scope="module")
def digits():
    return quality.digits("train", size=16, channels=1)


def collected(dataset):
    return [np.asarray(part) for part in zip(*dataset.as_numpy_iterator())]


def drawn(dataset):
    """Returns the kinds and severities of a dataset with quality, as two arrays."""
    quality_of = [element[-1] for element in dataset.as_numpy_iterator()]
    return tuple(np.hstack([one[key] for one in quality_of]) for key in ("kind", "severity"))


def test_kinds_and_severities_are_drawn_in_the_requested_shares(digits):
    kinds, severities = drawn(quality.mixed_quality(digits, clean=0.3, with_quality=True))
    counts = np.bincount(kinds, minlength=len(quality.KINDS) + 1) / len(kinds)
    np.testing.assert_allclose(counts[0], 0.3, atol=0.04)
    np.testing.assert_allclose(counts[1:], 0.7 / len(quality.KINDS), atol=0.025)
    assert set(severities[kinds == 0]) == {0}
    share = np.bincount(severities[kinds > 0])[1:] / np.sum(kinds > 0)
    np.testing.assert_allclose(share, 0.2, atol=0.05)


def test_a_dictionary_gives_shares_and_kinds_keep_their_indices(digits):
    mixed = quality.mixed_quality(
        digits, kinds={"fog": 3, "jpeg": 1}, severity=(2, 3), clean=0.0, with_quality=True
    )
    kinds, severities = drawn(mixed)
    names = collections.Counter(quality.KINDS[kind - 1] for kind in kinds)
    assert set(names) == {"fog", "jpeg"}
    np.testing.assert_allclose(names["fog"] / len(kinds), 0.75, atol=0.05)
    assert set(severities) == {2, 3}


def test_clean_images_do_not_change_and_others_do(digits):
    source, _ = collected(digits)
    images, _, with_kinds = zip(
        *quality.mixed_quality(digits, with_quality=True).as_numpy_iterator()
    )
    clean = np.array([one["kind"] == 0 for one in with_kinds])
    same = np.array([np.array_equal(a, b) for a, b in zip(source, images)])
    assert same[clean].all()
    assert same[~clean].mean() < 0.05


@pytest.mark.parametrize("clean", [0, 1])
def test_all_or_no_images_are_clean(digits, clean):
    kinds, _ = drawn(quality.mixed_quality(digits.take(200), clean=clean, with_quality=True))
    assert (kinds == 0).all() if clean else (kinds > 0).all()


def test_draws_depend_only_on_seed_and_position(digits):
    part = digits.take(90)
    mixed = quality.mixed_quality(part, seed=3)
    images, labels = collected(mixed)
    np.testing.assert_array_equal(images, collected(mixed)[0])
    np.testing.assert_array_equal(labels, collected(part)[1])
    assert not np.array_equal(images, collected(quality.mixed_quality(part, seed=4))[0])
    batched = quality.mixed_quality(part.batch(32), seed=3)
    np.testing.assert_array_equal(
        images, np.concatenate([b for b, _ in batched.as_numpy_iterator()])
    )


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_share_a_mixed_dataset_see_each_image_once(digits, workers):
    mixed = quality.mixed_quality(digits.take(60), seed=3)
    images, _ = collected(mixed)
    for worker in range(workers):
        share, _ = collected(mixed.shard(workers, worker))
        np.testing.assert_array_equal(share, images[worker::workers])


def test_repeating_before_mixing_gives_new_draws(digits):
    images, _ = collected(quality.mixed_quality(digits.take(40).repeat(2)))
    assert not np.array_equal(images[:40], images[40:])


@pytest.mark.parametrize("batch", [None, 32])
def test_specs_and_cardinality_are_kept(digits, batch):
    dataset = digits if batch is None else digits.batch(batch)
    mixed = quality.mixed_quality(dataset)
    assert mixed.element_spec == dataset.element_spec
    assert mixed.cardinality() == dataset.cardinality()
    with_kinds = quality.mixed_quality(dataset, with_quality=True)
    assert with_kinds.element_spec[:2] == dataset.element_spec
    assert with_kinds.cardinality() == dataset.cardinality()
    assert {k: v.dtype for k, v in with_kinds.element_spec[2].items()} == {
        "kind": tf.int32,
        "severity": tf.int32,
    }
    image, _, one = next(iter(with_kinds))
    assert one["kind"].shape == one["severity"].shape == image.shape[: image.shape.rank - 3]


def test_static_batch_shape_is_kept(digits):
    dataset = digits.batch(8, drop_remainder=True)
    assert quality.mixed_quality(dataset).element_spec[0].shape == (8, 16, 16, 1)


def test_sample_weights_pass_through(digits):
    weighted = digits.take(20).map(lambda image, label: (image, label, tf.cast(label, tf.float32)))
    plain = list(quality.mixed_quality(weighted).as_numpy_iterator())
    with_kinds = list(quality.mixed_quality(weighted, with_quality=True).as_numpy_iterator())
    assert all(weight == label for _, label, weight in plain)
    assert all(len(element) == 4 and element[2] == element[1] for element in with_kinds)


def test_float_images_of_another_range_are_refused_when_run(digits):
    floats = digits.take(20).map(lambda image, label: (tf.cast(image, tf.float32), label))
    with pytest.raises(tf.errors.InvalidArgumentError, match="value_range"):
        collected(quality.mixed_quality(floats))
    images, _ = collected(quality.mixed_quality(floats, value_range=(0, 255)))
    assert images.dtype == np.float32 and images.max() > 200


def test_a_keras_model_trains_on_it(digits):
    import keras

    model = keras.Sequential(
        [keras.Input([16, 16, 1]), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(quality.mixed_quality(digits.take(64).batch(32)), verbose=0)
    assert np.isfinite(history.history["loss"][0])


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(kinds=("fog", "rain")), ValueError, "'rain' is not known.*gaussian_noise"),
        (dict(kinds=()), ValueError, "at least one kind"),
        (dict(kinds=("fog", "fog")), ValueError, "none twice"),
        (dict(kinds=3), ValueError, "`kinds` must be names.*Found 3"),
        (dict(kinds={"fog": 0}), ValueError, "positive share. Found 0 for 'fog'"),
        (dict(kinds={"fog": float("nan")}), ValueError, "positive share"),
        (dict(severity=6), ValueError, "Found 6"),
        (dict(severity=(0, 3)), ValueError, "Found 0"),
        (dict(severity=(4, 2)), ValueError, r"Did you mean \(2, 4\)"),
        (dict(severity=(1, 2, 3)), ValueError, r"range \(low, high\)"),
        (dict(clean=1.2), ValueError, "`clean` must be a share.*Found 1.2"),
        (dict(clean=-0.1), ValueError, "`clean`"),
        (dict(seed=0.5), ValueError, "`seed` must be an int"),
        (dict(seed=2**64), ValueError, "`seed` must be an int of at most 64 bits"),
    ],
)
def test_invalid_arguments_are_rejected(digits, change, error, message):
    with pytest.raises(error, match=message):
        quality.mixed_quality(digits, **change)


@pytest.mark.parametrize(
    "bring, error, message",
    [
        (lambda data: list(data.take(1)), TypeError, "Found list"),
        (lambda data: data.take(0), ValueError, "is empty"),
        (
            lambda data: data.map(lambda image, label: image),
            ValueError,
            r"elements \(image, label\)",
        ),
        (
            lambda data: data.map(lambda image, label: {"image": image, "label": label}),
            ValueError,
            r"elements \(image, label\)",
        ),
        (
            lambda data: data.map(lambda image, label: ({"image": image}, label)),
            ValueError,
            "dense tensor",
        ),
        (lambda data: data.batch(2).batch(2), ValueError, "Found shape"),
        (
            lambda data: data.batch(8).map(lambda image, label: (image[..., 0], label)),
            ValueError,
            r"\(None, 16, 16\) would be one image with 16 channels.*images\[\.\.\., None\]",
        ),
        (
            lambda data: data.map(lambda image, label: (image > 0, label)),
            TypeError,
            "Found bool",
        ),
    ],
)
def test_datasets_of_another_form_are_refused(digits, bring, error, message):
    with pytest.raises(error, match=message):
        quality.mixed_quality(bring(digits))
