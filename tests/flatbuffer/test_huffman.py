"""Huffman codes hold what was encoded, in close to as few bits as the entropy allows."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqmq_tf.flatbuffer import huffman
from dqmq_tf.flatbuffer.code_sharing import Codable, choose_codes
from dqmq_tf.flatbuffer.huffman import Code, coded_bytes, decode


def weights(bits, count, seed=0):
    """Integers of a bit-width, distributed like trained weights."""
    largest = 2 ** (bits - 1) - 1
    values = np.random.default_rng(seed).normal(0, max(0.4 * largest, 0.7), count)
    return np.rint(values).clip(-largest, largest).astype(np.int8)


def entropy_bits(integers):
    counts = np.unique(integers, return_counts=True)[1]
    return float((counts * np.log2(integers.size / counts)).sum())


def round_trip(integers, code):
    data = code.encode(integers)
    assert len(data) == code.payload(integers) and len(data) % 4 == 0
    return decode(data, code.tables, code.first_bits, integers.size)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-128, 127), min_size=1, max_size=60), st.integers(1, 40))
def test_integers_of_any_distribution_return(values, repeats):
    integers = np.array(values + values[:1] * repeats**2, np.int8)
    np.testing.assert_array_equal(round_trip(integers, Code.of(integers)), integers)


@pytest.mark.parametrize("bits", range(2, 9))
def test_trained_weights_take_little_more_than_their_entropy(bits):
    integers = weights(bits, 9216)
    code = Code.of(integers)
    np.testing.assert_array_equal(round_trip(integers, code), integers)
    size = code.payload(integers) + len(code.tables)
    # Words of whole bits, tables, and bits that fill up the last word.
    assert entropy_bits(integers) / 8 <= size
    assert size <= 1.05 * entropy_bits(integers) / 8 + 4 * 2**bits
    assert coded_bytes(integers, less_than=10**9) == size
    assert coded_bytes(integers, less_than=int(entropy_bits(integers) / 8)) is None


def test_rare_integers_have_words_of_two_tables():
    integers = np.repeat(
        np.arange(-40, 41), (1.25 ** -np.abs(np.arange(-40, 41)) * 4000).astype(int) + 1
    )
    code = Code.of(integers)
    lengths = [length for _, length in code.lengths]
    assert max(lengths) > code.first_bits
    np.testing.assert_array_equal(round_trip(integers.astype(np.int8), code), integers)


@pytest.mark.parametrize("counts", [(1, 1, 2, 4, 8), (5, 5, 5, 5), (1, 1, 1, 1, 100, 3), (9, 1)])
@pytest.mark.parametrize("limit", [3, 4])
def test_no_code_of_limited_words_is_shorter(counts, limit):
    found = huffman._limited_lengths(counts, limit)
    assert max(found) <= limit
    best = min(
        sum(n * c for n, c in zip(lengths, counts))
        for lengths in itertools.product(range(1, limit + 1), repeat=len(counts))
        if sum(2.0**-n for n in lengths) <= 1
    )
    assert sum(n * c for n, c in zip(found, counts)) == best


def test_an_integer_without_a_word_is_refused():
    with pytest.raises(ValueError, match="no word for 3"):
        Code.of([0, 1, 1, 2]).encode([0, 3])


def test_corrupt_tables_and_words_are_refused():
    integers = weights(5, 500)
    code = Code.of(integers)
    data, tables = code.encode(integers), code.tables
    with pytest.raises(ValueError, match="end after"):
        decode(data[: len(data) // 2], tables, code.first_bits, 500)
    with pytest.raises(ValueError, match="cut short"):
        decode(data, tables[:-8], code.first_bits, 500)
    endless = np.zeros(2**8, "<u2").tobytes()
    with pytest.raises(ValueError, match="longer than 15 bits|cut short"):
        decode(data, endless, 4, 500)


def test_similar_tensors_share_a_code_and_those_that_gain_nothing_have_none():
    tensors = {
        **{f"w{i}": weights(4, 3000, i) for i in range(3)},
        "wide": weights(7, 6000),
        "flat": np.random.default_rng(0).integers(-8, 8, 4000).astype(np.int8),
        "tiny": weights(3, 20),
    }
    sizes = {"wide": 6000, "flat": 2000, "tiny": 8} | {f"w{i}": 1500 for i in range(3)}
    codable = {n: Codable(integers=v, other_bytes=sizes[n]) for n, v in tensors.items()}
    codes = choose_codes(codable, tensor_bytes=100, code_bytes=86)
    assert set(codes) == {"w0", "w1", "w2", "wide"}
    assert codes["w0"] is codes["w1"] is codes["w2"] and codes["wide"] != codes["w0"]
    spent = sum(c.payload(tensors[n]) + 100 for n, c in codes.items())
    spent += sum(len(c.tables) + 86 for c in set(codes.values()))
    alone = {n: Code.of(tensors[n]) for n in codes}
    assert spent < sum(c.payload(tensors[n]) + len(c.tables) + 186 for n, c in alone.items())
    assert spent < sum(sizes[n] for n in codes)
    assert choose_codes({}, 100, 86) == {}
