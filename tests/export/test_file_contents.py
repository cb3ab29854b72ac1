"""`inspect_file` lists what a file holds, without the model."""

import dataclasses

import keras
import numpy as np
import pytest
import rich
import tensorflow as tf
from helpers.commands import call
from helpers.frozen_models import freeze, images

from dqmq_tf import export
from dqmq_tf.errors import FileFormatError


def test_it_lists_the_weights_as_the_report_of_the_conversion_does(every_bit_width):
    _, path, report = every_bit_width
    contents = export.inspect_file(path)
    rows = [dataclasses.asdict(row) for row in report.weights]
    listed = ("name", "bits", "container", "coding", "bytes")
    reported = ("name", "bit_width", "container", "coding", "stored_bytes")
    assert [[e[key] for key in listed] for e in contents.weights] == [
        [row[key] for key in reported] for row in rows
    ]


def test_it_shows_which_weights_are_in_lookup_tables(every_bit_width, capsys):
    qmodel, path, _ = every_bit_width
    rich.print(export.inspect_file(path))
    assert ("INT8, table" in capsys.readouterr().out) == (qmodel.target.name == "microcontroller")


def test_it_lists_a_file_of_another_converter(tmp_path, capsys):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(batch_shape=(1, 8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([np.random.rand(1, 8, 8, 3).astype("float32")],)
    path = tmp_path / "other.tflite"
    path.write_bytes(converter.convert())

    contents = export.inspect_file(path)
    assert contents.facts is None and contents.weights == ()
    assert contents.size_bytes == path.stat().st_size
    assert contents.operators == {
        "main": {"QUANTIZE": 1, "CONV_2D": 1, "RESHAPE": 1, "FULLY_CONNECTED": 1, "DEQUANTIZE": 1}
    }
    assert contents.signatures["serving_default"]["inputs"]["image"].startswith("FLOAT32 1x8x8x3")
    interpreter = tf.lite.Interpreter(str(path))
    # LiteRT adds tensors of its own while it prepares; those of the file come first.
    details = {d["name"]: d for d in interpreter.get_tensor_details()[: len(contents.tensors)]}
    assert {e["name"] for e in contents.tensors} == details.keys()
    for entry in contents.tensors:
        detail = details[entry["name"]]
        assert entry["type"].lower() == np.dtype(detail["dtype"]).name
        assert entry["scales"] == len(detail["quantization_parameters"]["scales"])
        if entry["role"] == "constant":
            assert entry["shape"] == detail["shape"].tolist()
            value = interpreter._interpreter.GetTensor(detail["index"], 0)
            assert entry["bytes"] == value.nbytes
    roles = [entry["role"] for entry in contents.tensors]
    assert roles.count("input") == roles.count("output") == 1

    rich.print(contents)
    printed = capsys.readouterr().out
    assert "not written by dqmq_tf" in printed and "CONV_2D" in printed


def test_damage_to_a_file_of_dqmq_tf_is_an_error_and_not_another_converter(small_file, tmp_path):
    contents = bytearray(small_file[0].read_bytes())
    path = tmp_path / "damaged.tflite"
    path.write_bytes(contents[:-40])  # without the checksum
    with pytest.raises(FileFormatError, match="no dqmq_tf checksum at its end"):
        export.inspect_file(path)
    # The name of the metadata, without which the file would seem to be of another converter.
    position = contents.index(b"\x07\x00\x00\x00dqmq_tf")
    contents[position + 4] ^= 1
    path.write_bytes(contents)
    with pytest.raises(FileFormatError, match="is corrupt"):
        export.inspect_file(path)


def test_names_of_layers_and_classes_are_shown_as_they_are(tmp_path, capsys):
    inputs = keras.Input((8, 8, 3), name="in[a]")
    x = keras.layers.Conv2D(2, 3, name="[bold]")(inputs)
    x = keras.layers.LayerNormalization(name="[x]")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name=":cat:")(keras.layers.Flatten()(x)))
    path = tmp_path / "names.tflite"
    report = export.convert(
        freeze(model), path, data=images(model), labels=["cat", "[unk]", "[/x]"]
    )
    rich.print(report)
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("\n [bold]  ", "\n :cat:  ", "\n  [x]: TFLite has"))
    assert call("inspect", path) == 0
    printed = capsys.readouterr().out
    assert "3 classes: cat, [unk], [/x]\n" in printed and "input in[a]: FLOAT32" in printed
    assert "[bold]" in printed and ", output :cat:: FLOAT32" in printed
