"""The commands as a user calls them: what they print and write, and their exit codes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from helpers.commands import call
from helpers.frozen_models import freeze, images, small_model
from helpers.new_process import in_bare_process

import dqmq_tf
from dqmq_tf.command_line import arguments, commands
from dqmq_tf.targets import TARGETS


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


def call_process(*words):
    """Runs a command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "dqmq_tf", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def foreign_flag():
    """An absl flag of another module, with the name of one of our options."""
    is_new = "data_dir" not in flags.FLAGS
    if is_new:
        flags.DEFINE_string("data_dir", None, "A folder.")
    yield
    if is_new:
        delattr(flags.FLAGS, "data_dir")


def test_absl_flags_of_other_modules_do_not_clash_with_options(foreign_flag, tmp_path):
    (tmp_path / "float.keras").touch()
    words = ("quantize", tmp_path / "float.keras", tmp_path / "model.tflite", "--data=mnist")
    parsed = arguments.parse(["dqmq_tf", *map(str, words), f"--data_dir={tmp_path}"])
    assert parsed.data_dir == tmp_path


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
    words = ["--adaptive=2", "--routing=graph", f"--data={files / 'images.npy'}", "--noverify"]
    labels = files / "labels.txt"
    labels.write_text("cat\ndog\nFuß\nroad sign\n", encoding="utf-8-sig")
    words += [f"--labels={labels}", "--mean=-1,0,2.5", "--std=255", "--color=BGR", "--resize=area"]
    assert call("convert", files / "model.keras", path, *words) == 0
    facts = dqmq_tf.read_metadata(path)
    assert facts["labels"] == ["cat", "dog", "Fuß", "road sign"]
    entry = {"mean": [-1, 0, 2.5], "std": [255] * 3, "color": "BGR", "resize": "area"}
    assert facts["inputs"] == {"image": entry}
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
        assert call(*words) == commands.FAILED
        error = capsys.readouterr().err
        assert "damaged.tflite" in error and error.count("\n") == 1
    with pytest.raises(dqmq_tf.export.ConversionError):
        commands.run(arguments.parse(["dqmq_tf", "--debug", "inspect", str(damaged)]))


def test_wrong_arguments_exit_with_an_error_that_names_them(files, capsys):
    model, path = files / "model.keras", files / "none.tflite"
    for words, message in (
        (("inspect", path), "none.tflite"),
        (("summary", files / "none.keras"), "none.keras"),
        (("summary", files / "float.keras"), "not a DQMQModel"),
        (("convert", model, files / "out.tfl"), ".tflite"),
        (("convert", model, path, "--adaptive=2"), "--data="),
        (
            ("convert", model, path, "--artifacts=zip"),
            "--artifacts: 'zip' is none of c_array, json",
        ),
        (("convert", model, path, "--adaptive=7"), "--adaptive: invalid choice"),
        (
            (
                "convert",
                model,
                path,
                "--adaptive=2",
                "--profile=0",
                f"--data={files / 'images.npy'}",
            ),
            "--profile writes one profile and --adaptive all of them",
        ),
        (("verify", model, path, f"--data={files / 'images.npy'}"), "none.tflite"),
        (("convert", model, path, f"--data={files / 'none.npy'}"), "none.npy"),
        (("convert", model, path, f"--data={model}"), "--data: "),
        (("convert", model, path, f"--labels={files / 'none.txt'}"), "none.txt"),
        (("convert", model, path, "--mean=1,x"), "--mean: 'x' is not a finite number"),
        (("convert", model, path, "--std=1,2"), "std of the preprocessing of input 'image' has 2"),
    ):
        assert call(*words) == commands.WRONG_USE, words
        assert message in capsys.readouterr().err
    assert not path.exists()


def test_a_damaged_model_or_array_is_an_error_that_names_it(files, capsys):
    whole = {name: (files / name).read_bytes() for name in ("images.npy", "images.npz")}
    model = (files / "model.keras").read_bytes()
    for name, contents in (
        ("empty.npy", b""),
        ("short.npy", whole["images.npy"][:-8]),
        ("short.npz", whole["images.npz"][:-8]),
        ("changed.npz", whole["images.npz"].replace(whole["images.npz"][400:408], b"\xff" * 8)),
        ("short.keras", model[:-8]),
        ("changed.keras", model.replace(b"embedding_size", b"embedding_type")),
        ("labels.txt", "Fuß\n".encode("latin-1")),
    ):
        path = files / name
        path.write_bytes(contents)
        words = ["convert", files / "model.keras", files / "none.tflite"]
        if path.suffix == ".keras":
            words[1] = path
        else:
            words.append(f"--{'labels' if path.suffix == '.txt' else 'data'}={path}")
        assert call(*words) == commands.WRONG_USE, name
        assert f"{name} cannot be loaded: " in capsys.readouterr().err
    with pytest.raises(ValueError, match="short.npz cannot be loaded"):
        call(
            "--debug",
            "verify",
            files / "model.keras",
            files / "images.npy",
            f"--data={files / 'short.npz'}",
        )


