"""`dqmq_tf.report.evaluation`: what `summary` finds in data is checked against counts by hand."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

import dqmq_tf
from dqmq_tf import quality
from dqmq_tf.report.summary import summary

KINDS = ("gaussian_noise", "motion_blur")
SAMPLES = 96


def small_network():
    inputs = keras.Input((16, 16, 3), name="image")
    x = keras.layers.Rescaling(1 / 255.0, name="unit")(inputs)
    x = keras.layers.Conv2D(8, 3, strides=2, name="stem")(x)
    x = keras.layers.ReLU(name="relu")(x)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="classes")(x), name="small")


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def data():
    digits = quality.digits("test", size=16).take(SAMPLES).batch(32)
    mixed = quality.mixed_quality(
        digits, kinds=KINDS, severity=(2, 4), clean=0.3, seed=3, with_quality=True
    )
    return mixed.cache()


@pytest.fixture(scope="module")
def arrays(data):
    """Images, labels, kinds and severities of `data`."""
    elements = list(data.unbatch().as_numpy_iterator())
    columns = [[e[0] for e in elements], [e[1] for e in elements]]
    columns += [[e[2][key] for e in elements] for key in ("kind", "severity")]
    return [np.array(column) for column in columns]


@pytest.fixture(scope="module")
def per_sample(data):
    """A model with activation bits per sample and two profiles."""
    keras.utils.set_random_seed(0)
    qmodel = dqmq_tf.quantize_model(
        small_network(),
        target="simulation",
        budget=dqmq_tf.Budget(mean_bit_width=7.0),
        config=dqmq_tf.DQMQConfig(profiles=2),
    )
    qmodel.compile(optimizer="adam", loss=loss())
    qmodel.fit(data.map(lambda x, y, drawn: (x, y)), verbose=0)
    directions = np.random.default_rng(0).normal(0, 1.0, qmodel.policy.direction.shape)
    qmodel.policy.direction.assign(directions)
    qmodel.settle()
    return qmodel


@pytest.fixture(scope="module")
def report(per_sample, data):
    return summary(per_sample, data)


class TestDecided:
    def test_distribution_is_averaged_over_the_inputs(self, per_sample, report, arrays):
        policy = per_sample.policy
        z = keras.ops.convert_to_numpy(per_sample.encoder(arrays[0]))
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
    def test_rows_are_those_counted_by_hand(self, per_sample, report, arrays):
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
            # With what decides the bits.
            assert row.bit_ops == pytest.approx(bit_ops + per_sample.costs.overhead)

    def test_order_is_clean_kinds_all(self, report):
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

    def test_other_tasks_have_a_loss(self):
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
    def test_not_calibrated(self, data):
        qmodel = dqmq_tf.quantize_model(small_network())
        with pytest.raises(ValueError, match="`data`.*not seen data.*calibrate"):
            summary(qmodel, data)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: (np.zeros((2, 16, 16, 3)), np.zeros(2)), "tf.data.Dataset. Found tuple"),
            (lambda d: d.take(0), "an empty"),
            (lambda d: d.filter(lambda x, y, drawn: False), "is empty: it gave no batch"),
            (lambda d: d.repeat(), "an endless"),
            (lambda d: d.map(lambda x, y, drawn: x), "elements \\(image, label\\)"),
            (lambda d: d.map(lambda x, y, drawn: {"image": x, "label": y}), "elements"),
            (lambda d: d.map(lambda x, y, drawn: (x, y, {"kind": y})), "elements"),
            (lambda d: d.map(lambda x, y, drawn: (x[:, :8], y)), "shape.*16, 16, 3.*8, 16, 3"),
            (
                lambda d: d.map(lambda x, y, drawn: (x, y, {"kind": y + 99, "severity": y})),
                "kinds from 0 .clean. to 14.*Found 99",
            ),
        ],
    )
    def test_data_of_another_form(self, per_sample, data, change, message):
        with pytest.raises(ValueError, match=f"`data`.*{message}"):
            summary(per_sample, change(data))
