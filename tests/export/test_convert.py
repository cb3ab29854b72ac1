import dataclasses
import importlib.metadata
import json
import os
import sys

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf
from helpers.frozen_models import batch_norm, freeze, images, small_model

import dqmq_tf
from dqmq_tf import export, flatbuffer
from dqmq_tf.errors import ConversionError, VerificationError
from dqmq_tf.flatbuffer.file_size import deflated_bytes
from dqmq_tf.lowering import write_file
from dqmq_tf.lowering.lowered_model import lower_model


def test_report(every_bit_width):
    qmodel, path, report = every_bit_width
    data = path.read_bytes()
    assert report.size_bytes == len(data)
    assert report.download_bytes == deflated_bytes(data)
    assert {w.name: w.bit_width for w in report.weights}["dense5"] == 5
    first = {"microcontroller": "tflite-micro", "ethos_u": "tflite-micro"}
    first = first.get(qmodel.target.name, "litert-xnnpack")
    assert [row.runtime for row in report.verification.rows] == [first]
    rows, count = {w.name: w for w in report.weights}, 3 * 3 * 16 * 16
    int4 = qmodel.target.name in ("android_small", "microcontroller")
    assert rows["conv4"].stored_bytes == (count // 2 if int4 else count)
    tables = qmodel.target.name == "microcontroller"
    coding = "table" if tables else None
    assert rows["conv3"].coding == rows["conv7"].coding == coding
    assert rows["conv7"].stored_bytes == (count * 7 // 8 if tables else count)
    assert rows["conv7"].container == "INT8"
    assert report.io_dtype == ("float32" if qmodel.target.name.startswith("android") else "int8")
    assert (report.arena_bytes is not None) == tables
    assert json.loads(report.to_json())["target"] == qmodel.target.name
    console = rich.console.Console(width=120, record=True, file=open(os.devnull, "w"))
    console.print(report)
    text = console.export_text()
    assert "conv4" in text
    assert ("INT8, table" in text) == ("Tensor arena" in text) == tables


def test_a_profile_that_does_not_exist_freezes_nothing(tmp_path):
    qmodel = dqmq_tf.quantize_model(small_model())
    qmodel.calibrate(images(qmodel))
    for write, name in ((export.convert, "m.tflite"), (export.export_qonnx, "m.onnx")):
        with pytest.raises(ValueError, match="profile=3 does not exist.*index from 0 to 0"):
            write(qmodel, tmp_path / name, profile=3)
        with pytest.raises(ValueError, match="profile=0.0 does not exist.*index from 0 to 0"):
            write(qmodel, tmp_path / name, profile=0.0)
        assert qmodel.frozen_profiles == 0
    qmodel.freeze(profiles=2)
    with pytest.raises(ValueError, match="profile=2 does not exist.*index from 0 to 1"):
        export.convert(qmodel, tmp_path / "m.tflite", profile=2)


def test_tensorflow_may_be_installed_under_another_name(small, tmp_path, monkeypatch):
    version = importlib.metadata.version

    def without_tensorflow(name):
        return version("no-such-package" if name == "tensorflow" else name)

    monkeypatch.setattr(importlib.metadata, "version", without_tensorflow)
    versions = export.convert(small, tmp_path / "m.tflite", verify=False).package_versions
    assert versions["tensorflow"] == tf.__version__
    assert versions["litert-quantizer"] == version("litert-quantizer")


def test_names_are_short_and_unique(every_bit_width):
    model = flatbuffer.read(every_bit_width[1].read_bytes())
    names = [flatbuffer.text(t.name) for t in model.subgraphs[0].tensors]
    assert len(set(names)) == len(names)
    assert max(len(name) for name in names if name not in ("image", "head")) <= 5


def test_signature(small, small_file):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(small_file[0])).get_signature_runner("serving_default")
    x = images(small)[:1]
    (name,) = runner.get_output_details()
    np.testing.assert_allclose(runner(image=x)[name], small.predict(x, verbose=0), atol=3 / 256)


def test_freezes_by_itself_and_leaves_one_file(tmp_path):
    qmodel = dqmq_tf.quantize_model(small_model(), budget=dqmq_tf.Budget(download_bytes=10**6))
    qmodel.calibrate(images(qmodel))
    assert not qmodel.frozen_profiles
    export.convert(qmodel, tmp_path / "model.tflite")
    assert qmodel.frozen_profiles == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.tflite"]


def test_a_model_of_mixed_precision_converts(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        qmodel = dqmq_tf.quantize_model(small_model(), budget=dqmq_tf.Budget(download_bytes=10**6))
        qmodel.calibrate(images(qmodel))
        report = export.convert(qmodel, tmp_path / "model.tflite")
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert report.verification.different_numbers == 0


def test_negative_and_zero_gamma(tmp_path):
    keras.utils.set_random_seed(8)
    inputs = keras.Input((8, 8, 3))
    norm = batch_norm(8)
    x = keras.layers.ReLU()(norm(keras.layers.Conv2D(4, 3, use_bias=False)(inputs)))
    x = keras.layers.DepthwiseConv2D(3)(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    norm.gamma.assign([-1.0, 0.0, 0.7, -0.2])
    report = export.convert(freeze(model), tmp_path / "model.tflite", data=images(model))
    assert report.verification.different_numbers == 0
    assert report.verification.largest_quanta <= 2


def test_int8_ends(small, tmp_path):
    path = tmp_path / "model.tflite"
    report = export.convert(small, path, io_dtype="int8", data=images(small))
    model = flatbuffer.read(path.read_bytes())
    part = model.subgraphs[0]
    ends = [part.tensors[i] for i in (*part.inputs, *part.outputs)]
    assert [flatbuffer.type_name(t) for t in ends] == ["INT8", "INT8"]
    names = {flatbuffer.operator_name(model, operator) for operator in part.operators}
    assert names.isdisjoint({"QUANTIZE", "DEQUANTIZE"})
    assert report.verification.largest_quanta <= 2
    assert export.verify(small, path, images(small)).different_numbers == 0


def test_each_profile_has_its_file(tmp_path):
    model = small_model()
    qmodel = dqmq_tf.quantize_model(model, budget=dqmq_tf.Budget(download_bytes=10**6))
    qmodel.calibrate(images(model))
    qmodel.freeze(profiles=2, data=images(model))
    for profile in range(2):
        path = tmp_path / f"profile{profile}.tflite"
        export.convert(qmodel, path, profile=profile, data=images(model))
        assert export.read_metadata(path)["profile"] == profile
        assert export.verify(qmodel, path, images(model)).different_numbers == 0


@pytest.mark.parametrize("kind", ["size_bytes", "download_bytes"])
def test_file_over_budget_is_refused(kind, small, tmp_path, monkeypatch):
    budget = dqmq_tf.Budget(**{kind: 100})
    monkeypatch.setattr(type(small), "budget", property(lambda self: budget))
    with pytest.raises(ConversionError, match=rf"\d,\d\d\d bytes .{kind}.*budget is 100"):
        export.convert(small, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


def test_failure_keeps_the_old_file(small, tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"old")

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        export.convert(small, path, verify=False)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.tflite"]


def test_file_that_departs_is_not_delivered(small, tmp_path, monkeypatch):
    monkeypatch.setattr(
        type(small), "__call__", lambda self, x, **kwargs: np.full((len(x), 4), [1, 0, 0, 0])
    )
    with pytest.raises(VerificationError, match="mean difference"):
        export.convert(small, tmp_path / "model.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("model.h5", ValueError, "must end in '.tflite'"),
        ("missing/model.tflite", FileNotFoundError, "missing"),
        ("folder.tflite", IsADirectoryError, "is a folder"),
    ],
)
def test_path_is_checked_first(name, error, message, small, tmp_path):
    (tmp_path / "folder.tflite").mkdir()
    with pytest.raises(error, match=message):
        export.convert(small, tmp_path / name)


def test_folder_that_cannot_be_written(small, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError("read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(PermissionError, match="cannot be written.*read-only"):
        export.convert(small, tmp_path / "model.tflite")


def test_target_without_runtime(small, tmp_path, monkeypatch):
    target = dqmq_tf.targets.get("simulation")
    monkeypatch.setattr(type(small), "target", property(lambda self: target))
    with pytest.raises(ConversionError, match="'simulation' has no runtime"):
        export.convert(small, tmp_path / "model.tflite")


def test_activations_of_fewer_bits(small, tmp_path, monkeypatch):
    given = small.precision()
    narrow = dqmq_tf.precision.Precision(
        weights=given.weights,
        activations={k: dataclasses.replace(v, bit_width=4) for k, v in given.activations.items()},
    )
    monkeypatch.setattr(type(small), "precision", lambda self, profile=0: narrow)
    with pytest.raises(ConversionError, match="has 4 bits.*8-bit activations"):
        export.convert(small, tmp_path / "model.tflite")


def test_unknown_io(small, tmp_path):
    with pytest.raises(ValueError, match="io_dtype='int16' must be one of 'float32', 'int8'"):
        export.convert(small, tmp_path / "model.tflite", io_dtype="int16")


def test_missing_quantizer_is_named(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "litert_quantizer", None)
    with pytest.raises(ImportError, match=r"pip install litert-quantizer"):
        export.convert(small, tmp_path / "model.tflite")


def wide_model():
    """11,520 weights. At the bits below, decoding them saves 2,000 bytes."""
    keras.utils.set_random_seed(3)
    how = {"bias_initializer": keras.initializers.RandomUniform(-1, 1, 5)}
    inputs = x = keras.Input((4, 4, 8), name="image")
    x = keras.layers.Conv2D(64, 3, padding="same", activation="relu", name="conv", **how)(x)
    x = keras.layers.Conv2D(96, 1, activation="relu", name="wide", **how)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(8, name="head", **how)(x), name="wide")


@pytest.mark.parametrize("decoder_bytes, uses", [(0, True), (600, True), (21_600, False)])
def test_the_firmware_is_the_file_and_the_decoder_if_the_file_uses_it(
    decoder_bytes, uses, tmp_path
):
    target = dataclasses.replace(
        dqmq_tf.targets.get("microcontroller"), decoder_bytes=decoder_bytes
    )
    qmodel = freeze(wide_model(), {"conv": 3, "wide": 2, "head": 6}, target=target)
    path = tmp_path / "model.tflite"
    report = export.convert(qmodel, path, verify=False)
    codings = {row.name: row.coding for row in report.weights}
    if uses:
        assert codings["conv"] == "table" and codings["wide"] == "huffman"
    else:
        assert set(codings.values()) == {None}
    assert report.decoder_bytes == (decoder_bytes if uses else 0)
    assert report.size_bytes == path.stat().st_size
    assert report.firmware_bytes == report.size_bytes + report.decoder_bytes
    # `summary` and the cost model count the same.
    bits = qmodel._parts.policy.assigned.numpy()[0]
    qmodel._training.keeper._learn_file_overhead(bits)
    counted = dqmq_tf.summary(qmodel)
    assert counted.cost == pytest.approx(report.firmware_bytes, abs=0.5)
    assert counted.decoder_bytes == report.decoder_bytes
    console = rich.console.Console(width=120, record=True, file=open(os.devnull, "w"))
    console.print(report)
    text = " ".join(console.export_text().split())
    flash = f"Flash: {report.firmware_bytes:,} bytes, the file of {report.size_bytes:,} and"
    assert (flash in text) == bool(report.decoder_bytes)
    assert (f"decoder {decoder_bytes:,}" in " ".join(str(counted).split())) == bool(
        report.decoder_bytes
    )


def test_profiles_pay_for_one_decoder_and_share_weights():
    target = dqmq_tf.targets.get("microcontroller")
    qmodel = freeze(wide_model(), {"conv": 3, "wide": 2, "head": 6}, target=target)
    one = lower_model(qmodel, 0)
    sums = [
        sum(s.size_bytes for s in write_file.storages_of(one, target, decoder).values())
        for decoder in (False, True)
    ]
    saved = sums[0] - sums[1]
    pays, does_not = (dataclasses.replace(target, decoder_bytes=saved + n) for n in (-1, 0))
    for profiles in ([one], [one, one]):
        assert write_file.uses_decoder(profiles, pays)
        assert not write_file.uses_decoder(profiles, does_not)
    # Other weights, which are stored beside the first: both save bytes.
    weights = [dataclasses.replace(w, integers=-w.integers) for w in one.weights]
    other = dataclasses.replace(one, weights=weights)
    assert write_file.uses_decoder([one, other], does_not)


def test_a_budget_counts_the_decoder(tmp_path):
    target = dataclasses.replace(dqmq_tf.targets.get("microcontroller"), decoder_bytes=600)
    qmodel = freeze(wide_model(), {"conv": 3, "wide": 2, "head": 6}, target=target)
    report = export.convert(qmodel, tmp_path / "model.tflite", verify=False)
    assert report.decoder_bytes == 600
    qmodel._parts.budget = dqmq_tf.Budget(size_bytes=report.firmware_bytes)
    export.convert(qmodel, tmp_path / "model.tflite", verify=False)
    qmodel._parts.budget = dqmq_tf.Budget(size_bytes=report.firmware_bytes - 1)
    with pytest.raises(
        ConversionError, match=r"bytes \(size_bytes, with its decoder of 600 bytes\)"
    ):
        export.convert(qmodel, tmp_path / "model.tflite", verify=False)
