"""Integers of fewer than eight bits in bytes, as runtimes read them."""

import numpy as np


def pack_int4(integers):
    """Two's-complement nibbles, the first of each pair in the low half, as TFLite's INT4.

    Args:
        integers: Integers from -8 to 7.

    Returns:
        uint8 array of half the length, rounded up.
    """
    return _pack_low_first(integers, 4)


def unpack_int4(data, count):
    """Inverse of `pack_int4`: `count` integers as int8."""
    return _unpack_low_first(data, count, 4)


def pack_int2(integers):
    """Two's-complement pairs of bits, the first of four in the lowest, as TFLite's INT2.

    Args:
        integers: Integers from -2 to 1.

    Returns:
        uint8 array of a quarter of the length, rounded up.
    """
    return _pack_low_first(integers, 2)


def unpack_int2(data, count):
    """Inverse of `pack_int2`: `count` integers as int8."""
    return _unpack_low_first(data, count, 2)


def pack_indices(indices, bit_width):
    """Unsigned numbers one after another, most significant bit first, as TFLM's lookup tables.

    Args:
        indices: Integers from 0 to `2**bit_width - 1`.
        bit_width: Bits of each, 1 to 8.

    Returns:
        uint8 array; the last byte is filled up with zeros.

    Example:

    >>> pack_indices([1, 2, 3], 3)  # 001 010 011
    array([ 41, 128], dtype=uint8)
    """
    numbers = np.asarray(indices, np.uint8).reshape(-1, 1)
    return np.packbits(np.unpackbits(numbers, axis=1)[:, 8 - bit_width :])


def unpack_indices(data, count, bit_width):
    """Inverse of `pack_indices`: `count` numbers as uint8."""
    bits = np.unpackbits(np.asarray(data, np.uint8), count=count * bit_width)
    bits = np.pad(bits.reshape(count, bit_width), ((0, 0), (8 - bit_width, 0)))
    return np.packbits(bits, axis=1).reshape(-1)


def byte_entropy(data):
    """Returns the entropy of the distribution of byte values, in bits: 0 to 8; -1 for no bytes."""
    if not data:
        return -1.0
    counts = np.bincount(np.frombuffer(data, np.uint8))
    shares = counts[counts > 0] / len(data)
    return float(-(shares * np.log2(shares)).sum())


def _pack_low_first(integers, bit_width):
    per_byte = 8 // bit_width
    flat = np.asarray(integers).astype(np.int8).reshape(-1).view(np.uint8) & (2**bit_width - 1)
    rows = np.pad(flat, (0, -flat.size % per_byte)).reshape(-1, per_byte)
    shifted = rows << (np.arange(per_byte, dtype=np.uint8) * np.uint8(bit_width))
    return np.bitwise_or.reduce(shifted, axis=1, dtype=np.uint8)


def _unpack_low_first(data, count, bit_width):
    shifts = np.arange(0, 8, bit_width, dtype=np.uint8)
    fields = (np.asarray(data, np.uint8).reshape(-1, 1) >> shifts) & (2**bit_width - 1)
    values = fields.reshape(-1)[:count].astype(np.int8)
    sign = 2 ** (bit_width - 1)
    return np.where(values >= sign, values - 2 * sign, values).astype(np.int8)
