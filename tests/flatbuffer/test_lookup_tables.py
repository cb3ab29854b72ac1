import numpy as np
import pytest
from helpers.frozen_models import TABLES, every_bit_width_model, freeze, images
from tflite_micro.tensorflow.lite.micro import compression as tflm
from tflite_micro.tensorflow.lite.micro.compression import spec

from dqmq_tf import export, flatbuffer
from dqmq_tf.errors import ConversionError, VerificationError
from dqmq_tf.export import device_checks
from dqmq_tf.flatbuffer import TFLiteFile, editing, lookup_tables
from dqmq_tf.flatbuffer.huffman import Code
from dqmq_tf.lowering import number_check
from dqmq_tf.lowering.lowered_model import lower_model
from dqmq_tf.runtimes import tflite_micro


def with_table_byte(contents, name, position, value):
    """Returns a file in which one byte of the tables of a coded tensor is changed."""
    model = flatbuffer.read(contents)
    _, table = lookup_tables.coded_tensors(model, model.subgraphs[0])[name]
    data = flatbuffer.constant(model, table).copy()
    data[position] = value
    editing.set_constant(model, table, data)
    return flatbuffer.write(model)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """LoweredModel and INT8 file of `every_bit_width_model`, and the bits of each weight tensor."""
    model, bits = every_bit_width_model()
    qmodel = freeze(model, bits, target="ethos_u")
    path = tmp_path_factory.mktemp("plain") / "model.tflite"
    export.convert(qmodel, path, data=images(model), verify=False)
    lowered = lower_model(qmodel, 0)
    widths = {
        f"w{number}": weights.bit_width
        for number, weights in enumerate(lowered.weights)
        if weights.bit_width < 8
    }
    return lowered, TFLiteFile.load(path), widths


@pytest.fixture(scope="module")
def compressed(plain):
    return lookup_tables.compress(plain[1], plain[2])


def test_decompressing_gives_back_the_weights_of_every_bit_width_and_kind_of_layer(
    plain, compressed
):
    lowered, file, widths = plain
    assert len(widths) == 6 * 3 + 1  # and the head, which has 6 bits
    assert set(widths.values()) == set(range(2, 8))
    uncompressed = lookup_tables.decompress(compressed.contents)
    figures, messages = number_check.differences(flatbuffer.read(uncompressed), lowered)
    assert not messages
    assert figures["different"] == 0
    assert figures["integers"] == sum(w.integers.size for w in lowered.weights)
    # But for the order of its buffers, it is the file that was compressed.
    kept = [
        sorted(bytes(b.data) for b in flatbuffer.read(c).buffers if b.data is not None)
        for c in (uncompressed, file.contents)
    ]
    assert kept[0] == kept[1]


def test_tflite_micro_decodes_the_weights_and_computes_the_same_bits(compressed):
    device_checks.check_bit_exact(compressed)


@pytest.fixture(scope="module")
def huffman_coded(plain):
    """All weights in Huffman codes, those of 8 bits too: one for each bit-width, and mixed ones."""
    lowered, file, _ = plain
    integers = {f"w{n}": weights.integers for n, weights in enumerate(lowered.weights)}
    codes = {
        name: Code.of(values if int(name[1:]) % 2 else np.arange(-127, 128))
        for name, values in integers.items()
    }
    return lookup_tables.compress(file, codes)


def test_tflite_micro_decodes_huffman_codes_of_every_bit_width(plain, huffman_coded):
    lowered = plain[0]
    model = huffman_coded.model
    coded = lookup_tables.coded_tensors(model, model.subgraphs[0])
    assert len(coded) == len(lowered.weights)
    assert {w.bit_width for w in lowered.weights} == set(range(2, 9))
    assert {lookup_tables.coding_of(model, table) for _, table in coded.values()} == {"huffman"}
    device_checks.check_bit_exact(huffman_coded)
    figures, messages = number_check.differences(
        lookup_tables.decompress_file(huffman_coded).model, lowered
    )
    assert not messages and figures["different"] == 0


