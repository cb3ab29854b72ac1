import json
import os
import pathlib

import pytest
from helpers.frozen_models import freeze, images, small_model

from dqmq_tf import export, targets
from dqmq_tf.errors import ConversionError
from dqmq_tf.export.artifacts import check_artifacts
from dqmq_tf.runtimes import tflite_micro


@pytest.fixture(scope="module")
def micro_model():
    return freeze(small_model(), {"conv": 3}, target="microcontroller")


def test_all_are_written(micro_model, tmp_path):
    path = tmp_path / "model.tflite"
    report = export.convert(micro_model, path, artifacts=("json", "c_array"))
    names = ["model.cc", "model.h", "model.json", "model.tflite"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names
    assert sorted(report.artifacts) == [str(tmp_path / name) for name in names[:3]]
    told = json.loads((tmp_path / "model.json").read_text())
    assert told["size_bytes"] == path.stat().st_size
    assert told["arena_bytes"] == report.arena_bytes == tflite_micro.arena_bytes(path.read_bytes())
    assert told["io_dtype"] == "int8"
    assert told["package_versions"]["tflite-micro"] == tflite_micro.version()
    assert told["weights"][0]["bit_width"] == 3
    header = (tmp_path / "model.h").read_text()
    assert f"kModelBytes = {report.size_bytes};" in header
    assert f"kArenaMeasuredBytes = {report.arena_bytes};" in header


def test_none_are_written_by_default(micro_model, tmp_path):
    report = export.convert(micro_model, tmp_path / "model.tflite", verify=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.tflite"]
    assert report.artifacts == ()


def test_a_failure_leaves_all_as_they_were(micro_model, tmp_path, monkeypatch):
    for name in ("model.tflite", "model.h"):
        (tmp_path / name).write_text("old")
    replace, calls = os.replace, []

    def fail_once(source, destination):
        calls.append(destination)
        if len(calls) == 3:
            raise OSError("disk full")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(OSError, match="disk full"):
        export.convert(micro_model, tmp_path / "model.tflite", verify=False, artifacts=("c_array",))
    found = {entry.name: entry.read_text() for entry in tmp_path.iterdir()}
    assert found == {"model.tflite": "old", "model.h": "old"}


@pytest.mark.parametrize(
    "artifacts,target,error,message",
    [
        (("c_array",), "android", ConversionError, "'android' is not for.*'microcontroller'"),
        (("c_array",), "ethos_u", ConversionError, "ethos-u-vela makes.*write_c_array"),
        (("c_array",), "microcontroller", ValueError, "Use another name"),
        (("pdf",), "android", ValueError, "'pdf'; those that exist are 'c_array', 'json'"),
        ("json", "android", ValueError, "give a tuple"),
    ],
)
def test_what_cannot_be_made_is_refused(artifacts, target, error, message):
    with pytest.raises(error, match=message):
        check_artifacts(artifacts, pathlib.Path('a"b.tflite'), targets.get(target))


def test_a_c_array_needs_tflm(monkeypatch):
    monkeypatch.setattr(tflite_micro, "is_installed", lambda: False)
    with pytest.raises(ImportError, match="pip install --pre tflite-micro"):
        check_artifacts(("c_array",), pathlib.Path("a.tflite"), targets.get("microcontroller"))


def test_float_ends_on_demand(micro_model, tmp_path):
    report = export.convert(
        micro_model, tmp_path / "model.tflite", io_dtype="float32", data=images(micro_model)
    )
    assert report.io_dtype == "float32"
