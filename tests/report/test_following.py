"""Checks what is said to follow the quality, and predictions with the quality of other inputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import dqmq_tf
from dqmq_tf.report.following import ShuffledModel, followers, in_company, shuffled_model
from dqmq_tf.report.summary import summary


@pytest.fixture(scope="module")
def exposed():
    """An `android` model behind `Exposure`, inside a nested model, and images of mixed exposure."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 16, 1))
    x = dqmq_tf.layers.Exposure(name="light")(inputs)
    x = keras.layers.Conv2D(4, 3, strides=2, activation="relu")(x)
    x = keras.layers.Flatten()(x)
    body = keras.Model(inputs, keras.layers.Dense(4)(x), name="body")
    outer = keras.Input((16, 16, 1))
    qmodel = dqmq_tf.quantize_model(keras.Model(outer, body(outer)), target="android")
    random = np.random.default_rng(0)
    images = random.uniform(80, 180, (24, 16, 16, 1)).astype("float32")
    images *= np.linspace(0.1, 1.4, 24, dtype="float32")[:, None, None, None]
    qmodel.calibrate(images)
    return qmodel, images


class TestFollowers:
    def test_bits_and_profiles(self, per_sample):
        assert followers(per_sample) == ("the bits of activations",)

    def test_normalization_and_exposure(self):
        inputs = keras.Input((16, 16, 3))
        x = dqmq_tf.layers.Exposure()(inputs)
        x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, use_bias=False)(x))
        model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
        qmodel = dqmq_tf.quantize_model(model, target="simulation")
        bits, scales, exposure = followers(qmodel)
        assert (bits, exposure) == ("the bits of activations", "exposure")
        assert scales == "the scale and shift of 1 batch normalizations"

    def test_exposure_in_a_nested_model(self, exposed):
        assert followers(exposed[0]) == ("exposure",)

    def test_static_models_follow_nothing(self, data):
        inputs = keras.Input((16, 16, 3))
        model = keras.Model(inputs, keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(inputs)))
        qmodel = dqmq_tf.quantize_model(model, target="android")
        assert followers(qmodel) == ()
        assert shuffled_model(qmodel) is None
        qmodel.calibrate(next(iter(data))[0].numpy())
        found = summary(qmodel, data)
        assert found.follows == () and "nothing" in str(found)
        assert {row.shuffled for row in found.qualities} == {None}


