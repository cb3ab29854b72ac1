"""Checks what `summary` reports about data against counts by hand."""

import collections
import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.summarized_models import KINDS, SAMPLES, small_network

import dqmq_tf
from dqmq_tf import quality
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


class TestDecisionStatistics:
    def test_distribution_is_averaged_over_the_inputs(self, per_sample, report, arrays):
        policy = per_sample._parts.policy
        z = keras.ops.convert_to_numpy(per_sample._parts.encoder(arrays[0]))
        direction = policy.direction.numpy()
        step = np.abs(direction).max() / 127
        direction = step * np.round(direction / step)
        mean = policy.mean.numpy()[0] + z @ direction[0]
        mean = np.clip(mean, 2, 8)
        found = report.activations[0].distribution
        sigma = np.exp(policy.log_sigma.numpy()[0]) * policy.temperature.numpy()
        p = np.exp(-((mean[:, None] - np.arange(2, 9)) ** 2) / (2 * sigma**2))
        p = (p / p.sum(axis=1, keepdims=True)).mean(axis=0)
        assert found.bit_widths == tuple(range(2, 9))
        assert found.mean == pytest.approx(mean.mean(), abs=1e-4)
        assert found.sigma == pytest.approx(sigma)
        assert found.probabilities == pytest.approx(p, abs=1e-4)


class TestQualities:
    def test_rows_agree_with_counts_by_hand(self, per_sample, report, arrays):
        images, labels, kinds, severities = arrays
        right = per_sample.predict(images, verbose=0).argmax(axis=1) == labels
        table = per_sample.decisions(images)
        cases = collections.defaultdict(list)
        for i in range(SAMPLES):
            name = ("clean", *quality.KINDS)[kinds[i]]
            bits, bit_ops, weight_bits, input_bits = table.bits[i], 0, 0, 0
            for row in report.layers:
                w, a = bits[table.points.index(row.name)], bits[table.points.index(row.input)]
                bit_ops += row.macs * w * a
                weight_bits += row.weights * w
                input_bits += row.macs * a
            values = (right[i], weight_bits, input_bits, bit_ops)
            cases[name, int(severities[i])].append(values)
            cases["all", None].append(values)
        assert {(row.kind, row.severity) for row in report.qualities} == set(cases)
        for row in report.qualities:
            share, weight_bits, input_bits, bit_ops = np.mean(cases[row.kind, row.severity], axis=0)
            assert row.samples == len(cases[row.kind, row.severity])
            assert row.accuracy == pytest.approx(share)
            assert row.loss is None
            assert row.weight_bits == pytest.approx(weight_bits / report.total("weights"))
            assert row.activation_bits == pytest.approx(input_bits / report.total("macs"))
            # The overhead is the cost of the encoder and the policy.
            assert row.bit_ops == pytest.approx(bit_ops + per_sample._parts.costs.overhead)

    def test_rows_are_ordered_clean_then_kinds_then_all(self, report):
        kinds = list(dict.fromkeys(row.kind for row in report.qualities))
        assert kinds == ["clean", *KINDS, "all"]
        severities = [row.severity for row in report.qualities if row.kind == KINDS[0]]
        assert severities == [2, 3, 4]

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
        assert row == report.qualities[-1]

    @pytest.mark.parametrize("kind", DATA_KINDS)
    def test_every_kind_of_data_gives_the_same_rows(self, per_sample, report, arrays, kind):
        assert summary(per_sample, DATA_KINDS[kind](*arrays)).qualities == report.qualities

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
        assert row == dataclasses.replace(report.qualities[-1], accuracy=None)

    def test_a_dataset_without_labels_tells_qualities_apart(self, per_sample, data, report):
        found = summary(per_sample, data.map(lambda x, y, drawn: (x, drawn))).qualities
        assert found == tuple(dataclasses.replace(row, accuracy=None) for row in report.qualities)

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
