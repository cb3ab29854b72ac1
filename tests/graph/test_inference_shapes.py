"""Layers that return another shape at inference than they declare."""

import warnings

import keras
import numpy as np
import pytest
from helpers.networks import chain
from keras import layers

import dqmq_tf
from dqmq_tf import graph as graphs
from dqmq_tf.errors import UnsupportedLayerError

SHAPE = (12, 12, 3)


class Crop(layers.Layer):
    """Crops in training alone, and declares the shape of the crop."""

    def call(self, x, training=False):
        return x[:, :8, :8] if training else x

    def compute_output_shape(self, shape):
        return (shape[0], 8, 8, shape[-1])


def random_crop():
    return layers.RandomCrop(8, 8, name="crop")


def nested_crop():
    inner = [keras.Input(SHAPE), layers.RandomFlip(), layers.RandomCrop(8, 8, name="crop")]
    return keras.Sequential(inner, name="augment")


CROPS = {
    "RandomCrop": random_crop,
    "nested": nested_crop,
    "of the user": lambda: Crop(name="crop"),
    "Lambda": lambda: layers.Lambda(lambda x: x, output_shape=(8, 8, 3), name="crop"),
}


def sequential_backbone():
    return keras.Sequential([keras.Input((8, 8, 3)), layers.GlobalAveragePooling2D()])


def functional_backbone():
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(inputs))


READERS = {
    "Reshape": lambda: layers.Reshape((192,)),
    "Flatten": layers.Flatten,
    "Sequential": sequential_backbone,
    "functional": functional_backbone,
}


def network(crop):
    return chain(
        SHAPE,
        layers.ZeroPadding2D(2),
        *([layers.Cropping2D(2)] if isinstance(crop, keras.Model) else []),
        crop,
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, strides=2, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3, name="head"),
    )


@pytest.mark.parametrize("kind", CROPS)
def test_shapes_behind_a_crop_are_those_at_inference(kind):
    model = network(CROPS[kind]())
    graph = graphs.trace(model)
    (crop,) = [node for node in graph.nodes if node.path.endswith("crop")]
    (source,), (output,) = crop.inputs, crop.outputs
    assert graph.shapes[output] == graph.shapes[source]
    assert graph.aliases[output] == graph.aliases.get(source, source)
    (conv,) = [node for node in graph.nodes if isinstance(node.layer, layers.Conv2D)]
    size = (graph.shapes[source][1] - 3) // 2 + 1
    assert graph.shapes[conv.outputs[0]] == (None, size, size, 4)


def test_a_layer_that_returns_what_it_declares_keeps_its_shape():
    for crop in (layers.CenterCrop(8, 8), layers.Lambda(lambda x: x[:, :8, :8])):
        graph = graphs.trace(chain(SHAPE, crop, layers.Conv2D(4, 3)))
        assert graph.shapes[graph.nodes[0].outputs[0]] == (None, 8, 8, 3)
        assert graph.aliases == {}


@pytest.mark.parametrize("before", [layers.ZeroPadding2D, None], ids=["padded", "input"])
def test_a_model_with_a_crop_trains_and_converts(before, tmp_path):
    x = np.random.default_rng(0).uniform(0, 255, (16, *SHAPE)).astype("float32")
    model = chain(
        SHAPE,
        *([before(2)] if before else []),
        random_crop(),
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, strides=2, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(3),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        qmodel = dqmq_tf.quantize_model(model, target="android")
        qmodel.compile("sgd", "mse")
        qmodel.fit(x, np.zeros((16, 3)), batch_size=8, verbose=0)
        report = dqmq_tf.convert(qmodel, tmp_path / "model.tflite", data=x)
    assert not report.float_layers
    row = report.verification.rows[0]
    assert row.ran and row.mean_quanta < 1


@pytest.mark.parametrize("crop", [random_crop, nested_crop], ids=["layer", "nested"])
@pytest.mark.parametrize("reader", READERS)
def test_a_layer_that_needs_the_declared_shape_is_an_error(crop, reader):
    model = chain(SHAPE, crop(), READERS[reader](), layers.Dense(3, name="head"))
    with pytest.raises(UnsupportedLayerError) as raised:
        dqmq_tf.quantize_model(model)
    said = str(raised.value)
    assert "crop' (RandomCrop: declares shape (None, 8, 8, 3), returns (None, 12, 12, 3)" in said
    assert "cannot be called on that shape" in said and "keras.layers.CenterCrop" in said
    assert "Could not automatically infer" not in said
