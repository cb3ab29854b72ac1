import numpy as np
import pytest

from dqmq_tf import quality
from dqmq_tf.quality import blur

BLURS = ("gaussian_blur", "defocus_blur", "motion_blur")


@pytest.mark.parametrize("kind", BLURS)
def test_blur_preserves_the_sum_and_does_not_darken_borders(kind, point, gray):
    for severity in quality.SEVERITIES:
        blurred = quality.degrade(point, kind, severity).numpy()
        np.testing.assert_allclose(blurred.sum(), 1.0, rtol=1e-5)
        np.testing.assert_allclose(quality.degrade(gray, kind, severity), gray, atol=1e-6)


@pytest.mark.parametrize("kind", ["gaussian_blur", "defocus_blur"])
@pytest.mark.parametrize("severity", quality.SEVERITIES)
def test_lens_blur_is_centered_and_symmetric(kind, severity, point):
    spread = quality.degrade(point, kind, severity).numpy()[0, :, :, 0]
    for mirrored in (spread[::-1], spread[:, ::-1], spread.T):
        np.testing.assert_allclose(spread, mirrored, atol=1e-7)


def test_gaussian_blur_is_a_gaussian(point):
    for sigma, severity in zip(blur.GAUSSIAN_SIGMA, quality.SEVERITIES):
        spread = quality.degrade(point, "gaussian_blur", severity).numpy()[0, 16, :, 0]
        np.testing.assert_allclose(spread[17] / spread[16], np.exp(-0.5 / sigma**2), rtol=1e-4)


def test_defocus_blur_is_a_disk(point):
    spread = quality.degrade(point, "defocus_blur", 4).numpy()[0, 14:19, 14:19, 0]
    plus = (
        np.array([[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0] * 5]) / 5
    )
    np.testing.assert_allclose(spread, plus, atol=1e-5)


def test_motion_blur_has_a_random_angle_for_each_image(point):
    spreads = quality.degrade(np.repeat(point, 30, 0), "motion_blur", 5, seed=2).numpy()[..., 0]
    angles = []
    for spread in spreads:
        # A trail of one-sided taps points away from the source: its mean offset gives the angle.
        y, x = np.mgrid[-16:17, -16:17]
        angles.append(np.arctan2(np.sum(spread * y), -np.sum(spread * x)))
    assert np.ptp(angles) > np.pi / 3
    assert np.abs(angles).max() <= np.pi / 4 + 0.1


def test_motion_blur_weights_are_half_a_gaussian(point):
    for sigma, severity in zip(blur.MOTION_SIGMA, quality.SEVERITIES):
        trail = np.sort(quality.degrade(point, "motion_blur", severity).numpy().ravel())[::-1]
        np.testing.assert_allclose(trail[1] / trail[0], np.exp(-0.5 / sigma**2), rtol=1e-4)
