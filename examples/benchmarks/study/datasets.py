"""CIFAR-10 under degradations that training has and others: the same images for every method."""

import dataclasses
import os
import pathlib

import numpy as np
import tensorflow as tf

from dqmq_tf import quality

# Training uses half of the kinds of each family. The others appear in tests only.
SEEN = (
    "gaussian_noise", "shot_noise", "defocus_blur", "pixelate", "jpeg", "low_light", "contrast",
)  # fmt: skip
UNSEEN = tuple(kind for kind in quality.KINDS if kind not in SEEN)
CLEAN_SHARE = 0.2
BATCH = 128
_SHUFFLED = 50_000
# The test mixtures have fixed seeds: name, kinds, severities, share of clean images, seed.
_TESTS = (
    ("a", SEEN, (1, 5), 0.0, 101),
    ("b", UNSEEN, (1, 5), 0.0, 102),
    ("c", SEEN, (1, 5), 1.0, 103),
    ("d", SEEN, (5, 5), 0.5, 104),
)
TESTS = tuple(name for name, *_ in _TESTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """Images, their classes, and how each was degraded.

    Attributes:
        x: The images, uint8 `[N, 32, 32, 3]`.
        y: The classes, int64 `[N]`.
        kind: Kinds of degradation, int32 `[N]`: 0 for clean, otherwise `i + 1` for `quality.KINDS[i]`.
        severity: Severities, int32 `[N]`: 0 for clean, otherwise 1 to 5.
    """

    x: np.ndarray
    y: np.ndarray
    kind: np.ndarray
    severity: np.ndarray

    def __len__(self):
        return len(self.y)

    def first(self, count):
        """Returns the first `count` images as float32, with values from 0 to 255, and their classes."""
        return self.x[:count].astype("float32"), self.y[:count]


class Mixtures:
    """Reads CIFAR-10, degrades it once, and caches the result in a folder.

    Args:
        data_dir: Folder of prepared tensorflow-datasets, or None for its default folder.
        cache: Folder for the degraded images.
    """

    def __init__(self, data_dir, cache):
        self.data_dir, self.cache = data_dir, pathlib.Path(cache)

    def test(self, name):
        """Returns the `Images` of one of `TESTS`. Each has all 10,000 test images.

        Args:
            name: `"a"`: kinds of degradation that training has. `"b"`: kinds that training does not
                have. `"c"`: clean. `"d"`: half clean, half at severity 5 of the kinds of training.
        """
        _, kinds, severity, clean, seed = next(test for test in _TESTS if test[0] == name)

        def make():
            return _collected(_mixed(self._raw("test").batch(200), kinds, severity, clean, seed))

        return self._cached(f"test_{name}", make)

    def validation(self, split="train[90%:]"):
        """Returns the 5,000 `Images` on which methods are tuned. No training uses them.

        Args:
            split: Split of CIFAR-10. For a network whose published weights have seen all training
                images it is a part of the test images, degraded differently than in the tests.
        """

        def make():
            return _collected(_mixed(self._raw(split).batch(200), SEEN, (1, 5), 0.0, 105))

        return self._cached(f"validation_{split}", make)

    def training(self, seed, steps):
        """Returns the training `Images` of `steps` batches of `BATCH`, in order and randomly flipped.

        The seed determines the order, the flips and the degradations. A fifth of the images is clean.
        """
        return self._cached(
            f"train_{seed}_{steps}", lambda: _collected(self._training(seed, steps))
        )

    def stream(self, seed, steps):
        """Returns a `tf.data.Dataset` of `steps` batches of `(float32 images, classes)`."""
        data = self._training(seed, steps)
        return data.map(lambda x, y, _: (tf.cast(x, tf.float32), y)).prefetch(tf.data.AUTOTUNE)

    def _training(self, seed, steps):
        data = self._raw("train[:90%]").cache().shuffle(_SHUFFLED, seed=seed).repeat()
        flips = tf.data.Dataset.counter().map(lambda i: tf.stack([seed, i]))
        data = tf.data.Dataset.zip(data, flips).map(_flipped, tf.data.AUTOTUNE)
        data = data.take(steps * BATCH).batch(BATCH)
        return _mixed(data, SEEN, (1, 5), CLEAN_SHARE, seed)

    def _raw(self, split):
        return quality.load("cifar10", split=split, data_dir=self.data_dir)[0]

    def _cached(self, name, make):
        path = self.cache / f"{name}.npz"
        if not path.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            # Several processes may be writing the same file.
            part = path.with_suffix(f".{os.getpid()}.npz")
            np.savez(part, **dataclasses.asdict(make()))
            part.rename(path)
        with np.load(path) as stored:
            return Images(**stored)


def batches(images):
    """Returns a `tf.data.Dataset` of `(float32 images, classes)` in batches of `BATCH`, in order."""
    steps = len(images) // BATCH
    x = images.x[: steps * BATCH].reshape(steps, BATCH, *images.x.shape[1:])
    data = tf.data.Dataset.from_tensor_slices((x, images.y[: steps * BATCH].reshape(steps, BATCH)))
    return data.map(lambda x, y: (tf.cast(x, tf.float32), y)).prefetch(tf.data.AUTOTUNE)


def _flipped(example, seed):
    image, label = example
    return tf.image.stateless_random_flip_left_right(image, seed), label


def _mixed(data, kinds, severity, clean, seed):
    return quality.mixed_quality(
        data, kinds=kinds, severity=severity, clean=clean, seed=seed, with_quality=True
    )


def _collected(mixed):
    parts = [(x, y, q["kind"], q["severity"]) for x, y, q in mixed.as_numpy_iterator()]
    return Images(**dict(zip(("x", "y", "kind", "severity"), map(np.concatenate, zip(*parts)))))
