"""A float file that is converted once holds what a conversion would put into it."""

import keras
import numpy as np
import pytest
from helpers.frozen_models import batch_norm, images, small_model

import dqmq_tf
from dqmq_tf import targets
from dqmq_tf.budget import budget_keeper
from dqmq_tf.graph import trace
from dqmq_tf.layers.trained_precision import precision_of
from dqmq_tf.lowering import float_template
from dqmq_tf.lowering.float_file import export_float
from dqmq_tf.lowering.float_template import FloatTemplate
from dqmq_tf.lowering.lowered_model import lower_graph
from dqmq_tf.lowering.write_file import write_file

layers = keras.layers


def convolutions():
    """Kernels that the converter transposes, and one that is used twice."""
    inputs = keras.Input((8, 8, 3))
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(batch_norm(1)(x))
    x = layers.Add()([shared(x), shared(layers.DepthwiseConv2D(3, padding="same")(x))])
    x = layers.Conv2DTranspose(5, 3, strides=2, padding="same")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(layers.PReLU()(x))))


def attention():
    inputs = keras.Input((6, 4))
    x = layers.MultiHeadAttention(2, 3)(inputs, inputs)
    return keras.Model(inputs, layers.LayerNormalization()(layers.Add()([inputs, x])))


def recurrent():
    return keras.Sequential([keras.Input((5, 3)), layers.GRU(4), layers.Dense(2)])


class Exponential(layers.Layer):
    """Multiplies by the exponential of its weights, a constant that the converter computes."""

    def build(self, shape):
        self.logarithm = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * keras.ops.exp(self.logarithm)


def change_weights(model, seed):
    """Gives every weight other values, as training does."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "float" in str(weight.dtype):
            weight.assign(rng.uniform(0.4, 1.4, weight.shape))


def calibrated(model):
    qmodel = dqmq_tf.quantize_model(model)
    qmodel.calibrate(images(model, 8))
    return qmodel


def lowered_at(qmodel, bits):
    """The lowered model of other weights, with these bits for all of them."""
    parts = qmodel._parts
    change_weights(parts.body, bits)
    count = len(parts.costs.weights)
    precision = precision_of(parts, [*parts.costs.most_activation_bits(), *[bits] * count])
    return lower_graph(trace(qmodel.float_model()), precision)


def contents(lowered, template=None):
    target = targets.get("android")
    options = {"profile": 0, "io_dtype": "float32", "stage": lambda name: None}
    return write_file(lowered, target, {}, template=template, **options).file.contents


@pytest.fixture
def conversions(monkeypatch):
    """Grows by one with each conversion of a template."""
    models = []

    def counted(model, layer_paths):
        models.append(model)
        return export_float(model, layer_paths)

    monkeypatch.setattr(float_template, "export_float", counted)
    return models


NETWORKS = {"convolutions": convolutions, "attention": attention, "recurrent": recurrent}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_holds_what_a_conversion_holds_and_converts_once(name, conversions):
    keras.utils.set_random_seed(0)
    qmodel, template = calibrated(NETWORKS[name]()), FloatTemplate()
    conversions.clear()
    for bits in (8, 3):
        lowered = lowered_at(qmodel, bits)
        before = [np.array(value) for value in lowered.model.get_weights()]
        filled = contents(lowered, template)
        for value, unchanged in zip(lowered.model.get_weights(), before):
            np.testing.assert_array_equal(value, unchanged)
        # The writer also checks each number of both files against the lowered model.
        assert len(filled) == len(contents(lowered))
    assert len(conversions) == 1


def test_a_model_of_another_structure_is_converted_again(conversions):
    template = FloatTemplate()
    for model in (small_model(), convolutions(), small_model()):
        lowered = lowered_at(calibrated(model), 5)
        conversions.clear()
        assert len(contents(lowered, template)) == len(contents(lowered))
        assert len(conversions) == 1


def test_constants_that_the_converter_computes_are_converted_each_time(conversions):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(5), Exponential(), layers.Dense(2)])
    qmodel, template = calibrated(model), FloatTemplate()
    conversions.clear()
    for bits in (8, 3):
        lowered = lowered_at(qmodel, bits)
        assert contents(lowered, template) == contents(lowered)
    assert len(conversions) == 3  # The template's own, then one for each file.


def test_a_training_converts_once_for_all_files_that_it_measures(conversions, monkeypatch):
    files = []
    write = budget_keeper.write_unverified
    monkeypatch.setattr(
        budget_keeper, "write_unverified", lambda *a, **k: files.append(1) or write(*a, **k)
    )
    model = small_model()
    qmodel = dqmq_tf.quantize_model(model, budget=dqmq_tf.Budget(download_bytes=1_800))
    qmodel.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    qmodel.fit(images(model, 16), np.zeros(16), epochs=2, verbose=0)
    assert len(files) > 2 and len(conversions) == 1
