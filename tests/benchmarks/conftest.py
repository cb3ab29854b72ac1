"""A small version of the benchmark, on digits."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from helpers.small_networks import KINDS, compiled, network, training_data
from study import datasets, runs

from dqmq_tf import quality


@functools.cache
def digits(split, count, clean):
    """Images that are degraded once for all runs, which cannot change them."""
    data = quality.digits(split, size=16).repeat(2).batch(64)
    mixed = quality.mixed_quality(data, kinds=KINDS, clean=clean, seed=2, with_quality=True)
    parts = [(x, y, q["kind"], q["severity"]) for x, y, q in mixed.as_numpy_iterator()]
    x, y, kind, severity = arrays = [np.concatenate(part)[:count] for part in zip(*parts)]
    for array in arrays:
        array.setflags(write=False)
    return datasets.Images(x=x, y=y, kind=kind, severity=severity)


class Digits:
    """Replaces `datasets.Mixtures`."""

    def training(self, seed, steps):
        return digits("train", steps * datasets.BATCH, 0.2)

    def test(self, name):
        return digits("test", 500, {"c": 1.0, "d": 0.5}.get(name, 0.0))

    def validation(self, split):
        return self.test("a")


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    made = runs.Bench(None, folder, None, folder)
    made.mixtures = Digits()
    model = compiled(network())
    scaled = training_data(2).map(lambda x, y: (tf.round(x * 255.0), y))
    model.fit(scaled, verbose=0)
    made.start = lambda name, front=None: model
    return made
