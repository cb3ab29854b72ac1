import numpy as np
import pytest

from dqmq_tf import quality
from dqmq_tf.quality import noise


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_gaussian_noise_has_the_published_deviation(gray, severity):
    residue = quality.degrade(gray, "gaussian_noise", severity).numpy() - gray
    np.testing.assert_allclose(residue.std(), noise.GAUSSIAN_STDDEV[severity - 1], rtol=0.03)
    assert abs(residue.mean()) < 0.003


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_shot_noise_has_the_variance_of_photons(gray, severity):
    residue = quality.degrade(gray, "shot_noise", severity).numpy() - gray
    photons = noise.SHOT_PHOTONS[severity - 1]
    np.testing.assert_allclose(residue.var(), 0.5 / photons, rtol=0.05)
    assert abs(residue.mean()) < 0.003


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_impulse_noise_hits_the_published_share(gray, severity):
    noisy = quality.degrade(gray, "impulse_noise", severity).numpy()
    share = noise.IMPULSE_SHARE[severity - 1]
    np.testing.assert_allclose(np.mean(noisy == 0.0), share / 2, rtol=0.25)
    np.testing.assert_allclose(np.mean(noisy == 1.0), share / 2, rtol=0.25)
    np.testing.assert_allclose(np.mean(noisy == 0.5), 1 - share, rtol=0.01)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_speckle_noise_grows_with_the_value(gray, severity):
    stddev = noise.SPECKLE_STDDEV[severity - 1]
    residue = quality.degrade(gray, "speckle_noise", severity).numpy() - gray
    np.testing.assert_allclose(residue.std(), 0.5 * stddev, rtol=0.03)
    assert not quality.degrade(0 * gray, "speckle_noise", severity).numpy().any()
