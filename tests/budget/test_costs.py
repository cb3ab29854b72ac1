import dataclasses
import itertools
import math
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqmq_tf import targets
from dqmq_tf.budget import byte_allocation, costs
from dqmq_tf.flatbuffer import bit_packing, huffman
from dqmq_tf.graph.decision_points import ActivationPoint, WeightPoint

GRID = np.arange(2, 9, dtype="float32")
BITS = tuple(range(2, 9))


def activation(name, bit_widths=BITS, decided=None):
    decided = len(bit_widths) > 1 if decided is None else decided
    return ActivationPoint(
        name=name, slots=(), tensors=(), bit_widths=bit_widths, range="affine", decided=decided
    )


def weight(name, macs, source, shape=(3, 3, 2, 4), bit_widths=BITS, op_kind="conv"):
    return WeightPoint(
        name=f"{name}:kernel",
        path=name,
        variable="kernel",
        op_kind=op_kind,
        channel_axes=(len(shape) - 1,),
        shape=shape,
        macs=macs,
        input=source,
        bit_widths=bit_widths,
    )


ACTIVATIONS = [activation("image", (8,)), activation("a"), activation("b", (2, 4, 8))]
# The first layer reads a tensor of fixed bits, the last a float one, two share an input.
WEIGHTS = [
    weight("first", 100.0, 0),
    weight("second", 1000.0, 1),
    weight("third", 70.0, 1),
    weight("fourth", 400.0, 2),
    weight("last", 30.0, None),
]
INTEGERS = {
    (i, b): np.random.default_rng(i).integers(-(2 ** (b - 1)) + 1, 2 ** (b - 1), point.shape)
    for i, point in enumerate(WEIGHTS)
    for b in BITS
}


def make(kind, target="simulation", measured=True):
    model = costs.CostModel(kind, targets.get(target), ACTIVATIONS, WEIGHTS)
    if measured:
        model.measure(lambda i, b: INTEGERS[i, b])
    return model


def brute_force_bit_ops(weight_bits, activation_bits):
    bits = {0: 8, 1: activation_bits[0], 2: activation_bits[1], None: 32}
    return sum(p.macs * w * bits[p.input] for p, w in zip(WEIGHTS, weight_bits))


assignments = st.tuples(
    st.lists(st.sampled_from(BITS), min_size=5, max_size=5),
    st.tuples(st.sampled_from(BITS), st.sampled_from((2, 4, 8))),
)


def test_only_decided_activations_have_a_column():
    assert make("bit_ops").decided == [1, 2]


@settings(max_examples=30, deadline=None)
@given(chosen=assignments)
def test_exact_bit_costs_are_the_sum_over_layers(chosen):
    bit_ops = brute_force_bit_ops(*chosen)
    assert make("bit_ops").exact(*chosen) == pytest.approx(bit_ops)
    mean = (bit_ops / sum(p.macs for p in WEIGHTS)) ** 0.5
    assert make("mean_bit_width").exact(*chosen) == pytest.approx(mean)


@pytest.mark.parametrize("kind", ["bit_ops", "size_bytes"])
def test_the_smallest_cost_is_that_of_the_fewest_bits(kind):
    model = make(kind)
    assert model.smallest() == model.exact([2] * 5, (2, 2))


def test_uniform_bits_are_their_own_mean_bit_width():
    points = [activation("a")]
    layers = [weight("x", 10.0, 0), weight("y", 1.0, 0)]
    model = costs.CostModel("mean_bit_width", targets.get("simulation"), points, layers)
    for bits in BITS:
        assert model.exact([bits, bits], [bits]) == pytest.approx(bits)


def test_several_assignments_cost_their_mean_before_the_root_is_taken():
    several = [([2] * 5, (2, 2)), ([8] * 5, (8, 8)), ([3, 4, 5, 6, 7], (5, 4))]
    weights, activations = (np.array(part) for part in zip(*several))
    bit_ops = np.mean([brute_force_bit_ops(*one) for one in several])
    assert make("bit_ops").exact(weights, activations) == pytest.approx(bit_ops)
    mean = (bit_ops / sum(p.macs for p in WEIGHTS)) ** 0.5
    assert make("mean_bit_width").exact(weights, activations) == pytest.approx(mean)
    one_file = make("download_bytes")
    each = [one_file.exact(*one) for one in several]
    assert one_file.exact(weights, activations) == pytest.approx(np.mean(each))
    # Weights of one profile, activations of many samples.
    broadcast = make("bit_ops").exact(weights[0], activations)
    assert broadcast == pytest.approx(
        np.mean([brute_force_bit_ops(weights[0], row) for row in activations])
    )


