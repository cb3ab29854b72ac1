import zlib

import numpy as np

from dqmq_tf.export.size import deflated_bytes, searched_deflate


def test_is_zlib_at_level_9():
    data = np.random.default_rng(0).integers(-7, 8, 5000).astype("int8").tobytes()
    assert deflated_bytes(data) == len(zlib.compress(data, 9))


def test_fewer_bits_take_fewer_bytes():
    generator = np.random.default_rng(0)
    sizes = [
        deflated_bytes(generator.integers(-limit, limit + 1, 20000).astype("int8").tobytes())
        for limit in (1, 3, 7, 15, 31, 63, 127)
    ]
    assert sizes == sorted(sizes)


def test_a_searched_stream_is_deflate_and_smaller():
    random = np.random.default_rng(0)
    weights = np.clip(np.rint(random.normal(0, 2.5, 50_000)), -7, 7).astype("int8").tobytes()
    for data in (b"", b"a", weights, weights + bytes(20_000) + random.bytes(9000)):
        stream = searched_deflate(data)
        assert zlib.decompress(stream, -zlib.MAX_WBITS) == data
    assert len(searched_deflate(weights)) < 0.92 * deflated_bytes(weights)