def test_a_wrong_word_is_detected(huffman_coded, monkeypatch):
    uncompressed = lookup_tables.decompress_file(huffman_coded)
    changed = huffman_coded.copy()
    words, _ = lookup_tables.coded_tensors(changed.model, changed.model.subgraphs[0])["w5"]
    data = flatbuffer.constant(changed.model, words).copy()
    data[len(data) // 2] ^= 0x10
    editing.set_constant(changed.model, words, data)
    monkeypatch.setattr(lookup_tables, "decompress_file", lambda file: uncompressed)
    with pytest.raises(VerificationError, match=r"decodes \d+ of \d+ integers of 'w5'"):
        device_checks.check_bit_exact(changed)


@pytest.mark.parametrize("position,value", [(1, 9), (4, 2), (5, 0x31), (5, 0xF0)])
def test_corrupt_huffman_tables_are_refused(huffman_coded, position, value):
    changed = with_table_byte(huffman_coded.contents, "w5", position, value)
    with pytest.raises(ConversionError, match="coded weights are corrupt"):
        lookup_tables.decompress(changed)


def test_integers_without_a_word_are_refused(plain):
    with pytest.raises(ConversionError, match="'w2' cannot be Huffman-coded.*no word for"):
        lookup_tables.compress(plain[1], {"w2": Code.of([0, 1])})


def test_tables_are_shared_and_indices_take_their_bits(plain, compressed):
    model, widths = compressed.model, plain[2]
    coded = lookup_tables.coded_tensors(model, model.subgraphs[0])
    assert set(coded) == set(widths)
    sizes = {t.name: int(t.shape[0]) for pair in coded.values() for t in pair}
    # One header for each number of bits and axis of the channels.
    tables = {table.name: table for _, table in coded.values()}
    assert len(tables) == 6 * 2
    for weights, bits in ((w, widths.get(f"w{n}")) for n, w in enumerate(plain[0].weights)):
        if bits is None:
            continue
        name = next(n for n in coded if plain[0].weights[int(n[1:])] is weights)
        assert sizes[coded[name][0].name] == -(-weights.integers.size * bits // 8)
        assert sizes[coded[name][1].name] == 16 + 2**bits
    for data in (flatbuffer.constant(model, table) for table in tables.values()):
        assert data[6] == 0  # the distance between two channels' tables


def test_a_table_that_decodes_to_other_weights_is_detected(plain, compressed, monkeypatch):
    # The header now has a distance between the tables of two channels.
    changed = compressed.copy()
    model = changed.model
    _, table = lookup_tables.coded_tensors(model, model.subgraphs[0])["w0"]
    uncompressed = lookup_tables.decompress_file(compressed)
    data = flatbuffer.constant(model, table).copy()
    data[6] = 1
    editing.set_constant(model, table, data)
    monkeypatch.setattr(lookup_tables, "decompress_file", lambda file: uncompressed)
    with pytest.raises(VerificationError, match=r"decodes \d+ of 2304 integers of 'w0'"):
        device_checks.check_bit_exact(changed)


def test_outputs_that_differ_from_the_uncompressed_file_are_detected(compressed, monkeypatch):
    changed = lookup_tables.decompress_file(compressed).copy()
    model = changed.model
    for tensor in model.subgraphs[0].tensors:
        if flatbuffer.text(tensor.name).startswith("b"):
            values = flatbuffer.constant(model, tensor).copy()
            editing.set_constant(model, tensor, values + 5000)
    monkeypatch.setattr(lookup_tables, "decompress_file", lambda file: changed)
    with pytest.raises(VerificationError, match="computes something else"):
        device_checks.check_bit_exact(compressed)


def test_litert_loads_the_uncompressed_file_only(compressed):
    from ai_edge_litert.interpreter import Interpreter

    with pytest.raises(RuntimeError, match="TFLM_DECODE"):
        Interpreter(model_content=compressed.contents).allocate_tensors()
    uncompressed = lookup_tables.decompress(compressed.contents)
    Interpreter(model_content=uncompressed).allocate_tensors()


def test_weights_that_two_operators_read_are_decoded_for_each(plain):
    file = plain[1].copy()
    model, part = file.model, file.model.subgraphs[0]
    convolutions = [o for o in part.operators if flatbuffer.operator_name(model, o) == "CONV_2D"]
    first, second = convolutions[:2]
    second.inputs = np.array([second.inputs[0], first.inputs[1], second.inputs[2]], np.int32)
    editing.drop_unused_tensors(model, part)
    both = lookup_tables.compress(file, {"w0": 2})
    decodes = [
        o
        for o in both.model.subgraphs[0].operators
        if flatbuffer.operator_name(both.model, o) == "CUSTOM"
    ]
    assert len(decodes) == 2
    device_checks.check_bit_exact(both)
    twin = lookup_tables.decompress_file(both).model
    weights = [
        int(o.inputs[1])
        for o in twin.subgraphs[0].operators
        if flatbuffer.operator_name(twin, o) == "CONV_2D"
    ]
    assert weights[0] == weights[1]


def test_a_file_without_tables_is_returned_as_it_is(plain):
    assert lookup_tables.compress(plain[1], {}) is plain[1]
    assert lookup_tables.decompress_file(plain[1]) is plain[1]
    assert lookup_tables.decompress(plain[1].contents) is plain[1].contents


def test_integers_beyond_their_bits_are_refused(plain):
    with pytest.raises(ConversionError, match="'w2' holds integers beyond 1.*2 bits"):
        lookup_tables.compress(plain[1], {"w2": 2})


def test_names_that_are_not_weights_are_refused(plain):
    with pytest.raises(ConversionError, match="No operator has 'w99'"):
        lookup_tables.compress(plain[1], {"w99": 2})


def test_one_table_on_weights_with_a_scale_per_channel_is_refused(compressed):
    model = flatbuffer.read(compressed.contents)
    _, table = lookup_tables.coded_tensors(model, model.subgraphs[0])["w0"]
    data = flatbuffer.constant(model, table).copy()
    data[5] |= 0xF0
    editing.set_constant(model, table, data)
    with pytest.raises(ConversionError, match="'w0'.*one table per tensor.*past the table"):
        lookup_tables.decompress(flatbuffer.write(model))


@pytest.mark.parametrize("position,value", [(0, 1), (1, 9), (5, 0), (6, 100)])
def test_corrupt_tables_are_refused(compressed, position, value):
    changed = with_table_byte(compressed.contents, "w0", position, value)
    with pytest.raises(ConversionError, match="coded weights are corrupt"):
        lookup_tables.decompress(changed)


def test_tables_of_tflite_micros_own_compressor_are_read(plain):
    contents, model = plain[1].contents, plain[1].model
    index = [flatbuffer.text(t.name) for t in model.subgraphs[0].tensors].index("w0")
    method = spec.LookUpTableCompression(2, mode=spec.PerChannel(axis=0))
    theirs = bytes(tflm.compress(contents, [spec.Tensor(0, index, [method])]))
    twin = flatbuffer.read(lookup_tables.decompress(theirs))
    convolution = next(
        o for o in twin.subgraphs[0].operators if flatbuffer.operator_name(twin, o) == "CONV_2D"
    )
    found = flatbuffer.constant(twin, twin.subgraphs[0].tensors[convolution.inputs[1]])
    np.testing.assert_array_equal(found, plain[0].weights[0].integers)


@pytest.fixture(scope="module")
def microcontroller():
    model, bits = every_bit_width_model()
    return freeze(model, bits, target=TABLES)


def test_without_tflite_micro_no_file_is_written(microcontroller, tmp_path, monkeypatch):
    monkeypatch.setattr(tflite_micro, "is_installed", lambda: False)
    with pytest.raises(ImportError, match=r"pip install --pre tflite-micro"):
        export.convert(microcontroller, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_a_file_that_tflite_micro_decodes_differently_is_not_written(
    microcontroller, tmp_path, monkeypatch
):
    run = tflite_micro.run

    def one_integer_wrong(contents, inputs, tensors=()):
        found = run(contents, inputs, tensors)
        for values in list(found.tensors.values())[-1:]:
            values.flat[0] += 1
        return found

    monkeypatch.setattr(tflite_micro, "run", one_integer_wrong)
    with pytest.raises(VerificationError, match="decodes 1 of 4096 integers of"):
        export.convert(microcontroller, tmp_path / "model.tflite", verify=False)
    assert not list(tmp_path.iterdir())
