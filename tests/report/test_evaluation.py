"""Checks what `summary` reports about data against counts by hand."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.summarized_models import SAMPLES, small_network
from keras import ops

import dqmq_tf
from dqmq_tf.report import evaluation
from dqmq_tf.report.summary import summary


class Batches(keras.utils.PyDataset):
    """Batches of 32 of arrays in a structure."""

    def __init__(self, structure):
        super().__init__()
        self.structure = structure

    def __len__(self):
        return SAMPLES // 32

    def __getitem__(self, index):
        rows = slice(32 * index, 32 * index + 32)
        return keras.tree.map_structure(lambda array: array[rows], self.structure)


def element(x, y, kinds, severities):
    return x, y, {"kind": kinds, "severity": severities}


def generated(structure):
    """Yields the batches of `Batches`."""
    dataset = Batches(structure)
    yield from (dataset[index] for index in range(len(dataset)))


def sliced(*arrays):
    return tf.data.Dataset.from_tensor_slices(element(*arrays))


DATA_KINDS = {
    "arrays": element,
    "list of inputs": lambda x, *rest: element([x], *rest),
    "dictionary of inputs": lambda x, *rest: element({"image": x}, *rest),
    "tensors": lambda *arrays: element(*map(tf.constant, arrays)),
    "weighted arrays": lambda x, y, *rest: (x, y, np.ones(SAMPLES), element(x, y, *rest)[2]),
    "batched dataset": lambda *arrays: sliced(*arrays).batch(32),
    "dataset of equal batches": lambda *arrays: sliced(*arrays).batch(32, drop_remainder=True),
    "unbatched dataset": sliced,
    "PyDataset": lambda *arrays: Batches(element(*arrays)),
    "generator": lambda *arrays: generated(element(*arrays)),
}


def unshuffled(row):
    """Returns a row without the score for other inputs' quality, which depends on the batches."""
    return dataclasses.replace(row, shuffled=None)


