import dataclasses
import json

import keras
import pytest
import rich
from helpers.frozen_models import every_bit_width_model, freeze, images, small_model

from dqmq_tf import export, flatbuffer, targets
from dqmq_tf.config import Budget
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
    message = "needs Vela, which is not installed: pip install ethos-u-vela"
    with pytest.raises(ImportError, match=f"Compiling for Ethos-U {message}"):
        vela.compile_file(int8_file)
    with pytest.raises(ImportError, match=f"Budget vela_cycles {message}"):
        device_checks.check_vela_budget(Budget(vela_cycles=9), None)


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
    # Vela counts whole numbers of bytes and cycles, so layers and sum agree.
    assert sum(layer.cycles for layer in found.layers) == found.cycles > 0
    assert sum(layer.flash_bytes for layer in found.layers) == found.flash_bytes
    assert max(layer.sram_bytes for layer in found.layers) <= found.sram_bytes
    flash = {layer.name: layer.flash_bytes for layer in found.layers}
    assert set(bits) <= set(flash)
    dense = [flash[f"dense{b}"] for b in range(2, 9)]
    assert dense == sorted(dense) and dense[0] < 0.5 * dense[-1]
    # All 16x16 convolutions compute as much, whatever their bits.
    macs = {layer.macs for layer in found.layers if layer.name.startswith("conv")}
    assert macs == {8 * 8 * 3 * 3 * 16 * 16}


def _composite_model():
    """Layers that Vela fuses, splits into many operators, or leaves to the CPU."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(inputs)
    y = keras.layers.Conv2D(8, 3, padding="same", name="second")(x)
    x = keras.layers.Add(name="sum")([x, y])
    x = keras.layers.LayerNormalization(name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(4, activation="softmax", name="head")(x))


def test_convert_verify_and_inspect_report_cycles_sram_and_flash_of_each_layer(tmp_path, capsys):
    path, qmodel = tmp_path / "model.tflite", freeze(_composite_model(), target="ethos_u")
    converted = export.convert(qmodel, path)
    by_name = {layer.name: layer for layer in converted.vela.layers}
    assert ["first", "second", "sum", "pool", "head"] == [
        n for n in by_name if n in ("first", "second", "sum", "pool", "head")
    ]
    assert "SOFTMAX" not in by_name["head_activation"].operators
    assert by_name["head_activation"].cycles > by_name["head"].cycles
    # The layer norm computes in floating point, on the CPU.
    assert (by_name["norm"].processor, by_name["norm"].operators) == ("CPU", "QUANTIZE")
    float_layers = [n for n, layer in by_name.items() if layer.processor == "CPU"]
    assert 5 < len(float_layers) <= converted.vela.cpu_operators
    assert sum(layer.cycles for layer in converted.vela.layers) == converted.vela.cycles
    assert sum(layer.flash_bytes for layer in converted.vela.layers) == converted.vela.flash_bytes
    verified = export.verify(qmodel, path, images(qmodel))
    assert verified.vela == converted.vela
    inspected = export.inspect_file(path)
    # The file itself names the layers with weights only.
    assert {"first", "second", "head"} <= {layer.name for layer in inspected.vela.layers}
    assert inspected.vela.cycles == converted.vela.cycles
    for report in (converted, verified, inspected):
        data = json.loads(report.to_json())
        assert data["vela"]["cycles"] == converted.vela.cycles
        assert [layer["cycles"] for layer in data["vela"]["layers"]] == [
            layer.cycles for layer in converted.vela.layers
        ]
        rich.print(report)
        printed = capsys.readouterr().out
        assert "Compiled by Vela" in printed and f"{converted.vela.cycles:,}" in printed
    faster = export.inspect_file(path, accelerator="ethos-u55-256").vela
    assert faster.accelerator == "ethos-u55-256"
    assert faster.cycles != converted.vela.cycles
    with pytest.raises(ValueError, match="accelerator='ethos-u99'.*ethos-u55-128"):
        export.inspect_file(path, accelerator="ethos-u99")


def test_inspect_asks_vela_about_a_file_of_another_converter(int8_file, tmp_path):
    model, path = flatbuffer.read(int8_file), tmp_path / "foreign.tflite"
    model.metadata = None
    path.write_bytes(flatbuffer.write(model))
    assert export.inspect_file(path).vela is None
    found = export.inspect_file(path, accelerator="ethos-u55-128").vela
    assert found.cycles == sum(layer.cycles for layer in found.layers) > 0
    # Nothing in such a file says which layer computes a tensor.
    names = {flatbuffer.text(tensor.name) for tensor in model.subgraphs[0].tensors}
    assert {layer.name for layer in found.layers if layer.cycles} <= names


def test_the_npu_is_part_of_the_target(tmp_path):
    target = dataclasses.replace(
        targets.get("ethos_u"), name="ethos_u85", accelerator="ethos-u85-256"
    )
    qmodel = freeze(small_model(), target=target)
    found = export.convert(qmodel, tmp_path / "model.tflite", verify=False).vela
    assert found.accelerator == "ethos-u85-256"
    with pytest.raises(ValueError, match="accelerator='ethos-u99' is none.*ethos-u55-128"):
        dataclasses.replace(target, accelerator="ethos-u99")


def test_a_file_is_compiled_once_for_each_npu(int8_file, monkeypatch):
    first = vela.compile_file(int8_file)[1]
    monkeypatch.setattr(vela.subprocess, "run", None)
    assert vela.compile_file(int8_file)[1] == first
    with pytest.raises(TypeError):
        vela.compile_file(int8_file, accelerator="ethos-u55-32")


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
