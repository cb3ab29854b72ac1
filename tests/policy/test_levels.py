"""The scale on which 8 and 16 bits are neighbors."""

import numpy as np

from dqmq_tf.policy import levels
from dqmq_tf.policy.bit_width_policy import BitWidthPolicy


def test_bits_and_levels_are_inverse_and_equal_up_to_8():
    bits = np.array([2.0, 3.5, 8.0, 12.0, 16.0])
    assert levels.to_levels(bits).tolist() == [2.0, 3.5, 8.0, 8.5, 9.0]
    assert np.array_equal(levels.to_bits(levels.to_levels(bits)), bits)
    assert levels.candidate_levels((4, 8, 16)) == (4, 8, 9)


def test_8_and_16_bits_are_drawn_as_neighbors_and_executed_as_bits():
    policy = BitWidthPolicy(activations=[(8, 16)], weights=[(7, 8)], initial_sigma=0.6)
    policy.build((None, 4))
    policy.mean.assign([8.5, 7.5])
    p = np.exp(policy.log_probabilities(policy.means(np.zeros((1, 4), "float32"))))[0]
    # The grid is 7, 8 and 16.
    assert np.allclose(p, [[0.0, 0.5, 0.5], [0.5, 0.5, 0.0]], atol=1e-6)
    z = np.zeros((64, 4), "float32")
    decision = policy(z, training=True)["activations"].numpy()[:, 0]
    executed, low, high, slope, mean = decision.T
    assert set(executed.tolist()) == {8.0, 16.0}
    assert set(low.tolist()) == {8.0} and set(high.tolist()) == {16.0}
    # Per level: the change from 8 to 16 bits has the slope of any change of one bit.
    assert np.allclose(slope, 1.0) and np.allclose(mean, 8.5)
    policy.mean.assign([8.6, 7.4])
    chosen = policy(z, training=False)
    assert set(chosen["activations"].numpy().ravel().tolist()) == {16.0}
    assert set(chosen["weights"].numpy().ravel().tolist()) == {7.0}