class TestQualities:
    @pytest.mark.parametrize(
        "change",
        [
            lambda d: d.map(lambda x, y, drawn: (x, y)),
            lambda d: d.map(lambda x, y, drawn: (x, y)).unbatch(),
            lambda d: d.map(lambda x, y, drawn: (x, y, tf.ones_like(y))),
            lambda d: d.map(lambda x, y, drawn: (x, tf.one_hot(y, 10))),
            lambda d: d.map(lambda x, y, drawn: (x, y[:, None])),
        ],
        ids=["batched", "unbatched", "weighted", "one-hot", "column"],
    )
    def test_without_kinds_there_is_one_row(self, per_sample, data, report, change):
        (row,) = summary(per_sample, change(data)).qualities
        assert unshuffled(row) == unshuffled(report.qualities[-1])

    @pytest.mark.parametrize("kind", DATA_KINDS)
    def test_every_kind_of_data_gives_the_same_rows(self, per_sample, report, arrays, kind):
        found = summary(per_sample, DATA_KINDS[kind](*arrays)).qualities
        assert list(map(unshuffled, found)) == list(map(unshuffled, report.qualities))
        assert all(row.shuffled is not None for row in found)

    @pytest.mark.parametrize(
        "data_of",
        [
            lambda x, *_: x,
            lambda x, *_: [x],
            lambda x, *_: {"image": x},
            lambda x, *_: tf.data.Dataset.from_tensor_slices(x).batch(32),
            lambda x, *_: tf.data.Dataset.from_tensor_slices(x),
            lambda x, *_: (part for part in np.split(x, 3)),
        ],
        ids=["array", "list", "dictionary", "batched", "unbatched", "generator"],
    )
    def test_without_labels_there_is_no_accuracy(self, per_sample, report, arrays, data_of):
        (row,) = summary(per_sample, data_of(*arrays)).qualities
        assert row == dataclasses.replace(report.qualities[-1], accuracy=None, shuffled=None)

    def test_a_dataset_without_labels_tells_qualities_apart(self, per_sample, data, report):
        found = summary(per_sample, data.map(lambda x, y, drawn: (x, drawn))).qualities
        assert found == tuple(
            dataclasses.replace(row, accuracy=None, shuffled=None) for row in report.qualities
        )

    def test_samples_of_different_sizes_are_not_in_one_batch(self):
        model = keras.Sequential([keras.Input((None, None, 2)), keras.layers.Conv2D(3, 2)])
        model.add(keras.layers.GlobalAveragePooling2D())
        qmodel = dqmq_tf.quantize_model(model, target="simulation")
        qmodel.calibrate(np.random.default_rng(0).normal(size=(8, 9, 9, 2)))
        samples = ((np.ones((length, 6, 2), "float32"), 1) for length in (5, 5, 7))
        assert summary(qmodel, samples).samples == 3

    def test_tasks_other_than_classification_have_a_loss(self):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, name="line")])
        x, y = np.random.default_rng(0).normal(size=(2, 40, 6)).astype("float32")
        qmodel = dqmq_tf.quantize_model(model, target="simulation")
        qmodel.calibrate(x)
        data = tf.data.Dataset.from_tensor_slices((x, y[:, :2])).batch(16)
        (row,) = summary(qmodel, data).qualities
        assert (row.accuracy, row.loss) == (None, None)
        qmodel.compile(optimizer="adam", loss="mse")
        found = summary(qmodel, data)
        squared = np.mean((qmodel.predict_on_batch(x) - y[:, :2]) ** 2)
        assert found.qualities[0].loss == pytest.approx(squared, rel=1e-5)
        assert "loss" in str(found)

    def test_several_labels_that_are_one_hot_in_some_batches_have_a_loss(self):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        model = keras.Model(inputs, keras.layers.Dense(3, activation="sigmoid")(inputs))
        x = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
        y = np.eye(3)[np.arange(40) % 3]
        y[30] = 1
        qmodel = dqmq_tf.quantize_model(model, target="simulation")
        qmodel.compile("adam", "binary_crossentropy")
        qmodel.calibrate(x)
        for size in (8, 40):
            (row,) = summary(
                qmodel, tf.data.Dataset.from_tensor_slices((x, y)).batch(size)
            ).qualities
            expected = qmodel.evaluate(x, y, verbose=0)
            assert row.accuracy is None and row.loss == pytest.approx(expected, rel=1e-4)


@keras.saving.register_keras_serializable(package="test_evaluation")
class MeanOfBatch(keras.losses.Loss):
    """A loss that returns one value for a batch."""

    def call(self, y_true, y_pred):
        return ops.mean(ops.abs(y_true - y_pred))


