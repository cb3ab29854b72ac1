"""Kernels under deflate: estimated from pieces, added up, and compressed again only if they change."""

import zlib

import numpy as np
import pytest

from dqmq_tf.budget import compressed_kernels
from dqmq_tf.budget.compressed_kernels import CompressedKernels, bytes_together


def kernel(bits, count, seed=0):
    """The bytes of a kernel whose channels have different spreads."""
    random = np.random.default_rng(seed)
    limit = 2 ** (bits - 1) - 1
    spread = np.exp(random.normal(0, 0.5, (count // 64, 1)))
    values = np.round(random.laplace(size=(count // 64, 64)) * spread * limit / 4)
    return np.clip(values, -limit, limit).astype("int8").tobytes()


def deflated(data):
    return len(zlib.compress(data, 9))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_pieces_of_a_large_kernel_stand_for_all_of_it(bits):
    data = kernel(bits, 640_000)
    estimate = CompressedKernels().compress("k", data)
    assert estimate.alone == pytest.approx(deflated(data), rel=0.02)
    assert estimate.stored is None


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_pieces_estimate_neither_too_much_nor_too_little(bits):
    """Deflate has less to look back at in pieces, unless it is told what comes before them."""
    kernels = [kernel(bits, size, seed) for size in (76_800, 160_000, 400_000) for seed in range(3)]
    errors = [CompressedKernels().compress("k", k).alone / deflated(k) - 1 for k in kernels]
    assert abs(np.mean(errors)) < 0.015 and np.max(np.abs(errors)) < 0.07


def test_small_kernels_share_a_compressor_and_large_ones_are_added():
    compressed, kernels = CompressedKernels(), [kernel(3, 20_000, s) for s in range(3)]
    small = [compressed.compress(i, data) for i, data in enumerate(kernels)]
    together = bytes_together(small)
    assert together < sum(part.alone for part in small)
    assert together in {deflated(b"".join(kernels[i] for i in (a, b, 3 - a - b)))
                        for a in range(3) for b in range(3) if a != b}  # fmt: skip
    large = compressed.compress("large", kernel(3, 128_000))
    assert bytes_together([*small, large]) == together + large.alone


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_kernels_of_a_large_file_take_what_the_parts_say(bits):
    sizes = (2_000, 12_800, 32_000, 40_000, 64_000, 400_000)
    kernels = [kernel(bits, size, seed) for seed, size in enumerate(sizes)]
    compressed = CompressedKernels()
    parts = [compressed.compress(i, data) for i, data in enumerate(kernels)]
    assert bytes_together(parts) == pytest.approx(deflated(b"".join(kernels)), rel=0.02)


def test_a_kernel_is_compressed_again_only_if_it_changes(monkeypatch):
    calls = []

    def counted(data, *before):
        calls.append(len(data))
        return deflated(data)

    monkeypatch.setattr(compressed_kernels.file_size, "deflated_bytes", counted)
    compressed = CompressedKernels()
    first = compressed.compress((0, 4), kernel(4, 6_400))
    assert compressed.compress((0, 4), kernel(4, 6_400)) is first
    assert len(calls) == 1
    changed = bytearray(kernel(4, 6_400))
    changed[100] ^= 1
    assert compressed.compress((0, 4), bytes(changed)).stored == bytes(changed)
    compressed.compress((0, 3), kernel(4, 6_400))
    assert len(calls) == 3
