"""The oracle: an encoder that knows the quality of each image, to measure what a better one could gain.

Everything else is trained as in DQMQ. The oracle's lead over DQMQ is what a better encoder could gain. Its
lead over static bits is what knowing the quality is worth at all.
"""

import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.policy.int8_arithmetic import fake_int8

# Images of a kind form two groups: those of at least this severity, and the others.
_SEVERE = 3
# A measure is divided into this many parts.
_BINS = 4
_UNKNOWN = -1


def tell(qmodel, training, tests):
    """Makes the encoder of a model use what is known about each image instead of its pixels.

    The embedding of a group of images is a row of the encoder's last kernel, which is trained as usual.
    Images of groups that training does not have get the embedding 0.

    Args:
        qmodel: The `DQMQModel`, before training.
        training: The training images and the group of each, uint8 `[N, ...]` and integers `[N]`.
        tests: Pairs of the same kind, one for each test.

    Raises:
        ValueError: If there are more groups than the kernel has rows.
    """
    encoder = qmodel.get_layer("quality_encoder")
    rows = encoder.output_kernel.shape[0]
    known = np.unique(training[1])
    if len(known) > rows:
        raise ValueError(
            f"There are {len(known)} groups of quality, but the encoder's kernel has {rows} rows."
        )
    factors = np.random.default_rng(0).integers(1, 2**31, training[0].shape[1:])
    keys = np.concatenate([_keys(pixels, factors) for pixels, _ in (training, *tests)])
    groups = np.concatenate([groups for _, groups in (training, *tests)])
    # An image can occur several times, such as a clean one in several tests.
    keys, first = np.unique(keys, return_index=True)
    has_group = np.isin(groups[first], known)
    index = np.searchsorted(known, groups[first][has_group]).astype("int32")
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(keys[has_group], index), _UNKNOWN
    )
    multiplied = tf.constant(factors)

    def call(x):
        key = tf.reduce_sum(tf.cast(tf.round(x), "int64") * multiplied, axis=(1, 2, 3))
        one = ops.one_hot(table.lookup(key), rows)
        return fake_int8(ops.tanh(ops.matmul(one, fake_int8(encoder.output_kernel))), 1.0)

    encoder.call = call


def tell_size_and_sharpness(qmodel, train, test, batches, random=None):
    """Makes the encoder of a model use the own size and the sharpness of each sign.

    Args:
        qmodel: The `DQMQModel`, before training.
        train, test: The `signs.Signs`, with images in uint8.
        batches: Function from values, one for each training image, to a dataset of batches of the images
            of training and their values.
        random: A NumPy generator, to tell each image what is known about another one. None tells the truth.
    """
    bins = Bins(train.size, train.sharpness)
    each = bins.of(train.size, train.sharpness)
    images, groups = map(np.concatenate, zip(*batches(each).as_numpy_iterator()))
    known = [
        (images.astype("uint8"), groups),
        (test.x, bins.of(test.size, test.sharpness)),
    ]
    if random is not None:
        known = [(pixels, random.permutation(groups)) for pixels, groups in known]
    tell(qmodel, known[0], known[1:])


def by_kind_and_severity(images):
    """Returns `images.x` and their groups: by kind of degradation, and by whether it is severe.

    Args:
        images: A `datasets.Images`. The clean ones are one group.
    """
    return images.x, np.where(images.kind == 0, 0, 2 * images.kind + (images.severity >= _SEVERE))


class Bins:
    """Groups of images with similar values of two measures, with as many training images on each side.

    Args:
        *measures: Two measures of the training images, each `[N]`.
    """

    def __init__(self, *measures):
        shares = np.arange(1, _BINS) / _BINS
        self._edges = [np.quantile(values, shares) for values in measures]

    def of(self, *measures):
        """Returns the group of each image, `[N]`, from the same two measures."""
        first, second = map(np.searchsorted, self._edges, measures)
        return _BINS * first + second


def _keys(pixels, factors):
    """Returns a hash for each image, `[N]`. Collisions are very unlikely."""
    blocks = np.array_split(pixels, max(len(pixels) // 1_000, 1))
    return np.concatenate(
        [(block.astype("int64") * factors).sum(axis=(1, 2, 3)) for block in blocks]
    )
