"""Calibration sees enough samples, and training all of them, in whatever form `fit` gets its data."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.networks import chain

import dqmq_tf
from dqmq_tf.training import fit_data

X = np.arange(40, dtype="float32").reshape(10, 4)
Y = np.arange(10.0)


class Pairs(keras.utils.PyDataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return X[2 * index : 2 * index + 2], Y[2 * index : 2 * index + 2]


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)


FORMS = {
    "dataset": dataset,
    "endless dataset": lambda: dataset().repeat(),
    "PyDataset": Pairs,
    "generator": lambda: iter(list(dataset().as_numpy_iterator())),
}


@pytest.fixture(scope="module")
def model():
    return chain((4,), keras.layers.Dense(1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wanted, seen", [(1, 2), (5, 6), (100, 10)])
def test_batches_are_read_until_there_are_enough_samples(model, form, wanted, seen):
    if form == "endless dataset" and wanted > len(X):
        wanted = seen
    x, (arrays,) = fit_data.peek(FORMS[form](), model, lambda first: wanted)
    np.testing.assert_array_equal(arrays, X[:seen])
    if form == "generator":
        np.testing.assert_array_equal(np.concatenate([a for a, _ in x]), X)


def test_images_of_another_size_end_it_and_are_not_lost():
    anywhere = chain((None, 4), keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(1))
    elements = [(np.ones((2, n, 4), "float32"), np.ones(2)) for n in (3, 3, 5, 3)]
    x, (arrays,) = fit_data.peek(iter(elements), anywhere, lambda first: 100)
    assert arrays.shape == (4, 3, 4)
    assert [len(a[0]) for a, _ in x] == [3, 3, 5, 3]


@pytest.mark.parametrize("empty", [lambda: dataset().take(0), lambda: iter([])])
def test_data_without_a_batch_are_refused(model, empty):
    with pytest.raises(ValueError, match="empty"):
        fit_data.peek(empty(), model, lambda first: 1)


def test_ranges_fit_more_than_a_small_first_batch(model):
    values = np.repeat([[0.1], [0.2], [50.0], [-50.0]], 4, axis=1).astype("float32")
    qmodel = dqmq_tf.quantize_model(chain((4,), keras.layers.Dense(1, kernel_initializer="ones")))
    qmodel.compile("sgd", "mse", run_eagerly=True)
    data = tf.data.Dataset.from_tensor_slices((values, values.sum(1))).batch(1)
    qmodel.fit(data.repeat(2), steps_per_epoch=8, verbose=0)
    found = qmodel.predict(values, verbose=0)
    assert found.min() < -150 and found.max() > 150