@pytest.mark.parametrize("kind", ["bit_ops", "mean_bit_width", "size_bytes", "download_bytes"])
@pytest.mark.parametrize("target", ["simulation", "android_small"])
def test_costs_do_not_fall_as_bits_rise(kind, target):
    model = make(kind, target)
    base = [4] * 5
    for point in range(5):
        found = [model.exact(base[:point] + [b] + base[point + 1 :], (4, 4)) for b in BITS]
        if kind == "download_bytes":
            # Real bytes of a real compressor: a wiggle of a few bytes on 72 weights.
            assert np.all(np.diff(found) >= -6) and found[-1] >= found[0]
        else:
            assert np.all(np.diff(found) >= 0)
    for column, candidates in ((0, BITS), (1, (2, 4, 8))):
        found = []
        for b in candidates:
            bits = [4, 4]
            bits[column] = b
            found.append(model.exact(base, bits))
        if model.in_bytes:
            assert len(set(found)) == 1
        else:
            assert np.all(np.diff(found) > 0)


@pytest.mark.parametrize("kind", ["bit_ops", "mean_bit_width", "size_bytes", "download_bytes"])
@settings(max_examples=15, deadline=None)
@given(chosen=assignments)
def test_expectation_under_a_sure_decision_is_the_exact_cost(kind, chosen):
    model = make(kind, "android_small")
    weight_p = (np.array(chosen[0], "float32")[None, :, None] == GRID).astype("float32")
    tables = model.bytes.arrays(GRID) if model.in_bytes else (None, None)
    expected = model.expected(weight_p, np.array([chosen[1]], "float32"), GRID, *tables)
    assert float(expected) == pytest.approx(model.exact(*chosen), rel=1e-5)


def test_expected_bit_ops_are_the_mean_over_all_decisions():
    # Weights of one group and activations of a sample are drawn independently.
    rng = np.random.default_rng(0)
    model = make("bit_ops")
    weight_p = rng.dirichlet(np.ones(2), size=(1, 5))
    activation_p = rng.dirichlet(np.ones(2), size=2)
    pairs = (3, 6), (2, 8)
    total = 0.0
    for bits in itertools.product((2, 5), repeat=5):
        for a in itertools.product(pairs[0], pairs[1]):
            p = np.prod([weight_p[0, i, (2, 5).index(b)] for i, b in enumerate(bits)])
            p *= np.prod([activation_p[i, pairs[i].index(b)] for i, b in enumerate(a)])
            total += p * model.exact(bits, a)
    full = np.zeros((1, 5, 7), "float32")
    full[:, :, [0, 3]] = weight_p
    means = [[float(np.dot(p, pair)) for p, pair in zip(activation_p, pairs)]]
    found = model.expected(full, np.array(means, "float32"), GRID, None)
    assert float(found) == pytest.approx(total, rel=1e-5)


def test_expected_cost_of_groups_is_their_mean():
    model = make("bit_ops")
    weight_p = np.zeros((2, 5, 7), "float32")
    weight_p[0, :, 0] = weight_p[1, :, 6] = 1.0
    found = model.expected(weight_p, np.array([[2, 2], [8, 8]], "float32"), GRID, None)
    ends = model.exact([2] * 5, (2, 2)), model.exact([8] * 5, (8, 8))
    assert float(found) == pytest.approx(np.mean(ends), rel=1e-5)


@pytest.mark.parametrize("target,bits", [("android", 3), ("simulation", 4)])
def test_download_bytes_are_those_of_zlib(target, bits):
    model = make("download_bytes", target)
    for i in range(len(WEIGHTS)):
        # TFLite holds a convolution's kernel with the output channels first.
        raw = INTEGERS[i, bits].transpose(3, 0, 1, 2).astype("int8").tobytes()
        assert model.table[i][bits] == len(zlib.compress(raw, 9))


def test_int4_containers_hold_two_weights_a_byte():
    model = make("size_bytes", "android_small")
    assert [model.table[0][b] for b in BITS] == [36, 36, 36, 72, 72, 72, 72]
    assert set(make("size_bytes", "android").table[0].values()) == {72}
    other = costs.CostModel(
        "size_bytes",
        targets.get("microcontroller"),
        [activation("a", (8,))],
        [weight("d", 1.0, 0, shape=(3, 5), op_kind="dense"), weight("c", 1.0, 0, shape=(3, 5))],
    )
    other.measure(lambda i, b: np.zeros((3, 5), "int32"))
    assert other.table[0][4] == 15  # no INT4 matrix products there
    assert other.table[1][4] == 8  # 15 nibbles


def test_deflated_int4_weights_are_packed_before_they_are_compressed():
    model = make("download_bytes", "android_small")
    for i in range(len(WEIGHTS)):
        for bits in (2, 4):
            flat = INTEGERS[i, bits].transpose(3, 0, 1, 2).ravel().tolist()
            packed = bytes((a & 15) | ((b & 15) << 4) for a, b in zip(flat[::2], flat[1::2]))
            assert model.table[i][bits] == len(zlib.compress(packed, 9))


