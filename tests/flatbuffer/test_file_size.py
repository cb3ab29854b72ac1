import zlib

import numpy as np

from dqmq_tf.flatbuffer.file_size import deflated_bytes


def test_deflated_bytes_are_those_of_zlib_at_level_9():
    data = np.random.default_rng(0).integers(-7, 8, 5000).astype("int8").tobytes()
    assert deflated_bytes(data) == len(zlib.compress(data, 9))


def test_fewer_bits_take_fewer_deflated_bytes():
    generator = np.random.default_rng(0)
    sizes = [
        deflated_bytes(generator.integers(-limit, limit + 1, 20000).astype("int8").tobytes())
        for limit in (1, 3, 7, 15, 31, 63, 127)
    ]
    assert sizes == sorted(sizes)