class TestShuffledModel:
    def test_equal_inputs_predict_as_the_model(self, per_sample, arrays):
        same = np.repeat(arrays[0][:1], 8, axis=0)
        found = ShuffledModel(per_sample).predict_on_batch([same])
        assert found == pytest.approx(per_sample.predict_on_batch(same), abs=1e-5)

    @pytest.mark.parametrize("kind", ["LSTM", "causal attention", "TimeDistributed"])
    def test_layers_with_arguments_that_are_no_tensors_run(self, kind):
        x = inputs = keras.Input((4, 5))
        if kind == "LSTM":
            x = keras.layers.LSTM(3, return_sequences=True)(x, mask=None)
        elif kind == "TimeDistributed":
            x = keras.layers.TimeDistributed(keras.layers.Dense(3))(x)
        else:
            x = keras.layers.MultiHeadAttention(1, 3)(x, x, use_causal_mask=True)
        model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
        qmodel = dqmq_tf.quantize_model(model, target="simulation")
        sequences = np.random.default_rng(0).normal(size=(8, 4, 5)).astype("float32")
        qmodel.calibrate(sequences)
        same = np.repeat(sequences[:1], 8, axis=0)
        found = ShuffledModel(qmodel).predict_on_batch([same])
        assert found == pytest.approx(qmodel.predict_on_batch(same), abs=1e-5)
        assert summary(qmodel, (sequences, np.zeros(8))).qualities[-1].shuffled is not None

    def test_embeddings_are_those_of_another_input(self, per_sample, arrays, monkeypatch):
        encoder = per_sample._parts.encoder
        first = np.array(encoder(arrays[0]))[:, 0]
        images = arrays[0][[first.argmin(), first.argmax()]]
        found = ShuffledModel(per_sample).predict_on_batch([images])
        z = encoder(images)
        monkeypatch.setattr(encoder, "call", lambda x: z[::-1])
        assert found == pytest.approx(np.array(per_sample(images)), abs=1e-5)
        monkeypatch.undo()
        assert np.abs(found - np.array(per_sample(images))).max() > 1e-3

    def test_exposure_is_that_of_another_input(self, exposed):
        qmodel, images = exposed
        pair = np.stack([images[1], images[-1]])
        own = qmodel.predict_on_batch(pair)
        found = ShuffledModel(qmodel).predict_on_batch([pair])
        # With the exposure of the other, the dark image is black and the bright one white.
        assert np.abs(found - own).max() > 0.5 * np.abs(own[0] - own[1]).max()

    def test_no_input_keeps_its_own_quality(self, exposed, monkeypatch):
        qmodel, images = exposed
        model, seen = ShuffledModel(qmodel), []
        monkeypatch.setattr(model, "_run", lambda x, others: seen.append(others.numpy()) or x[0])
        for count in (1, 2, 7, 24):
            model.predict_on_batch([images[:count]])
            assert sorted(seen[-1]) == list(range(count))
            assert count == 1 or (seen[-1] != np.arange(count)).all()

    def test_shuffling_costs_accuracy_where_exposure_decides(self, exposed):
        qmodel, images = exposed
        labels = qmodel.predict_on_batch(images).argmax(axis=-1)
        found = summary(qmodel, (images, labels)).qualities[-1]
        assert found.accuracy == 1 and found.shuffled < 1

    @pytest.mark.parametrize("size", [1, 23])
    def test_an_input_alone_in_its_batch_takes_the_quality_of_one_beside_it(self, exposed, size):
        qmodel, images = exposed
        # Dark and bright images in turn, and the labels that each gets with its own exposure.
        images = images[np.arange(24).reshape(2, 12).T.ravel()]
        labels = qmodel.predict_on_batch(images).argmax(axis=-1)
        data = tf.data.Dataset.from_tensor_slices((images, labels))
        found = summary(qmodel, data.batch(size)).qualities[-1]
        assert found.samples == 24 and found.accuracy == 1 and found.shuffled < 1
        whole = summary(qmodel, data.take(size + 1)).qualities[-1]
        assert summary(qmodel, data.take(size + 1).batch(size)).qualities[-1] == whole

    def test_no_accuracy_is_shown_if_an_input_has_no_other_beside_it(self, exposed):
        qmodel, images = exposed
        found = summary(qmodel, (images[:1], np.zeros(1)))
        assert found.qualities[-1].accuracy is not None
        assert {row.shuffled for row in found.qualities} == {None}
        assert "shuffled" not in str(found)


class TestInCompany:
    @pytest.mark.parametrize(
        "sizes, joined",
        [
            ((1, 1, 1, 1, 1), [2, 3]),
            ((4, 4, 1), [4, 5]),
            ((4, 1, 4, 2), [4, 5, 2]),
            ((1, 4), [5]),
            ((1, 1), [2]),
            ((2, 3), [2, 3]),
            ((1,), [1]),
        ],
    )
    def test_each_batch_has_two_inputs_in_their_order(self, sizes, joined):
        x = np.arange(sum(sizes))
        ends = np.cumsum(sizes)
        batches = [
            ([x[end - size : end, None]], (-x[end - size : end], None))
            for end, size in zip(ends, sizes)
        ]
        found = list(in_company(batches))
        assert [len(arrays[0]) for arrays, _ in found] == joined
        assert np.concatenate([arrays[0] for arrays, _ in found])[:, 0].tolist() == x.tolist()
        assert np.concatenate([labels for _, (labels, _) in found]).tolist() == (-x).tolist()

    def test_inputs_of_other_sizes_stay_alone(self):
        batches = [([np.zeros((1, length))], ()) for length in (3, 4)]
        assert [arrays[0].shape for arrays, _ in in_company(batches)] == [(1, 3), (1, 4)]
