"""The Android app's sources compile against LiteRT's own Java API, and feed a file as Python does.

`LITERT_DIR` names a checkout of https://github.com/google-ai-edge/LiteRT. The README of the app says
what else is needed. Nothing here runs on a device.
"""

import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from dqmq_tf.flatbuffer import TFLiteFile, metadata

APP = pathlib.Path(__file__).resolve().parents[2] / "tflite" / "android" / "app" / "src"
PACKAGE = pathlib.Path("kotlin", "org", "dqmq", "camera")
# What is compiled. MainActivity needs Android and CameraX, which no package of Debian, PyPI or npm has.
SOURCES = ("Classifier", "FrameScaler", "ModelMetadata", "Preprocessing", "ResizeTaps")
TESTS = ("FrameScalerTest", "PreprocessingTest")
LITERT = os.environ.get("LITERT_DIR")
KOTLINC = os.environ.get("KOTLINC") or shutil.which("kotlinc")
JARS = [f"/usr/share/java/{name}.jar" for name in ("json-android", "junit4", "hamcrest")]


def why_not():
    """Why the sources cannot be compiled here, or `""`."""
    if not LITERT:
        return "LITERT_DIR names no checkout of github.com/google-ai-edge/LiteRT"
    if not KOTLINC:
        return "no kotlinc on the path or in KOTLINC (npm install kotlin-compiler)"
    missing = [jar for jar in JARS if not pathlib.Path(jar).exists()]
    if missing:
        return f"no {missing[0]} (apt-get install junit4 libandroid-json-org-java)"
    return "" if shutil.which("java") else "no java (apt-get install default-jre-headless)"


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The class path of the compiled sources."""
    folder = tmp_path_factory.mktemp("android")
    # LiteRT's package for Android has these classes; of those that are there twice, the second.
    for part in ("tflite/java/src/main/java", "litert/kotlin/src/copied_from_tflite/java"):
        shutil.copytree(pathlib.Path(LITERT, part), folder / "java", dirs_exist_ok=True)
    sources = [APP / "main" / PACKAGE / f"{name}.kt" for name in SOURCES]
    sources += [APP / "test" / PACKAGE / f"{name}.kt" for name in TESTS]
    sources += [pathlib.Path(__file__).with_name("FeedFrame.kt"), folder / "java"]
    jar, options = folder / "camera.jar", ["-jvm-target", "17", "-include-runtime", "-Werror"]
    command = [KOTLINC, *options, "-cp", ":".join(JARS), "-d", jar, *sources]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return ":".join([str(jar), *JARS])


def java(class_path, *arguments):
    result = subprocess.run(
        ["java", "-cp", class_path, *map(str, arguments)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_all_sources_but_the_activity_are_compiled():
    found = {path.stem for path in (APP / "main" / PACKAGE).glob("*.kt")}
    assert found == {*SOURCES, "MainActivity"}
    assert {path.stem for path in (APP / "test" / PACKAGE).glob("*.kt")} == set(TESTS)


def test_the_tests_of_the_app_pass(compiled):
    names = [f"org.dqmq.camera.{name}" for name in TESTS]
    assert "OK (12 tests)" in java(compiled, "org.junit.runner.JUnitCore", *names)


@pytest.mark.parametrize("resize", ["nearest", "bilinear", "area"])
@pytest.mark.parametrize("color", ["RGB", "BGR", "GRAY"])
def test_a_frame_becomes_what_the_file_says(compiled, small_file, tmp_path, color, resize):
    channels, labels = 1 if color == "GRAY" else 3, ["Käfer", 'a "dog"', "x", "y"]
    mean, std = [123.5, 100, 0][:channels], [58.4, 255, 1][:channels]
    entry = {"mean": mean, "std": std, "color": color, "resize": resize}
    file = TFLiteFile.load(small_file[0]).copy()
    facts = {"inputs": {"image": entry}, "labels": labels}
    facts = metadata.with_input_facts(file.metadata, facts)
    metadata.attach(file.model, facts, "2.11.0")
    (tmp_path / "model.tflite").write_bytes(file.contents)
    frame = np.random.default_rng(0).integers(0, 256, (33, 47, 4)).astype(np.uint8)
    (tmp_path / "frame").write_bytes(frame.tobytes())
    files = tmp_path / "model.tflite", tmp_path / "frame"
    numbers, names = java(compiled, "FeedFrameKt", *files, 47, 33, "image", 9, 9).splitlines()
    picture = frame[:, 7:40, :3].astype(np.float32)  # The largest centered square.
    pixels = tf.image.resize(picture, (9, 9), method=resize).numpy()
    if color == "GRAY":
        pixels = pixels @ np.float32([0.2989, 0.587, 0.114])[:, None]
    elif color == "BGR":
        pixels = pixels[..., ::-1]
    expected = (pixels - np.float32(mean)) / np.float32(std)
    found = np.float32(numbers.split()).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert json.loads(names) == labels
