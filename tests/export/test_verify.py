import collections
import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from helpers.frozen_models import freeze, images, small_model
from helpers.networks import frozen, written
from helpers.new_process import in_new_process
from keras import layers

from dqmq_tf import export, flatbuffer, runtimes, targets
from dqmq_tf.errors import VerificationError
from dqmq_tf.flatbuffer import checksum

LITERT = ["litert-xnnpack", "litert-builtin", "litert-reference"]


def test_report(small, small_file):
    report = export.verify(small, small_file[0], images(small, 50))
    assert [row.runtime for row in report.rows] == [*LITERT, "tflite-runtime"]
    assert report.samples == 50 and report.classification
    for row in report.rows[:3]:
        assert row.ran and row.samples == 50 and row.latency_ms > 0
    assert report.top1_agreement >= 0.96
    assert report.mean_quanta < 0.5
    assert report.different_numbers == 0 < report.checked_numbers
    assert json.loads(report.to_json())["samples"] == 50


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_datasets(small, small_file, labels, batched):
    x = images(small, 20)
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros(20)) if labels else x)
    data = data.batch(8) if batched else data
    report = export.verify(small, small_file[0], data, runtimes=["litert-builtin"])
    assert report.samples == 20
    assert report == export.verify(small, small_file[0], x, runtimes=["litert-builtin"])


def test_a_graph_is_traced_for_many_inputs_only_and_agrees(small, small_file, monkeypatch):
    predict, traced = type(small).predict, []

    def counted(*args, **options):
        traced.append(args)
        return predict(*args, **options)

    monkeypatch.setattr(type(small), "predict", counted)
    x, options = images(small, 160), {"runtimes": LITERT[1:2]}
    # The last batch is a part of one.
    few = export.verify(small, small_file[0], x[:100], **options)
    assert few.samples == 100 and not traced
    many = export.verify(small, small_file[0], x, **options)
    assert many.samples == 160 and len(traced) == 1
    assert few.mean_quanta == pytest.approx(many.mean_quanta, abs=0.1)
    assert max(few.largest_quanta, many.largest_quanta) <= 1.01


def test_endless_dataset_ends(small, small_file):
    data = tf.data.Dataset.from_tensor_slices(images(small, 20)).repeat().batch(8)
    report = export.verify(small, small_file[0], data, samples=30, runtimes=LITERT[:1])
    assert report.samples == report.primary.samples == 30


def test_no_data(small, small_file):
    with pytest.raises(ValueError, match="`data` holds no inputs"):
        export.verify(small, small_file[0], images(small, 4)[:0])


def test_missing_file(small, tmp_path):
    with pytest.raises(FileNotFoundError):
        export.verify(small, tmp_path / "nothing.tflite", images(small, 4))


@pytest.mark.parametrize("agreement", [99, -0.1, float("nan")])
def test_an_agreement_that_is_no_share(agreement, small, small_file):
    with pytest.raises(ValueError, match=f"agreement={agreement} must be a share from 0 to 1"):
        export.verify(small, small_file[0], images(small, 4), agreement=agreement)


def test_other_model(small_file):
    other = freeze(small_model(), {"conv": 3})
    with pytest.raises(VerificationError, match="numbers of this model.*conv"):
        export.verify(other, small_file[0], images(other, 4))


def test_other_shape_of_data(small, small_file):
    with pytest.raises(ValueError, match=r"for inputs image \[8, 8, 3\].*\[2, 9, 9, 3\]"):
        export.verify(small, small_file[0], np.zeros((2, 9, 9, 3), "float32"))


@pytest.mark.parametrize("keep", [0, 6, 100, 2000])
def test_truncated_file(small, small_file, tmp_path, keep):
    path = tmp_path / "model.tflite"
    path.write_bytes(small_file[0].read_bytes()[:keep])
    with pytest.raises(VerificationError, match="truncated"):
        export.verify(small, path, images(small, 4))


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    """A frozen model for microcontrollers, its file, and the report of its conversion."""
    qmodel = freeze(small_model(), target="microcontroller")
    path = tmp_path_factory.mktemp("micro") / "model.tflite"
    return qmodel, path, export.convert(qmodel, path, data=images(qmodel), io_dtype="int8")


def test_target_for_microcontrollers(micro):
    qmodel, path, converted = micro
    assert [row.runtime for row in converted.verification.rows] == ["tflite-micro"]
    report = export.verify(qmodel, path, images(qmodel, 50))
    assert [row.runtime for row in report.rows] == ["tflite-micro", "litert-reference"]
    assert all(row.ran for row in report.rows)
    assert report.row("tflite-micro").arena_bytes == converted.verification.primary.arena_bytes > 0
    assert report.mean_quanta < 0.5


