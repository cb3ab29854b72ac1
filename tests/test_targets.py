import dataclasses
import json

import pytest

from dqmq_tf import targets
from dqmq_tf.flatbuffer import operator_versions


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_fields_of_a_target_are_consistent(name):
    target = targets.get(name)
    assert target.name == name
    assert targets.get(target) is target
    for bits in (target.weight_bits, target.activation_bits):
        assert list(bits) == sorted(set(bits))
        assert set(bits) <= set(range(2, 9))
    assert bool(target.runtimes) == target.deployable
    assert target.int2_ops <= target.int4_ops
    # Every runtime computes on int8 activations; fewer bits exist in simulation only.
    assert target.activation_bits == (8,) or not target.deployable
    assert bool(target.refusals) == target.deployable
    # LiteRT cannot load lookup tables.
    assert not target.table_ops or target.runtimes == ("tflite-micro", "litert-reference")
    assert (target.oldest_tflite is None) == ("litert-xnnpack" not in target.runtimes)


@pytest.mark.parametrize("name", ["android", "android_small"])
def test_the_oldest_runtime_is_the_first_with_all_operator_versions(name):
    target = targets.get(name)
    releases = [operator_versions.oldest_release(*pair) for pair in target.operator_versions]
    assert target.oldest_tflite == max(releases, key=lambda r: [int(n) for n in r.split(".")])


def test_the_error_for_an_unknown_target_lists_the_known_ones():
    with pytest.raises(ValueError, match="'iphone'.*android, android_small, microcontroller"):
        targets.get("iphone")


