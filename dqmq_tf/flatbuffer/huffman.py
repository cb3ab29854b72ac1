"""Huffman codes as TFLite Micro's operator DECODE reads them.

Each weight is written as a prefix code of 1 to 15 bits, most significant bit first. The decoder reads
as many bits as index its first table. An entry of the table holds either a weight and how many of
these bits its code has, or how many further bits index which second table. Short codes for frequent
weights make a tensor smaller than its bit-width says: weights concentrate around 0.

The tables take two bytes for each entry, so a code is better if its longest words are not too long.
`Code.of` finds the code with the smallest sum of both, among codes whose length is limited (by the
package-merge algorithm; Larmore and Hirschberg 1990, "A fast algorithm for optimal length-limited
Huffman codes").
"""

import dataclasses
import functools
from typing import Self

import numpy as np
import numpy.typing as npt

_LONGEST = 15
_FOUND, _VALUE_MASK, _COUNT_SHIFT = 0x8000, 0x07FF, 11
# Words may be this many bits longer than they need to be to tell all weights apart.
_EXTRA_BITS = range(0, 5)
# The decoder reads 32 bits at a time, and as many ahead of a word as index its first table.
_WORD_BYTES = 4


@dataclasses.dataclass(frozen=True)
class Code:
    """A prefix code for the integers of a tensor, and the tables of its decoder.

    Attributes:
        lengths: `(integer, length of its word in bits)`, ascending by length, then by integer.
        first_bits: The number of bits that index the first table.
    """

    lengths: tuple[tuple[int, int], ...]
    first_bits: int

    @classmethod
    def of(cls, integers: npt.ArrayLike) -> Self:
        """Returns the code that stores integers and its own tables in the fewest bytes.

        Args:
            integers: Integers from -128 to 127, of any shape, at least one.
        """
        values, counts = np.unique(np.asarray(integers), return_counts=True)
        return cls(*_best_code(tuple(values.tolist()), tuple(counts.tolist())))

    @property
    def tables(self) -> bytes:
        """The decoder's tables, 16-bit numbers with the low byte first."""
        first_bits = self.first_bits
        # A code of one word leaves half of its table unused.
        value, length = self.lengths[0]
        table = np.full(2**first_bits, _FOUND | length << _COUNT_SHIFT | (value & 255), np.uint32)
        second: list[np.ndarray] = []
        start = len(table)
        words = self.words()
        for prefix in sorted({w >> (n - first_bits) for _, w, n in words if n > first_bits}):
            bits = max(
                n - first_bits
                for _, w, n in words
                if n > first_bits and w >> (n - first_bits) == prefix
            )
            table[prefix] = (bits - 1) << _COUNT_SHIFT | (start - prefix)
            second.append(np.zeros(2**bits, np.uint32))
            for value, word, length in words:
                if length > first_bits and word >> (length - first_bits) == prefix:
                    _enter(second[-1], value, word, length - first_bits, bits)
            start += 2**bits
        for value, word, length in words:
            if length <= first_bits:
                _enter(table, value, word, length, first_bits)
        return np.concatenate([table, *second]).astype("<u2").tobytes()

    def payload(self, integers: npt.ArrayLike) -> int:
        """Returns the bytes of the words of integers, without the tables."""
        length_of = dict(self.lengths)
        values, counts = np.unique(np.asarray(integers), return_counts=True)
        bits = sum(length_of[v] * c for v, c in zip(values.tolist(), counts.tolist()))
        last = length_of[int(np.asarray(integers).reshape(-1)[-1])]
        return self._bytes(bits, last)

    def words(self) -> list[tuple[int, int, int]]:
        """Returns `(integer, word, length)` of each integer; words ascend (a canonical code)."""
        words, word, last = [], 0, 0
        for value, length in self.lengths:
            word <<= length - last
            words.append((value, word, length))
            word, last = word + 1, length
        return words

    def encode(self, integers: npt.ArrayLike) -> bytes:
        """Returns the words of all integers.

        Args:
            integers: Integers that the code has words for, of any shape.

        Returns:
            Whole 32-bit words, with all bits that the decoder reads ahead.
        """
        flat = np.asarray(integers).reshape(-1).astype(int)
        word_of, length_of = np.zeros(256, int), np.zeros(256, int)
        for value, word, length in self.words():
            word_of[value], length_of[value] = word, length
        lengths, words = length_of[flat], word_of[flat]
        if not lengths.all():
            raise ValueError(f"the code has no word for {flat[lengths == 0][0]}")
        ends = np.cumsum(lengths)
        bits = np.zeros(8 * self._bytes(int(ends[-1]), int(lengths[-1])), np.uint8)
        for position in range(int(lengths.max())):
            has_bit = lengths > position
            places = (ends - lengths)[has_bit] + position
            bits[places] = words[has_bit] >> (lengths[has_bit] - 1 - position) & 1
        return np.packbits(bits).tobytes()

    def _bytes(self, bit_count: int, last_length: int) -> int:
        longest = self.lengths[-1][1]
        read = bit_count - last_length + max(self.first_bits, longest)
        return -(-read // (8 * _WORD_BYTES)) * _WORD_BYTES


def coded_bytes(integers: np.ndarray, less_than: int) -> int | None:
    """Returns the bytes of a tensor's words and of a code of its own.

    Args:
        integers: Integers from -128 to 127, of any shape.
        less_than: A number of bytes. None is returned at once if the entropy of the integers alone
            takes as many.
    """
    counts = np.unique(integers, return_counts=True)[1]
    entropy_bits = float((counts * np.log2(integers.size / counts)).sum())
    if not integers.size or entropy_bits / 8 >= less_than:
        return None
    code = Code.of(integers)
    return code.payload(integers) + len(code.tables)


def decode(data: bytes, tables: bytes, first_bits: int, count: int) -> np.ndarray:
    """Reads integers as TFLite Micro does.

    Args:
        data: The words.
        tables: The decoder's tables.
        first_bits: The number of bits that index the first table.
        count: The number of integers.

    Returns:
        An int8 array of shape `(count,)`.

    Raises:
        ValueError: If the tables or the words are corrupt.
    """
    values, lengths = _flat(np.frombuffer(tables, "<u2").astype(int), first_bits)
    window = (len(values) - 1).bit_length()
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).astype(int)
    size = len(bits)
    bits = np.pad(bits, (0, window))
    ahead = np.zeros(size, int)
    for position in range(window):
        ahead = ahead << 1 | bits[position : position + size]
    # The place after the word that begins at each place.
    after = (np.arange(size) + lengths[ahead]).tolist()
    places: list[int] = []
    place = 0
    for _ in range(count):
        if place >= size:
            raise ValueError(f"the words end after {len(places)} of {count} weights")
        places.append(place)
        place = after[place]
    return values[ahead[places]].astype(np.int8)


