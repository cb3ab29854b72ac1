"""The command `quantize`, by the examples of its guide; and what it says of data that do not fit."""

import json
import pathlib
import re
import shlex

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.commands import call
from helpers.image_folders import CLASSES, digit_images, trained_classifier, write_folder

import dqmq_tf
from dqmq_tf import quality
from dqmq_tf.command_line import argument_types, commands, image_data, quantize_command

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `images/`, a float model of them, and an array of them."""
    folder = tmp_path_factory.mktemp("quantize")
    write_folder(folder / "images")
    trained_classifier().save(folder / "float.keras")
    np.save(folder / "images.npy", digit_images()[0][:32])
    return folder


def test_the_commands_of_the_guide_run_and_quantize_keeps_the_accuracy(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    # A backslash at its end continues a line.
    blocks = re.findall(r"^```sh\n(.*?)^```", page.replace("\\\n", " "), re.M | re.S)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    shown = {}
    for program, *words in lines:
        assert program == "dqmq_tf"
        assert call(*words) == 0, words
        shown[words[0]] = capsys.readouterr()
    assert shown.keys() == {"--help", *commands._COMMANDS}

    report = json.loads(pathlib.Path("report.json").read_text())
    assert report["classes"] == list(CLASSES)
    assert report["float_accuracy"] > 0.8 and report["accuracy"] > 0.8
    # `evaluate` counted the former, `summary` the latter, which also knows the kinds.
    everything = report["summary"]["qualities"][-1]
    assert everything["samples"] == 16 and everything["accuracy"] == pytest.approx(
        report["accuracy"]
    )
    assert {row["kind"] for row in report["summary"]["qualities"]} <= {
        "all", "clean", "contrast", "fog",
    }  # fmt: skip
    assert report["summary"]["budget"] == {"download_bytes": 3500.0}
    path = pathlib.Path("model.tflite")
    assert report["conversion"]["size_bytes"] == path.stat().st_size
    assert report["conversion"]["download_bytes"] <= 3500
    assert report["conversion"]["verification"]["different_numbers"] == 0
    assert keras.models.load_model("model.keras").frozen_profiles == 1
    contents = json.loads(pathlib.Path("contents.json").read_text())
    assert contents["facts"]["target"] == "android"
    assert contents["facts"]["labels"] == list(CLASSES)
    (entry,) = contents["facts"]["inputs"].values()
    assert entry == {"mean": [0], "std": [1], "color": "GRAY", "resize": "bilinear"}
    progress, tables = shown["quantize"].err, shown["quantize"].out
    assert re.search(r"^epoch 2/2  settled   .* of 3,500 download_bytes \(", progress, re.M)
    assert re.search(r"^Exposure (pays|does not pay): after \d+ steps", progress, re.M)
    assert "epoch" not in tables
    assert "Accuracy on the images held back: float" in tables
    # The last command asks for JSON alone.
    assert json.loads(shown["targets"].out)["targets"]


def test_a_model_of_any_size_gets_the_size_that_is_given(place, tmp_path):
    keras.utils.set_random_seed(0)
    stack = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3, activation="relu")]
    stack += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, activation="softmax")]
    keras.Sequential([keras.Input((None, None, 1)), *stack]).save(tmp_path / "any.keras")
    path, data = tmp_path / "small.tflite", f"--data={place / 'images'}"
    options = ("--epochs=1", "--image_size=12,10")
    assert call("quantize", str(tmp_path / "any.keras"), str(path), data, *options) == 0
    (signature,) = dqmq_tf.export.inspect_file(path).signatures.values()
    assert list(signature["inputs"].values()) == ["FLOAT32 1x12x10x1"]


def test_a_folder_is_read_as_the_model_takes_its_images(place):
    data = image_data.read(
        argument_types.ImageSource(str(place / "images"), True), None, "train",
        image_data.InputFormat(
            size=(8, 8), channels=1, dtype="float32", value_range=(0.0, 255.0), crop=False
        ),
        batch_size=50, validation_split=0.25, seed=3,
    )  # fmt: skip
    assert data.class_names == CLASSES
    known = {image.tobytes(): label for image, label in zip(*digit_images())}
    parts = [
        [(i.tobytes(), int(n)) for i, n in part.unbatch().as_numpy_iterator()]
        for part in (data.train, data.validation)
    ]
    assert [len(part) for part in parts] == [120, 40]
    assert all(known[image] == label for part in parts for image, label in part)
    assert not {image for image, _ in parts[0]} & {image for image, _ in parts[1]}


def test_a_dataset_is_split_resized_and_gets_the_channels_of_the_model():
    form = image_data.InputFormat(
        size=(12, 10), channels=3, dtype="uint8", value_range=(0.0, 255.0), crop=True
    )
    digits = quality.digits("test", size=16, channels=1).take(20)
    data = image_data._batched(digits, ("a",) * 10, form, 8, 0.1, 0)
    assert [len(x) for x, _ in data.validation] == [2]
    assert [len(x) for x, _ in data.train] == [8, 8, 2]
    images, labels = next(iter(data.validation))
    assert images.shape == (2, 12, 10, 3)
    assert labels.numpy().tolist() == [label for _, label in digits.take(2).as_numpy_iterator()]
    assert form.converted(images).dtype == tf.uint8
    # Cropped to 16 x 13 of 16 x 16 pixels, and shrunk: the middle column stays in the middle.
    whole = np.stack([image for image, _ in digits.take(2).as_numpy_iterator()])
    assert np.abs(images.numpy().mean() - whole[:, :, 1:14].mean()) < 8


def test_values_are_scaled_to_the_range_of_the_model():
    form = image_data.InputFormat(
        size=(8, 8), channels=1, dtype="float32", value_range=(-1.0, 1.0), crop=False
    )
    assert form.converted(tf.constant([0, 51, 255])).numpy() == pytest.approx([-1.0, -0.6, 1.0])
    # An app computes (pixel - mean) / std.
    preprocessing = form.preprocessing()
    assert (51 - preprocessing.mean) / preprocessing.std == pytest.approx(-0.6)


@pytest.mark.parametrize("name", ["softmax", "linear", "sigmoid"])
def test_the_loss_is_for_probabilities_or_logits_as_the_model_predicts(name):
    units = 1 if name == "sigmoid" else 3
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Input((4,)), keras.layers.Dense(units, activation=name)]
    loss, metric = quantize_command._objective(keras.Sequential(layers), tf.random.normal((16, 4)))
    assert loss.get_config()["from_logits"] == (name == "linear")
    expected = "BinaryCrossentropy" if units == 1 else "SparseCategoricalCrossentropy"
    assert type(loss).__name__ == expected and metric.name == "accuracy"


def test_wrong_use_is_named_before_any_training(place, tmp_path, capsys):
    model, data, output = place / "float.keras", f"--data={place / 'images'}", tmp_path / "x.tflite"
    folder = tmp_path / "folder.keras"
    for path in (tmp_path / "empty", folder):
        path.mkdir()
    for words, message in (
        ((model, output), "--data"),
        ((model, output, "--data=./nowhere"), "there is no folder './nowhere'"),
        ((model, tmp_path / "no" / "x.tflite", data), "there is no folder"),
        ((model, output, data, f"--save={folder}"), "is a folder"),
        ((model, folder.with_suffix(".tflite"), data), "is a folder"),
        ((model, output, data, f"--json={tmp_path}"), "is a folder"),
        ((model, output, data, "--kinds=fog"), "--kinds needs --mix"),
        ((model, output, data, "--mix", "--kinds=rain"), "'rain' is none of"),
        ((model, output, data, "--mix", "--severity=0,3"), "range from 1 to 5"),
        ((model, output, data, "--size_bytes=1", "--bit_ops=1"), "give one budget"),
        ((model, output, data, "--epochs=0"), "is not 1 or more"),
        ((model, output, data, "--learning_rate=inf"), "is not a finite number"),
        ((model, output, data, "--download_bytes=0"), "is not above 0"),
        ((model, output, data, "--target=simulation"), "--target: invalid choice"),
        ((model, output, data, f"--save={model}"), "would overwrite"),
        ((model, output, data, f"--json={model}"), "--json: it would overwrite"),
        ((model, output, data, f"--json={output}"), "--json: it would overwrite"),
        ((model, output, data, f"--json={output.with_suffix('.keras')}"), "--json: it would"),
        ((model, output, data, "--value_range=1,0"), "lower number first"),
        ((model, output, data, "--data_dir=."), "--data_dir is for"),
        ((model, output, f"--data={tmp_path / 'empty'}"), "has no subfolders"),
        ((model, output, f"--data={place}"), "3 outputs, but the data has 1 classes: images"),
        ((model, output, data, "--image_size=9,9"), "takes images of 8 x 8 pixels"),
        ((model, output, data, "--download_bytes=10"), "below the smallest possible"),
    ):
        assert call("quantize", *words) == commands.WRONG_USE, words
        assert message in capsys.readouterr().err
    assert not output.exists() and not output.with_suffix(".keras").exists()


def test_an_artifact_that_the_target_does_not_have_is_refused_before_any_training(
    place, tmp_path, capsys
):
    words = (place / "float.keras", tmp_path / "x.tflite", f"--data={place / 'images'}")
    assert call("quantize", *words, "--artifacts=c_array") == commands.FAILED
    assert "'android' is not for" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_written_are_named_before_any_training(
    place, tmp_path, capsys, monkeypatch
):
    words = (place / "float.keras", tmp_path / "x.tflite", f"--data={place / 'images'}")
    kept = tmp_path / "kept.keras"
    kept.touch()
    monkeypatch.setattr("os.access", lambda path, mode: path != kept)
    assert call("quantize", *words, f"--save={kept}") == commands.WRONG_USE
    assert f"'{kept}' cannot be written" in capsys.readouterr().err

    def refuse(*args, **kwargs):
        raise PermissionError("read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert call("quantize", *words) == commands.WRONG_USE
    assert f"'{tmp_path}' cannot be written: read-only" in capsys.readouterr().err


def test_an_image_that_cannot_be_read_is_named(place, tmp_path, capsys):
    write_folder(tmp_path / "images", count=12)
    broken = tmp_path / "images" / CLASSES[0] / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    words = (place / "float.keras", tmp_path / "x.tflite", f"--data={tmp_path / 'images'}")
    assert call("quantize", *words, "--validation_split=0.5") == commands.WRONG_USE
    assert f"{broken} is not an image that can be read" in capsys.readouterr().err


def test_models_that_are_no_classifiers_of_images_are_named(tmp_path, place, capsys):
    layers = keras.layers
    models = {
        "takes inputs of shape [4]": keras.Sequential([layers.Input((4,)), layers.Dense(3)]),
        "outputs of shape [6, 6, 2]": keras.Sequential(
            [layers.Input((8, 8, 1)), layers.Conv2D(2, 3)]
        ),
        "any size: give --image_size": keras.Sequential(
            [
                layers.Input((None, None, 1)),
                layers.Conv2D(2, 3),
                layers.GlobalAveragePooling2D(),
                layers.Dense(3),
            ]
        ),
        "holds a DQMQModel": dqmq_tf.quantize_model(trained_classifier()),
    }
    for message, model in models.items():
        model.save(tmp_path / "model.keras")
        words = (tmp_path / "model.keras", tmp_path / "x.tflite", f"--data={place / 'images'}")
        assert call("quantize", *words) == commands.WRONG_USE
        assert message in capsys.readouterr().err
    (tmp_path / "model.keras").write_bytes(b"nothing")
    assert call("quantize", *words) == commands.WRONG_USE
    assert "model.keras cannot be loaded" in capsys.readouterr().err


def test_a_model_that_takes_pixels_takes_them_in_their_own_range(tmp_path, place, capsys):
    layers = keras.layers
    model = keras.Sequential([layers.Input((8, 8, 1), dtype="uint8"), layers.Rescaling(1 / 255)])
    model.add(layers.Flatten())
    model.add(layers.Dense(3))
    model.save(tmp_path / "pixels.keras")
    words = (tmp_path / "pixels.keras", tmp_path / "x.tflite", f"--data={place / 'images'}")
    assert call("quantize", *words, "--epochs=1", "--value_range=0,1") == commands.WRONG_USE
    error = capsys.readouterr().err
    assert "--value_range=0,1: model" in error and "takes uint8 images" in error
    assert "Float model" not in error
    assert image_data.input_format(model, None, (0.0, 255.0), False).dtype == "uint8"


def test_the_help_has_every_kind_of_degradation():
    assert argument_types.KINDS == quality.KINDS
