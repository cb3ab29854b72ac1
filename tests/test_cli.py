"""The commands as a user calls them: what they print and write, and their exit codes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.frozen_models import freeze, images, small_model

import dqmq_tf
from dqmq_tf import cli


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a saved model and typical inputs."""
    folder = tmp_path_factory.mktemp("commands")
    qmodel = freeze(small_model())
    qmodel.save(folder / "model.keras")
    small_model().save(folder / "float.keras")
    np.save(folder / "images.npy", images(qmodel, 64))
    np.savez(folder / "images.npz", images(qmodel, 64))
    return folder


def call(*words):
    return cli.run(cli.parse(["dqmq_tf", *map(str, words)]))


def test_a_model_is_converted_verified_inspected_and_summarized(files, capsys):
    model, data, path = files / "model.keras", files / "images.npy", files / "out.tflite"
    report = files / "out.json"
    words = ("--io_dtype=int8", "--artifacts=json")
    assert call("convert", model, path, f"--data={data}", *words) == 0
    assert "head" in capsys.readouterr().out
    assert json.loads(report.read_text())["size_bytes"] == path.stat().st_size
    assert call("verify", model, path, f"--data={files / 'images.npz'}", "--samples=9") == 0
    printed = capsys.readouterr().out
    assert "litert-reference" in printed and "0 of 226 numbers" in printed
    words = ("--runtimes=litert-builtin", f"--json={files / 'verified.json'}")
    assert call("verify", model, path, f"--data={data}", *words) == 0
    rows = json.loads((files / "verified.json").read_text())["rows"]
    assert [row["runtime"] for row in rows] == ["litert-builtin"]
    capsys.readouterr()
    found = files / "found.json"
    assert call("inspect", path, f"--json={found}") == 0
    assert "serving_default, input image: INT8 1x8x8x3" in capsys.readouterr().out
    listed = json.loads(found.read_text())
    assert {entry["name"]: entry["bits"] for entry in listed["weights"]} == {"conv": 6, "head": 6}
    assert listed["size_bytes"] == path.stat().st_size
    assert call("summary", model) == 0
    assert "conv" in capsys.readouterr().out


def test_an_adaptive_file_is_written_and_inspected(files, capsys):
    path = files / "adaptive.tflite"
    words = ("--adaptive=2", "--routing=graph", f"--data={files / 'images.npy'}", "--noverify")
    assert call("convert", files / "model.keras", path, *words) == 0
    assert dqmq_tf.AdaptiveInterpreter(path).routing == "graph"
    assert call("inspect", path) == 0
    printed = capsys.readouterr().out
    assert "profile_1" in printed and "1 IF" in printed


def test_a_damaged_file_is_an_error_of_one_line_or_with_debug_an_exception(files, capsys):
    damaged = files / "damaged.tflite"
    damaged.write_bytes(b"TFL3" * 40)
    for words in (
        ("inspect", damaged),
        ("verify", files / "model.keras", damaged, f"--data={files / 'images.npy'}"),
    ):
        assert call(*words) == cli.FAILED
        error = capsys.readouterr().err
        assert "damaged.tflite" in error and error.count("\n") == 1
    with pytest.raises(dqmq_tf.export.ConversionError):
        cli.run(cli.parse(["dqmq_tf", "--debug", "inspect", str(damaged)]))


def test_wrong_arguments_exit_with_an_error_that_names_them(files, capsys):
    model, path = files / "model.keras", files / "none.tflite"
    for words, told in (
        (("inspect", path), "none.tflite"),
        (("summary", files / "none.keras"), "none.keras"),
        (("summary", files / "float.keras"), "not a DQMQModel"),
        (("convert", model, files / "out.tfl"), ".tflite"),
        (("convert", model, path, "--adaptive=2"), "data="),
        (("convert", model, path, "--artifacts=zip"), "artifacts has 'zip'"),
        (("convert", model, path, f"--data={files / 'none.npy'}"), "none.npy"),
        (("convert", model, path, f"--data={model}"), "--data="),
    ):
        assert call(*words) == cli.WRONG_USE, words
        assert told in capsys.readouterr().err
    assert not path.exists()


def test_the_command_line_runs_as_a_process():
    def process(*words):
        return subprocess.run(
            [sys.executable, "-m", "dqmq_tf", *words], capture_output=True, text=True, timeout=120
        )

    found = process("--help")
    assert found.returncode == 0
    assert all(name in found.stdout for name in ("convert", "verify", "inspect", "summary"))
    found = process("translate")
    assert found.returncode == cli.WRONG_USE and "invalid choice" in found.stderr