def test_table_array_has_zeros_where_a_bit_width_is_not_allowed():
    point = weight("gaps", 1.0, 0, bit_widths=(2, 4, 8))
    target = targets.get("android_small")
    model = costs.CostModel("size_bytes", target, [activation("a", (8,))], [point])
    model.measure(lambda i, b: np.zeros(point.shape))
    for array in model.bytes.arrays(GRID):
        np.testing.assert_array_equal(array, [[36, 0, 36, 0, 0, 0, 72]])
    assert make("bit_ops").table is None
    assert make("bit_ops").constant() == 0.0


@pytest.mark.parametrize("target", ["android", "android_small"])
def test_a_file_is_compressed_in_one_stream(target):
    model = make("download_bytes", target)
    bits, parts = [2, 2, 2, 8, 2], []
    for i, b in enumerate(bits):
        flat = INTEGERS[i, b].transpose(3, 0, 1, 2).ravel().tolist()
        if target == "android_small" and b <= 4:
            flat = [(x & 15) | ((y & 15) << 4) for x, y in zip(flat[::2], flat[1::2])]
        parts.append(bytes(x & 255 for x in flat))
    # As they come in the file, see `test_kernels_lie_in_a_file_as_they_are_weighed`.
    parts = sorted(parts, key=bit_packing.byte_entropy, reverse=True)
    expected = len(zlib.compress(b"".join(parts), 9)) + model.constant()
    reversed_ = len(zlib.compress(b"".join(parts[::-1]), 9)) + model.constant()
    assert target != "android" or reversed_ != expected
    assert model.of_file(bits, (4, 4)) == expected


@pytest.mark.parametrize("kind", ["bit_ops", "mean_bit_width", "size_bytes"])
def test_other_costs_of_a_file_are_those_of_the_table(kind):
    model = make(kind, "android_small")
    bits = [2, 4, 3, 8, 5]
    assert model.of_file(bits, (4, 4)) == model.exact(bits, (4, 4))


def test_weights_left_in_floating_point_take_four_bytes_each():
    target = targets.get("android")
    plain, with_float = (
        costs.CostModel("size_bytes", target, ACTIVATIONS, WEIGHTS, float_weights=n)
        for n in (0, 10)
    )
    assert with_float.constant() - plain.constant() == 40


@pytest.mark.parametrize("kind", ["size_bytes", "download_bytes"])
def test_a_file_tells_what_it_takes_beside_its_weights(kind):
    model = make(kind)
    low, high = [2] * 5, [8] * 5
    before = model.of_file(high, []) - model.of_file(low, [])
    model.learn_file(12_345, low, [])
    assert model.of_file(low, []) == pytest.approx(12_345)
    assert model.of_file(high, []) == pytest.approx(12_345 + before)


def test_a_layer_with_one_scale_has_one_scale_s_bytes():
    target = targets.get("microcontroller")

    def cost(axes, kind):
        point = dataclasses.replace(
            weight("d", 1.0, 0, shape=(6, 40), op_kind="dense"), channel_axes=axes
        )
        model = costs.CostModel(kind, target, ACTIVATIONS, [point])
        model.measure(lambda i, b: np.arange(240).reshape(6, 40) % (2 ** (b - 1)))
        return model

    one, each = cost((), "size_bytes"), cost((1,), "size_bytes")
    assert each.constant() - one.constant() == pytest.approx(39 * 14.1)
    # Only with one scale does the INT4 kernel take the weights.
    assert one.table[0][4] == 120 and each.table[0][4] > 120
    # The file holds output channels first, however many scales there are.
    assert cost((), "download_bytes").table[0][8] == cost((1,), "download_bytes").table[0][8]


LARGE = [
    weight("large", 1.0, 0, shape=(3, 3, 32, 64)),
    weight("wide", 1.0, 1, shape=(1, 1, 64, 96)),
    weight("small", 1.0, 1, shape=(3, 3, 1, 4)),
]


def with_decoder(kind, decoder_bytes, codings=("table",)):
    target = dataclasses.replace(
        targets.get("microcontroller"), decoder_bytes=decoder_bytes, codings=codings
    )
    model = costs.CostModel(kind, target, ACTIVATIONS, LARGE)
    model.measure(numbers)
    return model


def numbers(index, bits):
    """The integers of a kernel in `LARGE`."""
    kernel = np.random.default_rng(index).normal(0, 0.4, LARGE[index].shape)
    return np.rint(kernel.clip(-1, 1) * (2 ** (bits - 1) - 1)).astype("int32")


def stored(model, bits):
    return [kernel.stored for kernel in model.bytes.compressed(bits)]