@pytest.mark.parametrize(
    "name,op_kind,bits,container",
    [
        ("android", "conv", 2, "INT8"),
        ("android", "dense", 2, "INT8"),
        ("android_small", "conv", 4, "INT4"),
        ("android_small", "conv", 2, "INT4"),
        ("android_small", "dense", 3, "INT4"),
        ("android_small", "dense", 2, "INT2"),
        ("android_small", "conv", 5, "INT8"),
        ("android_small", "other", 4, "INT4"),
        ("microcontroller", "depthwise", 3, "INT4"),
        ("android_small", "embedding", 4, "INT4"),
        ("android_small", "embedding", 2, "INT4"),
        ("android_small", "transpose", 4, "INT8"),
        ("microcontroller", "dense", 4, "INT4"),
        ("microcontroller", "embedding", 4, "INT8"),
        ("microcontroller", "other", 2, "INT8"),
        ("ethos_u", "conv", 2, "INT8"),
        ("simulation", "conv", 2, "INT8"),
    ],
)
def test_weights_are_stored_in_the_smallest_container_that_the_kernel_reads(
    name, op_kind, bits, container
):
    target = targets.get(name)
    assert target.container(op_kind, bits) == container
    stored = target.storage(op_kind, bits, 10)
    assert stored == targets.Storage(
        container=container, coding=None, size_bytes=-(-10 * int(container[3:]) // 8)
    )


def test_a_dense_layer_with_a_scale_per_channel_is_int8_on_microcontrollers():
    target = targets.get("microcontroller")
    assert target.container("dense", 4, per_channel=False) == "INT4"
    assert target.container("dense", 4, per_channel=True) == "INT8"
    assert target.storage("dense", 4, 10, per_channel=True).container == "INT8"
    assert target.container("conv", 4, per_channel=True) == "INT4"


def test_some_kinds_of_op_have_one_scale_for_the_whole_tensor():
    assert {name: sorted(target.per_tensor) for name, target in targets.TARGETS.items()} == {
        "android": ["embedding"],
        "android_small": [],
        "microcontroller": ["dense", "embedding", "other"],
        "ethos_u": ["embedding", "other"],
        "simulation": [],
    }


@pytest.mark.parametrize("bits,table", [(2, True), (3, True), (4, False), (7, True), (8, False)])
def test_a_microcontroller_stores_weights_in_the_smallest_form(bits, table):
    target, count = targets.get("microcontroller"), 9216
    stored = target.storage("conv", bits, count)
    assert (stored.coding == "table") == table
    assert stored.container == ("INT4" if bits == 4 else "INT8")
    native = count * (4 if bits <= 4 else 8) // 8
    assert stored.size_bytes == min(
        native, count * bits // 8 + targets.TABLE_BYTES if table else native
    )
    # For a small tensor, the operator that decodes it takes more bytes than the table saves.
    assert target.storage("conv", bits, 64).coding is None
    assert target.storage("other", bits, count).coding is None
    plain = target.storage("conv", bits, count, decoder=False)
    assert (plain.coding, plain.size_bytes) == (None, native)


def test_a_huffman_code_is_chosen_if_its_words_and_tables_are_smaller():
    target, count = targets.get("microcontroller"), 9216
    table = count * 3 // 8 + targets.TABLE_BYTES
    room = table - targets.TABLE_BYTES - targets.CODE_BYTES
    assert target.storage("conv", 3, count, huffman_bytes=room).coding == "table"
    coded = target.storage("conv", 3, count, huffman_bytes=room - 1)
    assert coded == targets.Storage(container="INT8", coding="huffman", size_bytes=table - 1)
    # Weights of 8 bits have no lookup table.
    assert target.storage("conv", 8, count, huffman_bytes=8000).coding == "huffman"
    assert target.storage("conv", 8, count, huffman_bytes=8000, decoder=False).coding is None
    assert target.storage("embedding", 8, count, huffman_bytes=8000).coding is None
    tables_only = dataclasses.replace(target, codings=("table",))
    assert tables_only.storage("conv", 3, count, huffman_bytes=10).coding == "table"


def test_more_bits_never_need_less_storage():
    for target in targets.TARGETS.values():
        for op_kind in targets.OP_KINDS:
            for count in (1, 27, 500, 10_000):
                sizes = [target.storage(op_kind, b, count).size_bytes for b in range(2, 9)]
                assert sizes == sorted(sizes)
                assert (len(set(sizes)) == 1) or target.size_varies


def test_the_decoder_counts_where_tables_exist():
    for target in targets.TARGETS.values():
        assert (target.decoder_bytes > 0) == bool(target.table_ops)
    target = targets.get("microcontroller")
    assert target.decoder_bytes == 6_360
    assert target.pays_decoder(50_000, 43_639) and not target.pays_decoder(50_000, 43_640)
    has_it = dataclasses.replace(target, decoder_bytes=0)
    assert has_it.pays_decoder(50_000, 49_999) and not has_it.pays_decoder(50_000, 50_000)
    restored = targets.get(json.loads(json.dumps(targets.serialize(has_it))))
    assert restored == has_it
    before = targets.without_decoder_cost(target)
    assert before == dataclasses.replace(target, decoder_bytes=0, codings=("table",))


def test_the_stored_size_depends_on_bits_only_if_the_target_has_smaller_containers():
    varies = {name for name, target in targets.TARGETS.items() if target.size_varies}
    assert varies == {"android_small", "microcontroller"}


@pytest.mark.parametrize("name", [*targets.TARGETS, "own"])
def test_a_target_can_be_restored_from_json(name):
    own = dataclasses.replace(targets.get("microcontroller"), name="own", weight_bits=(3, 8))
    target = own if name == "own" else targets.get(name)
    data = targets.serialize(target)
    assert isinstance(data, str) == (name != "own")
    assert targets.get(json.loads(json.dumps(data))) == target


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"activation_bits": (8, 16)}, "activation_bits holds 16.*int16.*INT4 depthwise weights"),
        ({"weight_bits": (1, 8)}, "weight_bits holds 1"),
        ({"int4_ops": frozenset({"lstm"})}, "int4_ops holds 'lstm'.*conv, depthwise, dense, trans"),
        ({"per_tensor": frozenset({"lstm"})}, "per_tensor holds 'lstm'"),
        ({"io_dtype": "int16"}, "io_dtype='int16' is none of"),
        ({"decoder_bytes": -1}, "decoder_bytes=-1 is negative"),
        ({"codings": ("table", "zip")}, "codings=.*'zip'.*holds others than"),
    ],
)
def test_a_target_with_unknown_bits_ops_or_types_is_an_error(wrong, message):
    with pytest.raises(ValueError, match=f"Target 'mine': {message}"):
        targets.Target(name="mine", description="", **wrong)
