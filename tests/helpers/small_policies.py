"""A policy of two activations and three weights, and what it decides."""

import numpy as np
from keras import ops

from dqmq_tf.policy.bit_width_policy import BitWidthPolicy

ACTIVATIONS = [(2, 3, 4, 5, 6, 7, 8), (2, 4, 8)]
WEIGHTS = [(2, 3, 4, 5, 6, 7, 8), (4, 8), (8,)]
SIZE = 4


def make(groups=2, spread=1.0, **kwargs):
    policy = BitWidthPolicy(ACTIVATIONS, WEIGHTS, groups=groups, **kwargs)
    policy.build((None, SIZE))
    rng = np.random.default_rng(0)
    policy.direction.assign(spread * rng.normal(size=policy.direction.shape))
    return policy


def embeddings(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, SIZE)).astype("float32")


def numpy(decision):
    return {key: ops.convert_to_numpy(value) for key, value in decision.items()}


def prepared(phase=None, profiles=3, groups=3):
    policy = make(groups)
    policy.set_groups([-0.3, 0.4][: profiles - 1], embeddings(profiles, seed=5) * 0.5)
    bits = np.array([[2, 2, 2, 4, 8], [5, 4, 3, 4, 8], [8, 8, 8, 8, 8], [0, 0, 0, 0, 0]])
    policy.assigned.assign(bits)
    if phase:
        policy.phase, policy.profiles = phase, profiles
    return policy