decoded = st.tuples(*[st.sampled_from(BITS)] * 3)


@settings(max_examples=30, deadline=None)
@given(bits=decoded, decoder_bytes=st.sampled_from((0, 900, 4_000, 21_600)))
def test_a_file_pays_for_the_decoder_only_if_the_firmware_is_then_smaller(bits, decoder_bytes):
    model = with_decoder("size_bytes", decoder_bytes)
    storages = [
        [
            model.target.storage("conv", b, math.prod(point.shape), decoder=decoder).size_bytes
            for point, b in zip(LARGE, bits)
        ]
        for decoder in (False, True)
    ]
    plain, coded = map(sum, storages)
    found = model.exact(bits, []) - model.constant()
    assert found == pytest.approx(min(plain, coded + decoder_bytes), abs=1e-6)
    assert model.of_file(bits, []) == model.exact(bits, [])
    uses = coded + decoder_bytes < plain
    assert model.bytes.decoder_bytes(bits) == (decoder_bytes if uses else 0)
    assert [row[b] for row, b in zip(model.bytes.table_of(bits), bits)] == storages[uses]


def test_a_decoder_is_worth_its_bytes_for_few_bits_only():
    model = with_decoder("size_bytes", 4_000)
    assert model.bytes.decoder_bytes([2, 2, 2]) == 4_000
    assert model.bytes.decoder_bytes([4, 4, 4]) == 0
    none = with_decoder("size_bytes", 0)
    assert none.exact([2, 2, 2], []) == model.exact([2, 2, 2], []) - 4_000
    assert none.exact([4, 4, 4], []) == model.exact([4, 4, 4], [])


@pytest.mark.parametrize("kind", ["size_bytes", "download_bytes"])
@settings(max_examples=20, deadline=None)
@given(several=st.lists(decoded, min_size=1, max_size=3))
def test_the_expectation_of_sure_decisions_is_the_exact_cost_with_the_decoder(kind, several):
    model = with_decoder(kind, 4_000)
    weight_p = (np.array(several, "float32")[..., None] == GRID).astype("float32")
    bits = np.full((len(several), 2), 8, "float32")
    expected = model.expected(weight_p, bits, GRID, *model.bytes.arrays(GRID))
    assert float(expected) == pytest.approx(model.exact(several, []), rel=1e-5)


def test_a_download_does_not_contain_the_decoder_but_what_it_decodes():
    model = with_decoder("download_bytes", 4_000)
    assert model.bytes.uses_decoder([2, 2, 2]) and not model.bytes.uses_decoder([4, 4, 4])
    assert model.bytes.decoder_bytes([2, 2, 2]) == 0
    # Packed indices are smaller than integers, before they are compressed.
    whole = sum(math.prod(point.shape) for point in LARGE)
    assert sum(map(len, stored(model, [2, 2, 2]))) < 0.26 * whole
    assert sum(map(len, stored(model, [7, 7, 7]))) == whole
    never = with_decoder("download_bytes", 10**6)
    assert sum(map(len, stored(never, [2, 2, 2]))) == whole / 2


def test_a_huffman_coded_kernel_costs_its_words_and_tables():
    model = with_decoder("size_bytes", 0, targets.CODINGS)
    tables, bits = with_decoder("size_bytes", 0), [4, 3, 2]
    words = stored(with_decoder("download_bytes", 0, targets.CODINGS), bits)
    for i, b in enumerate(bits):
        coded = len(words[i]) + len(huffman.Code.of(numbers(i, b)).tables)
        coded += targets.TABLE_BYTES + targets.CODE_BYTES
        is_coded = i < 2
        otherwise = tables.bytes.tables[1][i][b]
        assert model.bytes.tables[1][i][b] == (coded if is_coded else otherwise)
        assert not is_coded or coded < otherwise
        assert model.bytes.tables[0][i][b] == tables.bytes.tables[0][i][b]
    assert model.exact(bits, []) < tables.exact(bits, [])


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("decoder_bytes", [1_500, 4_000, 21_600])
def test_the_best_bits_are_found_whether_or_not_they_need_the_decoder(share, decoder_bytes):
    model = with_decoder("size_bytes", decoder_bytes)
    losses = [{b: 4.0**-b * factor for b in BITS} for factor in (1.0, 3.0, 0.5)]
    low, high = model.exact([2] * 3, []), model.exact([8] * 3, [])
    limit = low + share * (high - low)
    within = [b for b in itertools.product(BITS, repeat=3) if model.exact(b, []) <= limit]

    def added(bits):
        return sum(row[b] for row, b in zip(losses, bits))

    found = byte_allocation._best_bits(model, losses, limit)
    assert model.of_file(found, []) <= limit
    assert added(found) == pytest.approx(min(map(added, within)), rel=1e-3)
