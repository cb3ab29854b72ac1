"""A file says how to feed it: what it says, where it comes from, and what is refused."""

import json
import os
import subprocess
import warnings
import zipfile

import flatbuffers
import keras
import numpy as np
import pytest
import rich
from ai_edge_litert.interpreter import Interpreter
from flatbuffers import number_types
from helpers.frozen_models import freeze, images, small_model

import dqmq_tf
from dqmq_tf import Preprocessing, export, flatbuffer, graph
from dqmq_tf.export.preprocessing import input_facts
from dqmq_tf.flatbuffer import TFLiteFile, checksum

LABELS = ["cat", "dog", "Fußgänger", "road sign"]
IMAGENET = Preprocessing(
    mean=(123.68, 116.28, 103.53), std=[58.4, 57.1, 57.4], color="BGR", resize="bilinear"
)
ENTRY = {
    "mean": [123.68, 116.28, 103.53],
    "std": [58.4, 57.1, 57.4],
    "color": "BGR",
    "resize": "bilinear",
}
layers = keras.layers


def rescaling_model():
    """A network that takes pixels from 0 to 255."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 1), name="digit")
    x = layers.Conv2D(6, 3, name="conv")(layers.Rescaling(1 / 255, name="unit")(inputs))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x))


@pytest.fixture(scope="module")
def described(small, tmp_path_factory):
    """The path and the report of a file with labels and preprocessing."""
    path = tmp_path_factory.mktemp("described") / "model.tflite"
    return path, export.convert(small, path, labels=LABELS, preprocessing=IMAGENET, verify=False)


@pytest.fixture(scope="module")
def pixels():
    """A frozen model that takes pixels, and typical images."""
    model = rescaling_model()
    data = np.random.default_rng(0).uniform(0, 255, (64, 8, 8, 1)).astype("float32")
    return freeze(model, data=data), data


def test_the_file_says_what_was_given(described):
    facts = export.read_metadata(described[0])
    assert facts["inputs"] == {"image": ENTRY}
    assert facts["labels"] == LABELS


def test_the_network_is_the_same_with_and_without(small, small_file, described):
    assert export.verify(small, described[0], images(small)).different_numbers == 0
    x = images(small)
    one, other = (
        Interpreter(str(path)).get_signature_runner() for path in (small_file[0], described[0])
    )
    for image in x[:16, None]:
        np.testing.assert_array_equal(*(list(run(image=image).values()) for run in (one, other)))


def test_the_report_counts_the_bytes_of_what_was_given(small_file, described):
    path, report = described
    assert report.size_bytes == path.stat().st_size
    assert report.described_bytes == report.size_bytes - small_file[1].size_bytes > 0
    assert small_file[1].described_bytes == 0


def test_inspect_shows_it(described, capsys):
    rich.print(export.inspect_file(described[0]))
    shown = " ".join(capsys.readouterr().out.split())
    assert "image takes (pixel - [123.68, 116.28, 103.53]) / [58.4, 57.1, 57.4]" in shown
    assert "BGR bilinear" in shown and "4 classes: cat, dog, Fußgänger, road sign" in shown


def test_a_file_about_which_nothing_is_known_says_nothing(small_file):
    assert {"inputs", "labels"}.isdisjoint(export.read_metadata(small_file[0]))


def test_a_model_that_rescales_takes_plain_pixels(pixels, tmp_path):
    qmodel, data = pixels
    path = tmp_path / "model.tflite"
    report = export.convert(qmodel, path, data=data)
    plain = {"mean": [0], "std": [1], "color": "GRAY"}
    assert export.read_metadata(path)["inputs"] == {"digit": plain}
    assert report.described_bytes == 0
    # What the caller says replaces it.
    export.convert(qmodel, path, verify=False, preprocessing=Preprocessing(resize="area"))
    assert export.read_metadata(path)["inputs"] == {"digit": plain | {"resize": "area"}}
    export.convert(qmodel, path, verify=False, labels=LABELS)
    assert export.read_metadata(path)["inputs"] == {"digit": plain}


def test_a_budget_counts_what_the_model_tells_and_not_what_was_given(pixels, tmp_path, monkeypatch):
    qmodel, _ = pixels
    path = tmp_path / "model.tflite"
    size = export.convert(qmodel, path, verify=False).size_bytes
    monkeypatch.setattr(
        type(qmodel), "budget", property(lambda self: dqmq_tf.Budget(size_bytes=size))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        export.convert(qmodel, path, verify=False)
    with pytest.warns(UserWarning, match=r"The network meets the budget; labels and preproc"):
        report = export.convert(qmodel, path, verify=False, labels=LABELS)
    assert report.size_bytes == path.stat().st_size == size + report.described_bytes
    assert export.read_metadata(path)["labels"] == LABELS
    one_less = dqmq_tf.Budget(size_bytes=size - 1)
    monkeypatch.setattr(type(qmodel), "budget", property(lambda self: one_less))
    with pytest.raises(export.ConversionError, match="size_bytes.*budget is"):
        export.convert(qmodel, path, verify=False)


def test_an_int8_file_for_a_microcontroller_says_it_for_the_pixels(small, tmp_path):
    qmodel = freeze(small_model(), target="microcontroller")
    path = tmp_path / "model.tflite"
    export.convert(qmodel, path, verify=False, labels=LABELS, preprocessing=IMAGENET)
    assert export.read_metadata(path)["inputs"] == {"image": ENTRY}
    assert b"TFLITE_METADATA" not in path.read_bytes() and not zipfile.is_zipfile(path)
    graph_ = TFLiteFile.load(path).model.subgraphs[0]
    assert flatbuffer.type_name(graph_.tensors[graph_.inputs[0]]) == "INT8"


class Table:
    """A table of a flatbuffer, read by the slots of `metadata_schema.fbs`."""

    def __init__(self, buffer, position):
        self.table = flatbuffers.table.Table(buffer, position)

    def _field(self, slot):
        offset = self.table.Offset(4 + 2 * slot)
        return self.table.Pos + offset if offset else None

    def number(self, slot, flags=number_types.Uint8Flags):
        return self.table.Get(flags, self._field(slot)) if self._field(slot) else 0

    def text(self, slot):
        return self.table.String(self._field(slot)).decode()

    def inner(self, slot):
        return Table(self.table.Bytes, self.table.Indirect(self._field(slot)))

    def tables(self, slot):
        offset = self.table.Offset(4 + 2 * slot)
        start = self.table.Vector(offset)
        places = [start + 4 * number for number in range(self.table.VectorLen(offset))]
        return [Table(self.table.Bytes, self.table.Indirect(place)) for place in places]

    def floats(self, slot):
        offset = self.table.Offset(4 + 2 * slot)
        return self.table.GetVectorAsNumpy(number_types.Float32Flags, offset)


def standard_metadata_of(path):
    model = TFLiteFile.load(path).model
    (entry,) = [e for e in model.metadata if e.name == b"TFLITE_METADATA"]
    data = model.buffers[entry.buffer].data.tobytes()
    assert data[4:8] == b"M001"
    return Table(data, int.from_bytes(data[:4], "little"))


def test_a_file_for_litert_has_the_standard_metadata(described):
    (subgraph,) = standard_metadata_of(described[0]).tables(3)
    (image,), (scores,) = subgraph.tables(2), subgraph.tables(3)
    assert (image.text(0), scores.text(0)) == ("image", "head")
    assert image.inner(3).number(0) == 2  # ImageProperties
    properties = image.inner(3).inner(1)
    assert properties.number(0) == 0  # BGR has no number: readers refuse an unknown color space.
    size = [properties.inner(1).number(slot, number_types.Uint32Flags) for slot in (0, 1)]
    assert size == [8, 8]
    (unit,) = image.tables(4)
    assert unit.number(0) == 1  # NormalizationOptions
    for slot, key in enumerate(("mean", "std")):
        np.testing.assert_array_equal(unit.inner(1).floats(slot), np.float32(ENTRY[key]))
    (file,) = scores.tables(6)
    assert (file.text(0), file.number(2)) == ("labels.txt", 2)


def test_the_labels_are_a_file_in_a_complete_zip_archive(described):
    with zipfile.ZipFile(described[0]) as archive:
        assert archive.testzip() is None
        (member,) = archive.infolist()
        # Readers map it into memory.
        assert (member.filename, member.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
        assert archive.read(member).decode().split("\n") == LABELS
        # The checksum is the comment of the archive, so nothing stands behind the archive.
        assert checksum.seal(b"")[:8] == archive.comment[:8]
        assert len(archive.comment) == checksum.LENGTH


def test_a_damaged_label_file_is_refused(described, tmp_path):
    contents, path = described[0].read_bytes(), tmp_path / "model.tflite"
    place = contents.rindex(b"road sign")
    path.write_bytes(contents[:place] + b"R" + contents[place + 1 :])
    with pytest.raises(export.FileFormatError, match="corrupt"):
        export.read_metadata(path)


SUPPORT = "DQMQ_TFLITE_SUPPORT_PYTHON"
CLASSIFY = """
import json, sys
import numpy as np
from tflite_support.task import vision
image = vision.TensorImage.create_from_array(np.load(sys.argv[2]))
result = vision.ImageClassifier.create_from_file(sys.argv[1]).classify(image)
found = result.classifications[0].categories
print(json.dumps({entry.category_name: entry.score for entry in found}))
"""


@pytest.mark.skipif(
    SUPPORT not in os.environ, reason=f"{SUPPORT} names no Python with tflite-support"
)
def test_the_task_library_feeds_the_file_and_names_its_classes(small, tmp_path):
    path, picture = tmp_path / "model.tflite", tmp_path / "picture.npy"
    given = Preprocessing(mean=[100, 127.5, 140], std=[50, 60, 70.5], resize="bilinear")
    export.convert(small, path, verify=False, labels=LABELS, preprocessing=given)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    np.save(picture, pixels)
    said = subprocess.run(
        [os.environ[SUPPORT], "-c", CLASSIFY, path, picture], check=True, capture_output=True
    ).stdout
    image = (pixels - np.float32(given.mean)) / np.float32(given.std)
    (scores,) = Interpreter(str(path)).get_signature_runner()(image=image[None]).values()
    assert json.loads(said) == dict(zip(LABELS, scores[0].tolist()))


def facts_of(model, labels=None, preprocessing=None):
    return input_facts(graph.trace(model), labels, preprocessing)


def test_one_number_stands_for_all_channels():
    facts = facts_of(small_model(), preprocessing=Preprocessing(mean=127.5, std=[255]))
    entry = {"mean": [127.5] * 3, "std": [255] * 3, "color": "RGB"}
    assert facts == {"inputs": {"image": entry}}
    facts = facts_of(rescaling_model(), preprocessing=Preprocessing())
    assert facts["inputs"]["digit"]["color"] == "GRAY"


def two_inputs():
    image, other = keras.Input((8, 8, 5), name="spectra"), keras.Input((4,), name="place")
    x = layers.Concatenate()([layers.Flatten()(image), other])
    return keras.Model([image, other], [layers.Dense(2)(x), layers.Dense(3)(x)])


def test_only_image_inputs_have_preprocessing():
    facts = facts_of(two_inputs(), preprocessing=Preprocessing(std=255))
    assert facts == {"inputs": {"spectra": {"mean": [0] * 5, "std": [255] * 5}}}


def pixel_model():
    inputs = keras.Input((8, 8, 3), dtype="uint8", name="photo")
    return keras.Model(inputs, layers.Flatten()(layers.Conv2D(2, 3)(inputs)))


def signal_model():
    return keras.Sequential([keras.Input((5,), name="signal"), layers.Dense(2)])


@pytest.mark.parametrize(
    "model, given, message",
    [
        (small_model, {"labels": LABELS[:3]}, r"3 names, but the output .* \(None, 4\)"),
        (small_model, {"labels": [*LABELS[:3], "cat"]}, "'cat' more than once"),
        (small_model, {"labels": "cats"}, "labels='cats' must be a list of strings"),
        (small_model, {"labels": [0, 1, 2, 3]}, "must be a list of strings"),
        (small_model, {"labels": [*LABELS[:3], " "]}, "Label 3 is ' '"),
        (small_model, {"labels": ["a\nb", *LABELS[:3]]}, "Label 0 is .* on one line"),
        (two_inputs, {"labels": ["a", "b"]}, "one output, but the model has 2"),
        (small_model, {"preprocessing": Preprocessing(mean=[1, 2])}, "mean .* 'image' has 2 numbers"),
        (small_model, {"preprocessing": Preprocessing(std=[1] * 4)}, "std .* 'image' has 4 numbers"),
        (small_model, {"preprocessing": Preprocessing(color="GRAY")}, "'GRAY' .* 'image' has 1 chan"),
        (two_inputs, {"preprocessing": Preprocessing(color="RGB")}, "'spectra' has 3 .* has 5"),
        (small_model, {"preprocessing": {"x": IMAGENET}}, "names 'x', which is not an image input"),
        (two_inputs, {"preprocessing": {"place": IMAGENET}}, "names 'place', which is not an image"),
        (small_model, {"preprocessing": {"image": "RGB"}}, "has 'RGB' for input 'image'"),
        (small_model, {"preprocessing": "RGB"}, "must be a `dqmq_tf.Preprocessing`"),
        (signal_model, {"preprocessing": IMAGENET}, r"is for images .*'signal': \(None, 5\)"),
        (pixel_model, {"preprocessing": Preprocessing(std=255)}, "'photo' has dtype uint8"),
    ],
)  # fmt: skip
def test_what_does_not_suit_the_model_is_refused(model, given, message):
    with pytest.raises(ValueError, match=message):
        facts_of(model(), **given)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("mean", float("nan"), "mean=nan .* finite numbers"),
        ("mean", "127", "mean='127' of the preprocessing must be a number"),
        ("mean", (), r"mean=\(\) of the preprocessing must be a number"),
        ("mean", [[1, 2, 3]], "must be a number"),
        ("std", 0, "std=0 of the preprocessing must be above 0"),
        ("std", [1, -1, 1], "must be above 0"),
        ("color", "rgb", "color='rgb' .* must be one of 'RGB', 'BGR', 'GRAY'"),
        ("resize", "cubic", "resize='cubic' .* must be one of 'nearest', 'bilinear', 'area'"),
    ],
)
def test_a_value_that_is_none_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**{field: value})


def test_nothing_is_written_or_frozen_for_a_wrong_request(tmp_path):
    qmodel = dqmq_tf.quantize_model(small_model(), budget=dqmq_tf.Budget(size_bytes=10**6))
    qmodel.calibrate(images(qmodel))
    with pytest.raises(ValueError, match="3 names, but the output"):
        export.convert(qmodel, tmp_path / "model.tflite", labels=LABELS[:3])
    assert not list(tmp_path.iterdir()) and not qmodel.frozen_profiles


@pytest.mark.parametrize(
    "preprocessing, fed",
    [
        (
            Preprocessing(std=255),
            "from 0 to 1, but the model was calibrated on values from 0 to 25",
        ),
        (Preprocessing(mean=127.5, std=127.5), "from -1 to 1"),
    ],
)
def test_preprocessing_that_contradicts_the_calibration_causes_a_warning(
    pixels, preprocessing, fed, tmp_path
):
    model, data = pixels
    with pytest.warns(UserWarning, match=f"Input 'digit'.* {fed}"):
        export.convert(
            model, tmp_path / "m.tflite", data=data, preprocessing=preprocessing, verify=False
        )


def test_so_does_a_rule_of_resizing_alone_for_images_that_are_no_pixels(small, tmp_path):
    preprocessing = Preprocessing(resize="bilinear")
    with pytest.warns(UserWarning, match="Input 'image'.* from 0 to 255"):
        export.convert(small, tmp_path / "m.tflite", preprocessing=preprocessing, verify=False)


@pytest.mark.parametrize("preprocessing", [None, Preprocessing(resize="area")])
def test_preprocessing_that_suits_the_calibration_causes_none(pixels, preprocessing, tmp_path):
    model, data = pixels
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*preprocessing")
        export.convert(
            model, tmp_path / "m.tflite", data=data, preprocessing=preprocessing, verify=False
        )
