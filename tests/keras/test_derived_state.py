"""Layers that compute something from their variables when a model is loaded, or from data."""

import keras
import numpy as np
import pytest
from helpers.eight_bits import converted, largest_error, quantized, trained
from keras import layers

from dqmq_tf.graph.rebuild import copy_model

DATA = np.random.default_rng(0).normal(5, 3, (64, 3)).astype("float32")


class Centered(layers.Layer):
    """Subtracts a mean that `adapt` takes from data. `call` uses an array made of the variable."""

    def build(self, shape):
        self.mean = self.add_weight(name="mean", shape=(shape[-1],), trainable=False)
        self.finalize_state()

    def adapt(self, data):
        self.build(data.shape)
        self.built = True
        self.mean.assign(data.mean(axis=0))
        self.finalize_state()

    def finalize_state(self):
        self.shift = keras.ops.convert_to_numpy(self.mean)

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self.finalize_state()

    def call(self, x):
        return x - self.shift


class Codebook(layers.Layer):
    """Holds a table whose size only `build_from_config` knows, and saves it under its own name."""

    total = 0.0

    def make(self, size):
        self.table = self.add_weight(name="table", shape=(size,), trainable=False)

    def get_build_config(self):
        return {"size": int(self.table.shape[0])}

    def build_from_config(self, config):
        self.make(config["size"])
        self.built = True

    def save_own_variables(self, store):
        store["table"] = self.table

    def load_own_variables(self, store):
        self.table.assign(store["table"])
        self.total = float(np.sum(store["table"]))

    def call(self, x):
        return x * self.total


class Thresholds(layers.Layer):
    """Keeps its thresholds in a text file, as a vocabulary is kept."""

    limits = (0.0, 0.0, 0.0)

    def save_assets(self, folder):
        with open(f"{folder}/limits.txt", "w") as file:
            file.write(" ".join(map(str, self.limits)))

    def load_assets(self, folder):
        with open(f"{folder}/limits.txt") as file:
            self.limits = tuple(map(float, file.read().split()))

    def call(self, x):
        return x - np.array(self.limits, "float32")


def adapted_normalization():
    layer = layers.Normalization()
    layer.adapt(DATA)
    return layer


def adapted_centered():
    layer = Centered()
    layer.adapt(DATA)
    return layer


def filled_codebook(table=(0.1, 0.2, 0.3, 0.5)):
    layer = Codebook()
    layer.make(len(table))
    layer.built = True
    layer.load_own_variables({"table": np.array(table, "float32")})
    return layer


def codebook_that_changes_nothing():
    return filled_codebook((0.25, 0.25, 0.5))


def filled_thresholds():
    layer = Thresholds()
    layer.limits = (1.0, 2.0, 3.0)
    return layer


def nested_normalization():
    normalize = keras.Sequential([keras.Input((3,)), adapted_normalization()], name="preprocessing")
    return keras.Sequential([normalize, layers.Dense(4, "relu")], name="stem")


def normalization_in_a_wrapper():
    return layers.TimeDistributed(adapted_normalization())


KINDS = [
    adapted_normalization,
    adapted_centered,
    filled_codebook,
    codebook_that_changes_nothing,
    filled_thresholds,
    nested_normalization,
    normalization_in_a_wrapper,
]
CUSTOM = {"Centered": Centered, "Codebook": Codebook, "Thresholds": Thresholds}


def model_with(kind):
    keras.utils.set_random_seed(0)
    layer, shape = kind(), DATA.shape[1:]
    data = DATA
    if isinstance(layer, layers.TimeDistributed):
        data, shape = np.repeat(DATA[:, None], 2, axis=1), (2, 3)
    inputs = keras.Input(shape, name="x")
    x = layers.Dense(8, activation="relu")(layer(inputs))
    x = layers.Dense(1)(layers.Flatten()(x))
    return keras.Model(inputs, x), data


@pytest.mark.parametrize("kind", KINDS)
def test_quantizing_keeps_it(kind):
    model, data = model_with(kind)
    qmodel = quantized(model, data)
    assert largest_error(model, qmodel, data) < 0.03
    assert largest_error(model, qmodel.float_model(), data) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading_keeps_it(kind, tmp_path):
    model, data = model_with(kind)
    qmodel = quantized(model, data)
    qmodel.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects=CUSTOM)
    assert largest_error(qmodel, loaded, data) == 0
    assert largest_error(model, loaded.float_model(), data) < 1e-6


@pytest.mark.parametrize("kind", [adapted_normalization, adapted_centered, filled_codebook])
def test_a_file_computes_it(kind, tmp_path):
    model, data = model_with(kind)
    qmodel = trained(quantized(model, data), data)
    converted(qmodel, data, tmp_path)


def test_a_lookup_keeps_its_vocabulary():
    ids = np.array([[1], [5], [7], [9]])
    layer = layers.IntegerLookup(output_mode="multi_hot")
    layer.adapt(ids[:3])
    inputs = keras.Input((1,), dtype="int64")
    model = keras.Model(inputs, layers.Dense(2)(layer(inputs)))
    assert largest_error(model, quantized(model, ids, "simulation"), ids) < 0.05


def test_a_text_model_keeps_its_vocabulary():
    texts = np.array([["a cat sat"], ["the dog ran"], ["a dog sat"]], dtype=object)
    layer = layers.TextVectorization(output_sequence_length=3)
    layer.adapt(texts[:, 0])
    inputs = keras.Input((1,), dtype="string")
    x = layers.Embedding(layer.vocabulary_size(), 4)(layer(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    np.testing.assert_array_equal(copy_model(model)(texts), model(texts))


def test_a_discretization_keeps_its_boundaries():
    layer = layers.Discretization(num_bins=4, output_mode="one_hot")
    layer.adapt(DATA[:, :1])
    inputs = keras.Input((1,))
    model = keras.Model(inputs, layers.Dense(2)(layer(inputs)))
    qmodel = quantized(model, DATA[:, :1])
    assert largest_error(model, qmodel.float_model(), DATA[:, :1]) < 1e-6
