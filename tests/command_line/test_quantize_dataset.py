"""The command `quantize` on a dataset of tensorflow-datasets, which is prepared here."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.commands import call
from helpers.image_folders import CLASSES, digit_images, trained_classifier

from dqmq_tf import quality, read_metadata


class FewDigits(tfds.core.GeneratorBasedBuilder):
    """Gray digits of 8 x 8 pixels."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "label": tfds.features.ClassLabel(names=CLASSES),
            }
        )
        return self.dataset_info_from_configs(features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 120), "test": self._generate_examples(120, 200)}

    def _generate_examples(self, start, stop):
        images, labels = digit_images()
        for i in range(start, stop):
            yield i, {"image": images[i].astype(np.uint8), "label": int(labels[i])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    FewDigits(data_dir=folder).download_and_prepare()
    return folder


def test_a_dataset_becomes_a_file_and_the_held_back_images_are_its_first(folder, tmp_path, capsys):
    model = trained_classifier()
    model.save(tmp_path / "float.keras")
    code = call(
        "quantize", tmp_path / "float.keras", tmp_path / "model.tflite", "--data=few_digits",
        f"--data_dir={folder}", "--split=train", "--validation_split=0.25", "--epochs=1",
        "--batch_size=30", "--noverify", f"--json={tmp_path / 'report.json'}",
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["classes"] == list(CLASSES)
    # The accuracy is that on the first quarter of the split, in the order in which it is stored.
    stored, _ = quality.load("few_digits", "train", folder)
    images, labels = map(np.stack, zip(*stored.take(30).as_numpy_iterator()))
    hits = model.predict(images.astype("float32"), verbose=0).argmax(-1) == labels
    assert report["float_accuracy"] == pytest.approx(hits.mean(), abs=1e-6)
    assert hits.mean() > 0.8 and report["accuracy"] > 0.8
    assert report["summary"]["qualities"][-1]["samples"] == 30
    facts = read_metadata(tmp_path / "model.tflite")
    assert facts["labels"] == list(CLASSES)


def test_a_name_that_no_dataset_has_is_said_in_a_line(folder, tmp_path, capsys):
    trained_classifier().save(tmp_path / "float.keras")
    code = call(
        "quantize", tmp_path / "float.keras", tmp_path / "m.tflite",
        "--data=few_digit", f"--data_dir={folder}",
    )  # fmt: skip
    assert code == 2 and not (tmp_path / "m.tflite").exists()
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("dqmq_tf quantize: There is no dataset 'few_digit', neither in")
    assert len(lines) < 10
