"""Checks the distributions in a summary against the policy's own arithmetic."""

import keras
import numpy as np
import pytest


class TestDecisionStatistics:
    def test_distribution_is_averaged_over_the_inputs(self, per_sample, report, arrays):
        policy = per_sample._parts.policy
        z = keras.ops.convert_to_numpy(per_sample._parts.encoder(arrays[0]))
        direction = policy.direction.numpy()
        step = np.abs(direction).max() / 127
        direction = step * np.round(direction / step)
        mean = policy.mean.numpy()[0] + z @ direction[0]
        mean = np.clip(mean, 2, 8)
        found = report.activations[0].distribution
        sigma = np.exp(policy.log_sigma.numpy()[0]) * policy.temperature.numpy()
        p = np.exp(-((mean[:, None] - np.arange(2, 9)) ** 2) / (2 * sigma**2))
        p = (p / p.sum(axis=1, keepdims=True)).mean(axis=0)
        assert found.bit_widths == tuple(range(2, 9))
        assert found.mean == pytest.approx(mean.mean(), abs=1e-4)
        assert found.sigma == pytest.approx(sigma)
        assert found.probabilities == pytest.approx(p, abs=1e-4)