def test_targets_shows_every_target_its_runtimes_and_refusals(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    path = tmp_path / "targets.json"
    assert call("targets", f"--json={path}") == 0
    printed = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads(path.read_text())["targets"]}
    assert list(rows) == list(TARGETS)
    for name, target in TARGETS.items():
        assert f"{name}: {target.description}" in printed
        assert rows[name]["description"] == target.description
        assert tuple(rows[name]["weight_bits"]) == target.weight_bits
        assert tuple(rows[name]["runtimes"]) == target.runtimes
        assert rows[name]["refusals"] == dict(target.refusals)
        assert all(word in printed for word in (*target.runtimes, *dict(target.refusals)))
    assert rows["android"]["containers"].keys() == {"INT8"}
    assert rows["android_small"]["containers"]["INT2"] == ["dense"]
    assert rows["microcontroller"]["containers"]["lookup table"] == ["conv", "depthwise", "dense"]
    assert "lookup table: conv, depthwise, dense" in printed


def test_the_command_line_runs_as_a_process(files):
    result = call_process("--help")
    assert result.returncode == 0
    names = ("convert", "verify", "inspect", "summary", "targets")
    assert all(name in result.stdout for name in names)
    result = call_process("translate")
    assert result.returncode == commands.WRONG_USE and "invalid choice" in result.stderr
    # The package does not import its classes for the command, but Keras needs them here.
    result = call_process("summary", files / "model.keras")
    assert result.returncode == 0, result.stderr
    assert "conv" in result.stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--help",), 0),
        (("convert", "--help"), 0),
        (("targets",), 0),
        (("translate",), commands.WRONG_USE),
        (("summary", "none.keras"), commands.WRONG_USE),
        (("verify", "none.keras", "none.tflite", "--data=none.npy"), commands.WRONG_USE),
        (("quantize", "--help"), 0),
        (("quantize", "none.keras", "none.tflite", "--data=digits"), commands.WRONG_USE),
    ],
    ids=str,
)
@pytest.mark.parametrize("program", ["-m", "/usr/bin/dqmq_tf"], ids=["module", "script"])
def test_help_and_wrong_use_do_not_import_tensorflow(program, words, code):
    # `sys.orig_argv` and `sys.argv` are what Python sets for the module and for the script.
    prelude = (
        f"sys.orig_argv = ['python', '-m', 'dqmq_tf']; sys.argv = [{program!r}]\n"
        "from dqmq_tf.command_line import arguments, commands\n"
        "try:\n"
        f"    code = commands.run(arguments.parse(['dqmq_tf', *{words!r}]))\n"
        "except SystemExit as exit:\n"
        "    code = exit.code\n"
        f"assert code == {code}, code\n"
        "heavy = {'tensorflow', 'keras', 'ai_edge_litert'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    in_bare_process(prelude)


def test_a_module_of_another_package_gets_all_of_dqmq_tf():
    code = (
        "sys.orig_argv = ['python', '-m', 'other', 'dqmq_tf']; sys.argv = ['-m']\n"
        "import dqmq_tf\n"
        "missing = {n for n in dqmq_tf.__all__ if n != 'DQMQQuantizeConfig'} - set(vars(dqmq_tf))\n"
        "assert not missing, missing\n"
    )
    in_bare_process(code)


def test_importing_the_package_imports_no_optional_or_slow_package():
    code = (
        "import keras\n"
        "before = set(sys.modules)\n"
        "import dqmq_tf\n"
        "packages = {'matplotlib', 'rich', 'tensorflow_model_optimization', 'ai_edge_litert'}\n"
        "new = {n for n in set(sys.modules) - before if n.split('.')[0] in packages}\n"
        "assert not new, new\n"
    )
    in_bare_process(code)