class TestChoiceOfRuntimes:
    def test_named(self, small, small_file):
        names = ["tflite-micro", "litert-reference"]
        report = export.verify(small, small_file[0], images(small, 4), runtimes=names)
        assert [row.runtime for row in report.rows] == names
        assert report.primary.arena_bytes

    def test_claimed_but_missing_has_a_row_that_says_so(self, small, small_file, monkeypatch):
        monkeypatch.delenv(runtimes.PYTHON_VARIABLE, raising=False)
        row = export.verify(small, small_file[0], images(small, 4)).row("tflite-runtime")
        assert not row.ran and row.samples is None
        assert row.note.startswith(f"not installed: set {runtimes.PYTHON_VARIABLE} to")

    def test_named_but_missing(self, small, small_file, monkeypatch):
        monkeypatch.delenv(runtimes.PYTHON_VARIABLE, raising=False)
        names = ["litert-xnnpack", "tflite-runtime"]
        with pytest.raises(ImportError, match="'tflite-runtime' is not installed"):
            export.verify(small, small_file[0], images(small, 4), runtimes=names)

    @pytest.mark.parametrize(
        "names, said",
        [(["litert"], "Unknown runtime"), ([], "is empty"), ("litert", "give a list")],
    )
    def test_wrong(self, small, small_file, names, said):
        with pytest.raises(ValueError, match=said):
            export.verify(small, small_file[0], images(small, 4), runtimes=names)

    def test_no_samples(self, small, small_file):
        with pytest.raises(ValueError, match="samples=0: give 1 or more"):
            export.verify(small, small_file[0], images(small, 4), samples=0)

    def test_none_is_there(self, tmp_path, monkeypatch):
        monkeypatch.delenv(runtimes.PYTHON_VARIABLE, raising=False)
        target = dataclasses.replace(
            targets.get("android"), name="old", runtimes=("tflite-runtime",)
        )
        qmodel, path = freeze(small_model(), target=target), tmp_path / "model.tflite"
        with pytest.raises(VerificationError, match="no runtime ran it: tflite-runtime: not inst"):
            export.convert(qmodel, path, data=images(qmodel))
        assert not path.exists()


def damaged(small_file, tmp_path, damage):
    model = flatbuffer.read(small_file[0].read_bytes())
    for operator in model.subgraphs[0].operators:
        damage(flatbuffer.operator_name(model, operator), operator)
    path = tmp_path / "model.tflite"
    path.write_bytes(checksum.seal(flatbuffer.write(model)))
    return path


class TestDeparture:
    """Numbers and shapes are kept, but what is computed is not."""

    @staticmethod
    def dilated(name, operator):
        if name == "CONV_2D":
            operator.builtinOptions.dilationHFactor = 2

    @staticmethod
    def sharper_softmax(name, operator):
        if name == "SOFTMAX":
            operator.builtinOptions.beta = 9.0

    @pytest.mark.parametrize("name", [*LITERT, "tflite-micro"])
    def test_names_runtime_figures_and_tensor(self, small, small_file, tmp_path, name):
        path = damaged(small_file, tmp_path, self.sharper_softmax)
        said = f"on {name}: .*mean difference .* quanta.*first tensor.*'a6', made by 'head"
        with pytest.raises(VerificationError, match=said):
            export.verify(small, path, images(small), runtimes=[name])

    def test_names_the_first_of_several(self, small, small_file, tmp_path):
        path = damaged(
            small_file,
            tmp_path,
            lambda *of: (self.sharper_softmax(*of), self.dilated(*of)),
        )
        with pytest.raises(VerificationError, match="first tensor .*'a3', made by 're_lu"):
            export.verify(small, path, images(small), runtimes=["litert-builtin"])

    def test_tolerance_can_be_chosen(self, small, small_file, tmp_path):
        path = damaged(small_file, tmp_path, self.sharper_softmax)
        export.verify(small, path, images(small), runtimes=LITERT[:1], mean_quanta=100)
        with pytest.raises(VerificationError, match=r"allowed: 0.001\).*small differences add up"):
            export.verify(
                small, small_file[0], images(small), runtimes=LITERT[1:2], mean_quanta=0.001
            )

    def test_an_output_that_does_not_vary_is_named(self, tmp_path):
        qmodel = frozen((4,), layers.Dense(1, name="out"))
        written(qmodel, tmp_path)
        path = tmp_path / "model.tflite"
        data, options = np.ones((8, 4), np.float32), {"runtimes": LITERT[1:2], "mean_quanta": -1}
        with pytest.raises(VerificationError, match="all but constant.*'out' .*on which it varies"):
            export.verify(qmodel, path, data, **options)
        data = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        with pytest.raises(VerificationError, match=r"allowed: -1\)") as raised:
            export.verify(qmodel, path, data, **options)
        assert "all but constant" not in str(raised.value)


_MUTATE = """
import collections, json, pathlib, sys
import keras, numpy as np
import dqmq_tf
from dqmq_tf.flatbuffer import checksum

folder = pathlib.Path(sys.argv[1])
qmodel = keras.models.load_model(folder / "model.keras")
whole = (folder / "model.tflite").read_bytes()
body = whole[: -len(checksum.seal(b""))]
inputs = np.load(folder / "inputs.npy")
generator, path = np.random.default_rng(0), folder / "mutated.tflite"
results = collections.Counter()
for _ in range(60):
    data = bytearray(body)
    data[generator.integers(len(data))] ^= 1 << generator.integers(8)
    path.write_bytes(checksum.seal(bytes(data)))
    for read in (
        lambda: dqmq_tf.verify(qmodel, path, inputs, runtimes=["litert-builtin"]),
        lambda: dqmq_tf.read_metadata(path),
    ):
        try:
            read()
            results["no error"] += 1
        except Exception as error:
            results[type(error).__name__] += 1
print(json.dumps(results))
"""


def test_damage_under_a_right_checksum_does_not_take_python_down(small, small_file, tmp_path):
    small.save(tmp_path / "model.keras")
    (tmp_path / "model.tflite").write_bytes(small_file[0].read_bytes())
    np.save(tmp_path / "inputs.npy", images(small, 4))
    results = collections.Counter(json.loads(in_new_process(_MUTATE, tmp_path, timeout=300)))
    assert results.total() == 120
    # Some flips change nothing that matters, such as the padding between tables.
    assert set(results) <= {"VerificationError", "FileFormatError", "no error"}
    assert results["VerificationError"] >= 30
