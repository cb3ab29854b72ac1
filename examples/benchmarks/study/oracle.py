"""An encoder that is told the quality: how much seeing it better could bring.

The oracle of the comparison. All else is DQMQ as it is trained: what it gains over DQMQ is headroom of
the encoder, and what it gains over static bits is what knowing the quality is worth at all.
"""

import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.policy.int8_arithmetic import fake_int8

# From this severity on images are a group of their own.
_SEVERE = 3
_UNKNOWN = -1


def tell(qmodel, training, tests):
    """Replaces what the encoder sees by what was done to each image.

    The embedding of a group, which is a kind that is severe or not, or clean, is a row of the
    encoder's last kernel, learned as that is. Images of kinds that training has not have the
    embedding 0.

    Args:
        qmodel: `DQMQModel` that is to be trained.
        training: `mixtures.Images` of the training.
        tests: `Images` of each test.

    Raises:
        ValueError: If there are more groups than the kernel has rows.
    """
    encoder = qmodel.encoder
    rows = encoder.output_kernel.shape[0]
    known = np.unique(_groups(training))
    if len(known) > rows:
        raise ValueError(f"{len(known)} groups of quality, {rows} rows of the encoder's kernel.")
    factors = np.random.default_rng(0).integers(1, 2**31, training.x.shape[1:])
    keys = np.concatenate([_keys(part.x, factors) for part in (training, *tests)])
    groups = np.concatenate([_groups(part) for part in (training, *tests)])
    # Clean images stand in several tests.
    keys, first = np.unique(keys, return_index=True)
    told = np.isin(groups[first], known)
    index = np.searchsorted(known, groups[first][told]).astype("int32")
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(keys[told], index), _UNKNOWN
    )
    multiplied = tf.constant(factors)

    def call(x):
        key = tf.reduce_sum(tf.cast(tf.round(x), "int64") * multiplied, axis=(1, 2, 3))
        one = ops.one_hot(table.lookup(key), rows)
        return fake_int8(ops.tanh(ops.matmul(one, fake_int8(encoder.output_kernel))), 1.0)

    encoder.call = call


def _groups(images):
    return np.where(images.kind == 0, 0, 2 * images.kind + (images.severity >= _SEVERE))


def _keys(pixels, factors):
    """A number for each image `[N]`, which no other image has but by an unlikely chance."""
    blocks = np.array_split(pixels, max(len(pixels) // 1_000, 1))
    return np.concatenate(
        [(block.astype("int64") * factors).sum(axis=(1, 2, 3)) for block in blocks]
    )
