import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

from dqmq_tf import quality

CIFAR_FOLDER = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "tfds"
needs_cifar = pytest.mark.skipif(
    not (CIFAR_FOLDER / "cifar10").is_dir(), reason=f"no prepared CIFAR-10 in {CIFAR_FOLDER}"
)


@needs_cifar
def test_load_reads_a_prepared_dataset():
    dataset, info = quality.load("cifar10", split="test[:50]", data_dir=str(CIFAR_FOLDER))
    assert dataset.element_spec[0] == tf.TensorSpec([32, 32, 3], tf.uint8)
    assert dataset.cardinality() == 50
    assert info.features["label"].num_classes == 10
    mixed = quality.mixed_quality(dataset.batch(25))
    assert [image.shape[0] for image, _ in mixed] == [25, 25]


def test_load_refuses_several_splits():
    with pytest.raises(ValueError, match="one split"):
        quality.load("cifar10", split=["train", "test"])


def test_load_without_tensorflow_datasets_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="pip install tensorflow-datasets"):
        quality.load("cifar10")


def test_digits_splits_are_the_whole_set_and_hold_every_class():
    train, test = quality.digits("train"), quality.digits("test")
    assert train.cardinality() + test.cardinality() == 1797
    for split in (train, test):
        labels = np.array([label for _, label in split.as_numpy_iterator()])
        assert np.bincount(labels, minlength=10).min() >= 30


@pytest.mark.parametrize("size, channels", [(32, 3), (8, 1), (17, 1)])
def test_digits_have_the_requested_size_and_channels(size, channels):
    dataset = quality.digits("test", size=size, channels=channels)
    assert dataset.element_spec[0] == tf.TensorSpec([size, size, channels], tf.uint8)
    image, label = next(iter(dataset))
    assert image.numpy().max() > 200 and 0 <= label < 10


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(split="validation"), "'train' or 'test'"),
        (dict(size=0), "`size`"),
        (dict(channels=2), "`channels`"),
    ],
)
def test_digits_rejects_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        quality.digits(**arguments)


def test_digits_without_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        quality.digits()
