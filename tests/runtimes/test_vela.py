import keras
import pytest
from helpers.frozen_models import every_bit_width_model, freeze, images, small_model

from dqmq_tf import export, flatbuffer, targets
from dqmq_tf.errors import ConversionError
from dqmq_tf.export import device_checks
from dqmq_tf.flatbuffer import TFLiteFile, lookup_tables
from dqmq_tf.runtimes import vela


@pytest.fixture(scope="module")
def int8_file(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("vela") / "small.tflite"
    export.convert(small, path, io_dtype="int8", data=images(small), verify=False)
    return path.read_bytes()


def test_int4_weights_are_refused(tmp_path):
    qmodel = freeze(small_model(), {"conv": 4}, target="android_small")
    path = tmp_path / "model.tflite"
    export.convert(qmodel, path, verify=False)
    with pytest.raises(ConversionError, match="'w0' is INT4, which crashes Vela.*'ethos_u'"):
        vela.compile_file(path.read_bytes())


def test_lookup_tables_are_refused(int8_file):
    coded = lookup_tables.compress(TFLiteFile(int8_file), {"w0": 6})
    with pytest.raises(ConversionError, match="only TFLite Micro has.*'ethos_u'"):
        vela.compile_file(coded)


def test_files_of_several_networks_are_refused(int8_file):
    model = flatbuffer.read(int8_file)
    model.subgraphs.append(model.subgraphs[0])
    with pytest.raises(ConversionError, match="2 subgraphs"):
        vela.compile_file(flatbuffer.write(model))


def test_a_missing_vela_is_named(int8_file, monkeypatch):
    monkeypatch.setattr(vela, "program", lambda: None)
    with pytest.raises(ImportError, match="pip install ethos-u-vela"):
        vela.compile_file(int8_file)


def test_a_file_is_checked_for_vela_even_without_vela(int8_file, monkeypatch):
    monkeypatch.setattr(vela, "program", lambda: None)
    target = targets.get("ethos_u")
    file = TFLiteFile(int8_file)
    assert device_checks.examine(file, target) == device_checks.DeviceFacts()
    file.model.subgraphs.append(file.model.subgraphs[0])
    file.edited()
    with pytest.raises(ConversionError, match="2 subgraphs"):
        device_checks.examine(file, target)


def test_conversion_reports_what_vela_made_of_the_file(tmp_path):
    model, bits = every_bit_width_model()
    qmodel = freeze(model, bits, target="ethos_u")
    found = export.convert(qmodel, tmp_path / "model.tflite", verify=False).vela
    assert found.cpu_operators == 0
    assert found.npu_operators > 20
    assert 0 < found.weight_bytes < found.flash_bytes < found.size_bytes
    assert found.sram_bytes > 0


def test_vela_does_not_run_for_other_targets(small_file):
    assert small_file[1].vela is None


def test_vela_compresses_fewer_bits_to_fewer_bytes(tmp_path):
    inputs = x = keras.Input((8, 8, 32), name="image")
    for name in ("first", "second"):
        x = keras.layers.Conv2D(64, 3, activation="relu", name=name)(x)
    model = keras.Model(inputs, keras.layers.Flatten()(x))
    weights = []
    for bits in (2, 4, 8):
        qmodel = freeze(model, {"first": bits, "second": bits}, target="ethos_u")
        report = export.convert(qmodel, tmp_path / "model.tflite", verify=False)
        weights.append(report.vela.weight_bytes)
    count = sum(w.count for w in report.weights)
    # The compressed weights take little more than their bits.
    assert weights[0] < 0.35 * count < weights[1] < 0.6 * count < weights[2] < 1.05 * count


def test_the_error_contains_the_message_of_vela(int8_file):
    with pytest.raises(ConversionError, match="Vela ended with"):
        vela.compile_file(int8_file, accelerator="ethos-u99")
