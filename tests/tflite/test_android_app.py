"""The Android app looks for names in a file: they must be those that the exporter writes."""

import inspect
import pathlib
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from helpers.frozen_models import freeze, images, small_model

import dqmq_tf
from dqmq_tf import export, flatbuffer, graph, targets
from dqmq_tf.flatbuffer import metadata

APP = pathlib.Path(__file__).resolve().parents[2] / "tflite" / "android" / "app"
SOURCES = APP / "src" / "main" / "kotlin" / "org" / "dqmq" / "camera"
ANDROID = "{http://schemas.android.com/apk/res/android}"


def constants(file):
    """`{name: value}` of the constants in a Kotlin source."""
    text = (SOURCES / file).read_text(encoding="utf-8")
    found = re.findall(r'const val (\w+) = ("[^"]*"|\d+)', text)
    return {name: value.strip('"') for name, value in found}


def keys_in(file):
    """The keys of the metadata that a Kotlin source reads."""
    return {value for name, value in constants(file).items() if name.endswith("_KEY")}


def test_metadata_are_found_under_their_name(small, small_file):
    names, facts = constants("ModelMetadata.kt"), export.read_metadata(small_file[0])
    assert names["NAME"] == metadata.NAME
    assert names["IDENTIFIER"].encode() == flatbuffer.IDENTIFIER
    assert keys_in("Classifier.kt") == {"version", "target", "profile", "labels"}
    given = export.preprocessing.input_facts(
        graph.trace(small.float_model()),
        ["a", "b", "c", "d"],
        dqmq_tf.Preprocessing(std=255, color="BGR", resize="area"),
    )
    facts = metadata.with_input_facts(facts, given)
    assert keys_in("Classifier.kt") <= set(facts)
    assert keys_in("Preprocessing.kt") == {"inputs", *facts["inputs"]["image"]}
    source = (SOURCES / "Preprocessing.kt").read_text(encoding="utf-8")
    for name, values in (
        ("Color", targets.COLORS),
        ("Resize", targets.RESIZES),
    ):
        (body,) = re.findall(rf"enum class {name}\b.*{{ (.+) }}", source)
        assert set(re.findall("[A-Z]+", body)) == {value.upper() for value in values}


@pytest.mark.parametrize(
    "constant, accessor",
    [
        ("MODEL_BUFFERS_SLOT", "Model.Buffers"),
        ("MODEL_METADATA_SLOT", "Model.Metadata"),
        ("METADATA_NAME_SLOT", "Metadata.Name"),
        ("METADATA_BUFFER_SLOT", "Metadata.Buffer"),
        ("BUFFER_DATA_SLOT", "Buffer.Data"),
    ],
)
def test_slots_are_those_of_the_schema(constant, accessor):
    table, field = accessor.split(".")
    source = inspect.getsource(getattr(getattr(flatbuffer.schema(), table), field))
    slot = int(constants("ModelMetadata.kt")[constant])
    # The first two entries of a vtable are sizes; an entry takes two bytes.
    assert f"Offset({4 + 2 * slot})" in source


def test_single_profile_has_the_signature_that_the_app_runs(small_file):
    (signature,) = Interpreter(str(small_file[0])).get_signature_list()
    assert signature == constants("Classifier.kt")["SINGLE_SIGNATURE"]


def test_adaptive_file_has_the_signatures_that_the_app_runs(tmp_path):
    names, path = constants("Classifier.kt"), tmp_path / "adaptive.tflite"
    model = small_model()
    # Two qualities that are far apart, and a policy that tells them apart: else the router has
    # nothing to go by.
    noise = images(model)
    smooth = np.ones_like(noise) * noise.mean(axis=(1, 2), keepdims=True)
    seen = np.concatenate([noise, 3.0 * smooth])
    qmodel = freeze(model, data=seen)
    z = np.asarray(qmodel._parts.encoder(seen))
    apart = z[len(noise) :].mean(axis=0) - z[: len(noise)].mean(axis=0)
    qmodel._parts.policy.direction.assign(np.tile(apart, (qmodel._parts.policy.point_count, 1)))
    dqmq_tf.convert(qmodel, path, adaptive=2, data=seen)
    runner = Interpreter(str(path))
    profiles = {names["PROFILE_SIGNATURE_PREFIX"] + str(number) for number in range(2)}
    assert set(runner.get_signature_list()) == profiles | {names["ROUTER_SIGNATURE"]}
    chosen = runner.get_signature_runner(names["ROUTER_SIGNATURE"]).get_output_details()
    details = chosen[names["ROUTER_OUTPUT"]]
    assert details["dtype"] is np.int32 and list(details["shape"]) == [1]


def test_manifest_and_build_name_what_there_is():
    manifest = xml.etree.ElementTree.parse(APP / "src" / "main" / "AndroidManifest.xml").getroot()
    permissions = [entry.get(f"{ANDROID}name") for entry in manifest.iter("uses-permission")]
    assert permissions == ["android.permission.CAMERA"]
    (activity,) = manifest.iter("activity")
    assert (SOURCES / f"{activity.get(f'{ANDROID}name').removeprefix('.')}.kt").exists()
    gradle = (APP / "build.gradle.kts").read_text(encoding="utf-8")
    (package,) = re.findall(r'namespace = "(.+)"', gradle)
    for source in (*SOURCES.glob("*.kt"), *(APP / "src" / "test").rglob("*.kt")):
        assert source.read_text(encoding="utf-8").startswith(f"package {package}\n"), source.name
    strings = xml.etree.ElementTree.parse(APP / "src/main/res/values/strings.xml").getroot()
    used = set(re.findall(r"R\.string\.(\w+)", (SOURCES / "MainActivity.kt").read_text()))
    assert used | {"app_name"} == {entry.get("name") for entry in strings}
