"""Estimates what kernels take in a file under deflate, without compressing all of them again.

A network of a phone has millions of weights. Each of them is compressed once for each bit-width, and
again only if its integers change. Files are then added up from these parts.
"""

import dataclasses
import hashlib
import math
from collections.abc import Hashable, Iterable

from dqmq_tf.flatbuffer import bit_packing, file_size

# How far back deflate finds what it has seen before. A kernel that takes more bytes gains next to
# nothing from the other kernels in the file.
_WINDOW = 32_768
# Of small kernels, the smallest are compressed together, up to this many bytes. They gain most from it.
_TOGETHER = 131_072
# Up to this many bytes, a kernel is compressed as a whole. Of larger ones, pieces are compressed, and
# the result is scaled up. The first bytes of each piece are what deflate has seen before, and are not
# counted: without them the estimates of few bits would be 2 to 3 % too high. Level 9 takes as long for
# 2 bits as for all others together, and its time grows faster than the pieces.
_WHOLE = 65_536
_PIECES, _BEFORE_BYTES, _COUNTED_BYTES = 8, 3072, 3072


@dataclasses.dataclass(frozen=True)
class CompressedKernel:
    """A kernel under deflate.

    Attributes:
        alone: The bytes that it takes if nothing else is in the file, an estimate for large kernels.
        stored: Its bytes before compression. None if they are more than deflate's window.
    """

    alone: float
    stored: bytes | None


class CompressedKernels:
    """Compresses kernels, and remembers the results as long as the kernels do not change."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[bytes, CompressedKernel]] = {}

    def compress(self, key: Hashable, stored: bytes) -> CompressedKernel:
        """Returns a kernel under deflate.

        Args:
            key: What distinguishes the kernel and its form from all others.
            stored: The bytes of the kernel in the file.
        """
        digest = hashlib.blake2b(stored).digest()
        known_digest, known = self._known.get(key, (None, None))
        if known is None or digest != known_digest:
            is_small = len(stored) <= _WINDOW
            known = CompressedKernel(_deflated(stored), stored if is_small else None)
            self._known[key] = digest, known
        return known


def bytes_together(kernels: Iterable[CompressedKernel]) -> float:
    """Returns the bytes of kernels in one file.

    Small kernels share a compressor. They are compressed by falling entropy, as they lie in the file:
    its buffers are sorted by rising entropy and written from the last to the first. In a network with
    many of them only the smallest are, because this is done for each choice of bits.

    Args:
        kernels: The `CompressedKernel` of each kernel in the file.
    """
    total, small_bytes = 0.0, 0.0
    small: list[bytes] = []
    for kernel in sorted(kernels, key=_size):
        small_bytes += _size(kernel)
        if kernel.stored is not None and small_bytes <= _TOGETHER:
            small.append(kernel.stored)
        else:
            total += kernel.alone
    small.sort(key=bit_packing.byte_entropy, reverse=True)
    return total + file_size.deflated_bytes(b"".join(small))


def _size(kernel: CompressedKernel) -> float:
    """Returns the bytes of a kernel before compression, infinity for large ones."""
    return math.inf if kernel.stored is None else len(kernel.stored)


def _deflated(stored: bytes) -> float:
    """Returns the bytes of a kernel under deflate, those of a large one from pieces of it."""
    if len(stored) <= _WHOLE:
        return float(file_size.deflated_bytes(stored))
    room = len(stored) - _BEFORE_BYTES - _COUNTED_BYTES
    middles = [_BEFORE_BYTES + i * room // (_PIECES - 1) for i in range(_PIECES)]
    before = b"".join(stored[middle - _BEFORE_BYTES : middle] for middle in middles)
    counted = b"".join(stored[middle : middle + _COUNTED_BYTES] for middle in middles)
    return file_size.deflated_bytes(counted, before) * len(stored) / len(counted)
