"""Integers of fewer than eight bits packed into bytes, in the layouts that runtimes read."""

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
Int8Array = npt.NDArray[np.int8]


def pack_int4(integers: npt.ArrayLike) -> UInt8Array:
    """Packs integers as TFLite's INT4: two's complement, the first of each pair in the low half.

    Args:
        integers: Integers from -8 to 7, of any shape.

    Returns:
        A uint8 array of half the length, rounded up.
    """
    return _pack_low_first(integers, 4)


def unpack_int4(data: npt.ArrayLike, count: int) -> Int8Array:
    """Reverses `pack_int4`.

    Args:
        data: Packed bytes.
        count: Number of integers.

    Returns:
        An int8 array of shape `(count,)`.
    """
    return _unpack_low_first(data, count, 4)


def pack_int2(integers: npt.ArrayLike) -> UInt8Array:
    """Packs integers as TFLite's INT2: two's complement, the first of four in the lowest bits.

    Args:
        integers: Integers from -2 to 1, of any shape.

    Returns:
        A uint8 array of a quarter of the length, rounded up.
    """
    return _pack_low_first(integers, 2)


def unpack_int2(data: npt.ArrayLike, count: int) -> Int8Array:
    """Reverses `pack_int2`.

    Args:
        data: Packed bytes.
        count: Number of integers.

    Returns:
        An int8 array of shape `(count,)`.
    """
    return _unpack_low_first(data, count, 2)


def pack_indices(indices: npt.ArrayLike, bit_width: int) -> UInt8Array:
    """Packs unsigned integers as TFLite Micro's lookup tables do, most significant bit first.

    Args:
        indices: Integers from 0 to `2**bit_width - 1`, of any shape.
        bit_width: Bits per integer, 1 to 8.

    Returns:
        A uint8 array. Zeros fill up the last byte.

    Example:

    >>> pack_indices([1, 2, 3], 3)  # 001 010 011
    array([ 41, 128], dtype=uint8)
    """
    numbers = np.asarray(indices, np.uint8).reshape(-1, 1)
    return np.packbits(np.unpackbits(numbers, axis=1)[:, 8 - bit_width :])


def unpack_indices(data: npt.ArrayLike, count: int, bit_width: int) -> UInt8Array:
    """Reverses `pack_indices`.

    Args:
        data: Packed bytes.
        count: Number of integers.
        bit_width: Bits per integer, 1 to 8.

    Returns:
        A uint8 array of shape `(count,)`.
    """
    bits = np.unpackbits(np.asarray(data, np.uint8), count=count * bit_width)
    bits = np.pad(bits.reshape(count, bit_width), ((0, 0), (8 - bit_width, 0)))
    return np.packbits(bits, axis=1).reshape(-1)


def byte_entropy(data: bytes) -> float:
    """Returns the entropy of the byte values, 0 to 8 bits per byte, or -1 for no bytes."""
    if not data:
        return -1.0
    counts = np.bincount(np.frombuffer(data, np.uint8))
    shares = counts[counts > 0] / len(data)
    return float(-(shares * np.log2(shares)).sum())


def _pack_low_first(integers: npt.ArrayLike, bit_width: int) -> UInt8Array:
    per_byte = 8 // bit_width
    flat = np.asarray(integers).astype(np.int8).reshape(-1).view(np.uint8) & (2**bit_width - 1)
    rows = np.pad(flat, (0, -flat.size % per_byte)).reshape(-1, per_byte)
    shifted = rows << (np.arange(per_byte, dtype=np.uint8) * np.uint8(bit_width))
    return np.bitwise_or.reduce(shifted, axis=1, dtype=np.uint8)


def _unpack_low_first(data: npt.ArrayLike, count: int, bit_width: int) -> Int8Array:
    shifts = np.arange(0, 8, bit_width, dtype=np.uint8)
    fields = (np.asarray(data, np.uint8).reshape(-1, 1) >> shifts) & (2**bit_width - 1)
    values = fields.reshape(-1)[:count].astype(np.int8)
    sign = 2 ** (bit_width - 1)
    return np.where(values >= sign, values - 2 * sign, values).astype(np.int8)