def _flat(table: np.ndarray, first_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the integer and the length of the word that begins with each pattern of bits."""
    entries: dict[tuple[int, int], tuple[int, int]] = {}

    def walk(start: int, bits: int, prefix: int, depth: int) -> None:
        if depth + bits > _LONGEST:
            raise ValueError("a word is longer than 15 bits")
        for index in range(2**bits):
            if start + index >= len(table):
                raise ValueError("a table is cut short")
            entry = int(table[start + index])
            field = entry >> _COUNT_SHIFT & 15
            whole = prefix << bits | index
            if entry & _FOUND:
                if field > bits:
                    raise ValueError("a word is longer than the bits that were read")
                entries[whole, depth + bits] = entry & 255, depth + field
            else:
                walk(start + index + (entry & _VALUE_MASK), field + 1, whole, depth + bits)

    walk(0, first_bits, 0, 0)
    window = max(depth for _, depth in entries)
    values, lengths = np.zeros(2**window, np.uint8), np.zeros(2**window, int)
    for (prefix, depth), (value, length) in entries.items():
        part = slice(prefix << (window - depth), (prefix + 1) << (window - depth))
        values[part], lengths[part] = value, length
    return values.view(np.int8), lengths


def _enter(table: np.ndarray, value: int, word: int, length: int, bits: int) -> None:
    """Enters a word into all places of a table of `2**bits` entries that begin with it."""
    last = word & (2**length - 1)
    places = slice(last << (bits - length), (last + 1) << (bits - length))
    table[places] = _FOUND | length << _COUNT_SHIFT | (value & 255)


@functools.lru_cache(maxsize=4096)
def _best_code(
    values: tuple[int, ...], counts: tuple[int, ...]
) -> tuple[tuple[tuple[int, int], ...], int]:
    """Returns `(lengths, first_bits)` of the code with the fewest bytes in all."""
    if len(values) == 1:
        return ((values[0], 1),), 1
    fewest = (len(values) - 1).bit_length()
    best: tuple[int, tuple[tuple[int, int], ...], int] | None = None
    for limit in sorted({min(fewest + extra, _LONGEST) for extra in _EXTRA_BITS}):
        lengths = _limited_lengths(counts, limit)
        payload = sum(n * c for n, c in zip(lengths, counts))
        code = tuple(sorted(zip(values, lengths), key=lambda pair: (pair[1], pair[0])))
        for first_bits in range(1, max(lengths) + 1):
            entries = _entries(sorted(lengths), first_bits)
            bits = payload + 16 * entries
            if entries <= _VALUE_MASK and (best is None or bits < best[0]):
                best = bits, code, first_bits
    assert best is not None, "A code of 8 bits has 256 entries."
    return best[1], best[2]


def _entries(lengths: list[int], first_bits: int) -> int:
    """Returns the number of entries of all tables of a canonical code with ascending lengths."""
    deepest: dict[int, int] = {}
    word = last = 0
    for length in lengths:
        word <<= length - last
        if length > first_bits:
            deepest[word >> (length - first_bits)] = length - first_bits
        word, last = word + 1, length
    return 2**first_bits + sum(2**bits for bits in deepest.values())


def _limited_lengths(counts: tuple[int, ...], limit: int) -> list[int]:
    """Returns the lengths of the words of an optimal code, at most `limit` bits each."""
    leaves = sorted((count, (index,)) for index, count in enumerate(counts))
    packages: list[tuple[int, tuple[int, ...]]] = []
    for _ in range(limit):
        merged = sorted([*leaves, *packages], key=lambda package: package[0])
        pairs = zip(merged[::2], merged[1::2])
        packages = [(a + b, one + other) for (a, one), (b, other) in pairs]
    chosen = packages[: len(counts) - 1]
    occurrences = np.concatenate([package for _, package in chosen])
    return np.bincount(occurrences, minlength=len(counts)).tolist()