def line_model(outputs="list", loss="mse", loss_weights=None):
    """Returns a calibrated model with the outputs `kind` (3 classes) and `size`, and its data."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
    a = keras.Input((6,))
    kind = keras.layers.Dense(3, activation="softmax", name="kind")(a)
    size = keras.layers.Dense(1, name="size")(a)
    structure = {"list": [kind, size], "dict": {"z": kind, "a": size}, "one": size}[outputs]
    qmodel = dqmq_tf.quantize_model(keras.Model(a, structure), target="simulation")
    qmodel.compile("adam", loss, loss_weights)
    qmodel.calibrate(x)
    return qmodel, x, np.arange(40) % 3, x[:, :1] ** 2


CROSS_ENTROPY = "sparse_categorical_crossentropy"


class TestLosses:
    """The loss of a summary is the one that `evaluate` shows."""

    @pytest.mark.parametrize(
        ("outputs", "loss", "loss_weights", "labels"),
        [
            ("list", {"kind": CROSS_ENTROPY, "size": "mse"}, None, lambda k, s: [k, s]),
            ("list", {"kind": CROSS_ENTROPY, "size": "mse"}, [1.0, 1000.0], lambda k, s: [k, s]),
            (
                "list",
                {"kind": CROSS_ENTROPY, "size": MeanOfBatch()},
                {"kind": 10.0, "size": 2.0},
                lambda k, s: {"kind": k, "size": s},
            ),
            ("dict", {"z": CROSS_ENTROPY, "a": "mse"}, None, lambda k, s: {"z": k, "a": s}),
            ("one", {"size": "mse"}, None, lambda k, s: s),
            ("one", MeanOfBatch(), None, lambda k, s: s),
            ("one", lambda y, p: ops.mean(ops.abs(y - p)), [5.0], lambda k, s: s),
        ],
    )
    def test_every_form_of_losses_labels_and_weights(self, outputs, loss, loss_weights, labels):
        qmodel, x, kind, size = line_model(outputs, loss, loss_weights)
        expected = qmodel.evaluate(x, labels(kind, size), verbose=0, return_dict=True)["loss"]
        (row,) = summary(qmodel, (x, labels(kind, size))).qualities
        assert row.loss == pytest.approx(expected, rel=1e-4)

    def test_inputs_have_losses_of_their_own_where_a_loss_has_one_value_for_a_batch(self):
        qmodel, x, _, size = line_model("one", MeanOfBatch())
        found = evaluation.evaluate(qmodel, (x, size)).scores
        errors = np.abs(qmodel.predict_on_batch(x) - size)[:, 0]
        np.testing.assert_allclose(found, errors, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("ignored", [255, -1])
    def test_labels_that_the_loss_ignores_do_not_count(self, ignored):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4, 4, 2)), keras.layers.Conv2D(3, 1)])
        x = np.random.default_rng(0).normal(size=(8, 4, 4, 2)).astype("float32")
        qmodel = dqmq_tf.quantize_model(model, target="simulation")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=ignored)
        qmodel.compile("adam", loss)
        qmodel.calibrate(x)
        y = qmodel.predict_on_batch(x).argmax(-1)
        y[:, 0] = (y[:, 0] + 1) % 3
        y[:, 1:3] = ignored
        # One half of the labels that count is right. The last image has none.
        y[-1] = ignored
        (row,) = summary(qmodel, (x, y)).qualities
        assert row.accuracy == pytest.approx(0.5) and row.samples == 8
        # JSON has no NaN.
        alone = summary(qmodel, (x[-1:], y[-1:]))
        assert np.isnan(alone.qualities[-1].accuracy)
        assert "NaN" not in alone.to_json() and alone.to_dict()["qualities"][0]["accuracy"] is None


class TestErrors:
    def test_data_needs_a_calibrated_model(self, data):
        qmodel = dqmq_tf.quantize_model(small_network())
        with pytest.raises(ValueError, match="`data`.*not seen data.*calibrate"):
            summary(qmodel, data)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: "images", "must be an array.*Found str"),
            (lambda d: (np.zeros((2, 16, 16, 3)), np.zeros(3)), "2 inputs with .3. labels"),
            (lambda d: d.take(0), "holds no inputs"),
            (lambda d: d.filter(lambda x, y, drawn: False), "holds no inputs"),
            (lambda d: d.repeat(), "without an end"),
            (lambda d: d.map(lambda x, y, drawn: (x, y, y, y)), "elements \\(image, label\\)"),
            (lambda d: d.map(lambda x, y, drawn: {"picture": x, "label": y}), "image.*picture"),
            (lambda d: d.map(lambda x, y, drawn: (x, y, {"kind": y})), "elements.*kind"),
            (
                lambda d: d.map(lambda x, y, drawn: (x, y, {"camera": tf.as_string(y)})),
                "measures of your own.*camera",
            ),
            (lambda d: d.map(lambda x, y, drawn: (x[:, :8], y)), "batch.*16, 16, 3.*8, 16, 3"),
            (
                lambda d: d.map(lambda x, y, drawn: (x, y, {"kind": y + 99, "severity": y})),
                "kinds from 0 .clean. to 14.*Found 99",
            ),
        ],
    )
    def test_data_of_another_form_is_rejected(self, per_sample, data, change, message):
        with pytest.raises(ValueError, match=f"`data`.*{message}"):
            summary(per_sample, change(data))
