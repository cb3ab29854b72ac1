import numpy as np
import pytest
import tensorflow as tf

from dqmq_tf import quality

RANDOM_KINDS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "motion_blur",
    "low_light",
    "fog",
)


@pytest.mark.parametrize("kind", quality.KINDS)
class TestEveryKind:
    def test_shape_dtype_and_range_are_kept(self, kind, digit_images):
        as_float = (digit_images[:2] / 255.0).astype(np.float32)
        for severity in quality.SEVERITIES:
            for images in (digit_images[:2], as_float):
                degraded = quality.degrade(images, kind, severity).numpy()
                assert degraded.shape == images.shape and degraded.dtype == images.dtype
                assert not np.array_equal(degraded, images)
            assert np.isfinite(degraded).all() and degraded.min() >= 0 and degraded.max() <= 1

    @pytest.mark.parametrize("shape", [(17, 23, 1), (2, 17, 23, 1), (5, 3, 2), (1, 1, 3)])
    def test_any_size_and_number_of_channels(self, kind, shape):
        images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        assert quality.degrade(images, kind, 5).shape == shape

    def test_deterministic_and_one_image_is_a_batch_of_one(self, kind, digit_images):
        once = quality.degrade(digit_images[:2], kind, 3, seed=7).numpy()
        np.testing.assert_array_equal(once, quality.degrade(digit_images[:2], kind, 3, seed=7))
        np.testing.assert_array_equal(once[0], quality.degrade(digit_images[0], kind, 3, seed=7))

    def test_randomness_differs_by_image_and_by_seed(self, kind, digit_images):
        copies = np.repeat(digit_images[:1], 2, axis=0)
        one = quality.degrade(copies, kind, 5, seed=1).numpy()
        two = quality.degrade(copies, kind, 5, seed=2).numpy()
        assert np.array_equal(one[0], one[1]) == (kind not in RANDOM_KINDS)
        assert np.array_equal(one, two) == (kind not in RANDOM_KINDS)

    def test_distance_from_clean_grows_with_severity(self, kind, photographs):
        clean = photographs.astype(np.float64)
        distances = [
            np.mean((quality.degrade(photographs, kind, severity).numpy() - clean) ** 2)
            for severity in quality.SEVERITIES
        ]
        steps = np.diff(distances)
        if kind == "motion_blur":
            # Severities 3 and 4 of CIFAR-10-C's motion blur are the same.
            assert steps[2] == 0.0
            steps = np.delete(steps, 2)
        assert all(steps > 0), distances

    def test_value_range_only_rescales(self, kind, digit_images):
        unit = (digit_images[:2] / 255.0).astype(np.float32)
        plain = quality.degrade(unit, kind, 3)
        signed = quality.degrade(unit * 2 - 1, kind, 3, value_range=(-1, 1))
        # JPEG rounds to bytes, so the last bit of a float can change the result.
        np.testing.assert_allclose(signed, plain * 2 - 1, atol=0.03 if kind == "jpeg" else 0.01)


@pytest.mark.parametrize("kind", ["shot_noise", "motion_blur", "pixelate", "jpeg", "fog"])
def test_works_in_a_map_with_unknown_sizes(kind):
    sizes = [(9, 7), (4, 12)]
    images = tf.data.Dataset.from_generator(
        lambda: (np.full([*size, 3], 99, np.uint8) for size in sizes),
        output_signature=tf.TensorSpec([None, None, 3], tf.uint8),
    )
    degraded = images.enumerate().map(
        lambda index, image: quality.degrade(image, kind, 2, seed=index)
    )
    assert [tuple(image.shape) for image in degraded] == [(*size, 3) for size in sizes]
    mixed = quality.mixed_quality(images.map(lambda image: (image, 0)), kinds=kind, clean=0.0)
    assert [tuple(image.shape) for image, _ in mixed] == [(*size, 3) for size in sizes]


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(kind="fogg"), ValueError, "'fogg' is not known.*gaussian_noise.*fog"),
        (dict(severity=0), ValueError, "from 1 .* to 5 .*Found 0"),
        (dict(severity=6), ValueError, "Found 6"),
        (dict(seed=2**64), ValueError, "`seed` must be an int of at most 64 bits"),
        (dict(seed=0.5), ValueError, "`seed` must be an int"),
        (dict(severity=2.5), ValueError, "Found 2.5"),
        (dict(images=np.zeros([8, 8], np.uint8)), ValueError, r"Found shape \(8, 8\)"),
        (
            dict(images=np.zeros([0, 8, 3], np.uint8)),
            ValueError,
            r"must contain pixels. Found shape \(0, 8, 3\)",
        ),
        (
            dict(images=np.zeros([6, 28, 28], np.uint8)),
            ValueError,
            r"shape \(6, 28, 28\) would be one image with 28 channels.*images\[\.\.\., None\]",
        ),
        (dict(images=np.zeros([8, 8, 3], bool)), TypeError, "Found bool"),
        (dict(images=np.full([8, 8, 3], 200.0)), tf.errors.InvalidArgumentError, "value_range"),
    ],
)
def test_invalid_arguments_are_rejected(change, error, message):
    arguments = dict(images=np.zeros([8, 8, 3], np.uint8), kind="fog", severity=1) | change
    with pytest.raises(error, match=message):
        quality.degrade(**arguments)
