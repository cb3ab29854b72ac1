import numpy as np
import pytest

from dqmq_tf.flatbuffer import bit_packing


@pytest.mark.parametrize("bits", [2, 4])
def test_packed_int2_and_int4_unpack_to_the_same_integers(bits):
    pack = {2: bit_packing.pack_int2, 4: bit_packing.pack_int4}[bits]
    unpack = {2: bit_packing.unpack_int2, 4: bit_packing.unpack_int4}[bits]
    integers = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), 33)
    packed = pack(integers)
    assert packed.size == -(-33 * bits // 8)
    np.testing.assert_array_equal(unpack(packed, 33), integers)


def test_the_first_integer_is_in_the_lowest_bits():
    assert bit_packing.pack_int4([1, -2]).tolist() == [0xE1]
    assert bit_packing.pack_int2([1, -1, 0, -2]).tolist() == [0b10_00_11_01]


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_indices_unpack_to_the_same_integers(bits):
    indices = np.random.default_rng(1).integers(0, 2**bits, 37)
    packed = bit_packing.pack_indices(indices, bits)
    assert packed.size == -(-37 * bits // 8)
    np.testing.assert_array_equal(bit_packing.unpack_indices(packed, 37, bits), indices)


def test_the_first_index_is_in_the_highest_bits():
    assert bit_packing.pack_indices([1, 2, 3], 3).tolist() == [0b001_010_01, 0b1_0000000]


def test_entropy_is_that_of_the_byte_values():
    assert bit_packing.byte_entropy(b"") == -1.0
    assert bit_packing.byte_entropy(b"aaaa") == 0.0
    assert bit_packing.byte_entropy(b"abab") == pytest.approx(1.0)
    assert bit_packing.byte_entropy(bytes(range(256))) == pytest.approx(8.0)
