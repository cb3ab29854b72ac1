"""Blocks that are classes of the user's own become models of the layers that they call."""

import warnings

import keras
import numpy as np
import pytest
from helpers.frozen_models import freeze, images
from helpers.networks import assert_simulates, chain, shaken
from helpers.predictions import predicted

import dqmq_tf
from dqmq_tf import export, graph
from dqmq_tf.graph.unfolding import functional_form, unfold_layers

layers = keras.layers
CONFIG = dqmq_tf.DQMQConfig()


class Block(layers.Layer):
    """A residual block as in Keras's tutorials: no `get_config`, and layers that train otherwise."""

    def __init__(self, filters, strides=1, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Conv2D(filters, 3, strides, padding="same", name="first")
        self.norm = layers.BatchNormalization(name="norm")
        self.second = layers.SeparableConv2D(filters, 3, padding="same", name="second")
        self.dropout = layers.Dropout(0.5)
        self.shortcut = layers.Conv2D(filters, 1, strides, name="shortcut")

    def call(self, x, training=False):
        y = keras.activations.relu(self.norm(self.first(x), training=training))
        y = self.dropout(self.second(y), training=training)
        return keras.ops.relu(y + self.shortcut(x))


class Stage(keras.Model):
    """Blocks of one name in a subclassed model."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Block(filters, 2, name="block"), Block(filters, name="block")]

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Network(keras.Model):
    """A model that is no functional one at all."""

    def __init__(self):
        super().__init__(name="network")
        self.block = Block(4, name="block")
        self.stage = Stage(6, name="stage")
        self.pool = layers.GlobalAveragePooling2D(name="pool")
        self.head = layers.Dense(3, name="head")

    def call(self, x, training=None):
        x = self.stage(self.block(x, training=training), training=training)
        return self.head(self.pool(x))


def network():
    stack = [Block(4, name="block"), Stage(6, name="stage")]
    return chain((8, 8, 3), *stack, layers.GlobalAveragePooling2D(), layers.Dense(3, name="head"))


def subclassed():
    keras.utils.set_random_seed(0)
    model = Network()
    model(np.zeros((2, 8, 8, 3)))
    return shaken(model)


KERNELS = [
    "block/first", "block/second_depthwise", "block/second_pointwise", "block/shortcut",
    "stage/block/first", "stage/block/second_depthwise", "stage/block/second_pointwise",
    "stage/block/shortcut", "stage/block_1/first", "stage/block_1/second_depthwise",
    "stage/block_1/second_pointwise", "stage/block_1/shortcut", "head",
]  # fmt: skip


def quantized_paths(qmodel):
    return [point.path for point in qmodel._parts.costs.weights]


@pytest.mark.parametrize("make, target", [(network, "android"), (subclassed, "microcontroller")])
def test_blocks_run_on_integer_kernels(make, target, tmp_path):
    model = make()
    before = [(x.name, len(x._inbound_nodes)) for x in model._flatten_layers()]
    weights, expected = model.get_weights(), predicted(model, np.ones((2, 8, 8, 3), "float32"))
    data = np.random.default_rng(0).uniform(-1, 1, (64, 8, 8, 3)).astype("float32")
    qmodel = freeze(model, target=target, data=data)
    assert quantized_paths(qmodel) == KERNELS
    # What the user has is as it was.
    assert [(x.name, len(x._inbound_nodes)) for x in model._flatten_layers()] == before
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    unfolded, _ = unfold_layers(functional_form(model, CONFIG)[0], CONFIG)
    found = predicted(unfolded, np.ones((2, 8, 8, 3), "float32"))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert_simulates(qmodel, data[:32])
    report = export.convert(qmodel, tmp_path / "model.tflite", data=data)
    assert not report.float_layers and report.verification.different_numbers == 0


def test_blocks_train_as_classes_do_and_are_saved_without_them(tmp_path):
    model = subclassed()
    data = np.random.default_rng(0).uniform(-1, 1, (32, 8, 8, 3)).astype("float32")
    qmodel = dqmq_tf.quantize_model(model)
    body = qmodel._parts.body
    # Dropout and batch statistics follow the mode, though the signature says `training=False`.
    differences = [np.abs(m(data, training=True) - m(data, training=False)) for m in (model, body)]
    assert min(d.max() for d in differences) > 0.01
    qmodel.compile("adam", "sparse_categorical_crossentropy")
    qmodel.fit(data, np.arange(32) % 3, batch_size=8, epochs=2, verbose=0)
    moved = [not np.allclose(a, b) for a, b in zip(model.get_weights(), body.get_weights())]
    assert np.mean(moved) > 0.9
    qmodel.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predicted(loaded, data), predicted(qmodel, data))


@pytest.mark.parametrize("make", [network, subclassed])
def test_a_rule_for_a_block_holds_for_its_layers(make):
    rules = (
        dqmq_tf.LayerRule(pattern="block", weight_bits=(3,), weights=("first/kernel",)),
        dqmq_tf.LayerRule(pattern="stage/block_1/.*", weight_bits=(5,)),
        dqmq_tf.LayerRule(pattern="stage", weight_bits=(7,)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        qmodel = dqmq_tf.quantize_model(make(), config=dqmq_tf.DQMQConfig(rules=rules))
    bits = {point.path: tuple(point.bit_widths) for point in qmodel._parts.costs.weights}
    assert bits["block/first"] == (3,)
    assert not {"block/second_depthwise", "block/second_pointwise", "block/shortcut"} & {*bits}
    assert bits["stage/block/first"] == bits["stage/block/second_pointwise"] == (7,)
    assert bits["stage/block_1/shortcut"] == bits["stage/block_1/second_depthwise"] == (5,)


def test_frozen_blocks_stay_frozen_and_shared_ones_shared():
    block, other = Block(3, name="shared"), Block(3, name="frozen")
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, block(other(block(inputs))))
    other.trainable = False
    unfolded, parts = unfold_layers(model, CONFIG)
    assert [part.path for part in parts["shared"]][:2] == ["shared/first", "shared/norm"]
    assert len(unfolded.trainable_weights) == len(model.trainable_weights) == len(block.weights) - 2
    assert len(unfolded.weights) == len(model.weights)
    data = images(model)
    np.testing.assert_allclose(predicted(unfolded, data), predicted(model, data), atol=1e-5)
    unfolded.get_layer("frozen").trainable = True
    assert len(unfolded.trainable_weights) == 2 * len(model.trainable_weights)


def test_a_class_that_is_built_frozen_trains_as_in_keras():
    model = chain((6, 6, 3), Block(3, name="block", trainable=False))
    unfolded, parts = unfold_layers(model, CONFIG)
    assert parts and len(unfolded.trainable_weights) == len(model.trainable_weights) > 0


class Tied(layers.Layer):
    """A layer with a layer that it is given."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return keras.ops.relu(self.inner(x))

    def get_config(self):
        return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner)}


def test_layers_inside_of_several_blocks_stay_in_them():
    # Keras makes a layer for each model that has the layer, and then finds weights for one of them.
    shared = layers.Dense(3, name="shared")
    model = chain((3,), Tied(shared, name="one"), shared)
    assert unfold_layers(model, CONFIG) == (model, {})

    class Both(layers.Layer):
        def __init__(self):
            super().__init__()
            inner = layers.Dense(3)
            self.one, self.two = Tied(inner), Tied(inner)

        def call(self, x):
            return self.two(self.one(x))

    model = chain((3,), Both())
    assert unfold_layers(model, CONFIG) == (model, {})
    # Without variables there is nothing that could get lost.
    relu = layers.ReLU()
    model = chain((3,), Tied(relu, name="one"), Tied(relu, name="two"))
    assert set(unfold_layers(model, CONFIG)[1]) == {"one", "two"}


def test_calls_with_other_constants_are_not_taken_for_one():
    class Scaled(layers.Layer):
        def __init__(self):
            super().__init__()
            self.relu = layers.ReLU()

        def call(self, x, by=None):
            return self.relu(x) * by

    constants = np.ones((2, 500, 6), "float32")
    constants[1, 250] = 3.0
    layer, inputs = Scaled(), keras.Input((500, 6))
    model = keras.Model(inputs, layer(layer(inputs, by=constants[0]), by=constants[1]))
    assert unfold_layers(model, CONFIG) == (model, {})


def test_names_do_not_depend_on_what_was_built_before():
    found = []
    for _ in range(2):
        unfolded, _ = unfold_layers(network(), CONFIG)
        found.append([n.path for n in graph.trace(unfolded).nodes if "pooling" not in n.path])
        keras.ops.relu(keras.Input((2,))) + 1.0
    # Layers without a name of their own are numbered by Keras.
    assert [p for p in found[0] if "dropout" not in p] == [
        p for p in found[1] if "dropout" not in p
    ]


def test_models_of_masks_are_left_alone():
    class Twice(layers.Layer):
        supports_masking = True

        def __init__(self):
            super().__init__()
            self.relu = layers.ReLU()

        def call(self, x):
            return 2.0 * self.relu(x)

    inputs = keras.Input((5,), dtype="int32")
    x = Twice()(layers.Embedding(7, 3, mask_zero=True)(inputs))
    model = keras.Model(inputs, layers.LSTM(2)(x))
    assert unfold_layers(model, CONFIG) == (model, {})


def test_a_subclassed_model_has_to_be_called_first():
    with pytest.raises(ValueError, match=r"'network' is subclassed \(Network\) and was not called"):
        dqmq_tf.quantize_model(Network())


def test_a_subclassed_model_that_is_not_made_of_layers_is_refused():
    class Own(keras.Model):
        def build(self, shape):
            self.table = self.add_weight(shape=(shape[-1], 2))

        def call(self, x):
            return keras.ops.matmul(x, self.table)

    model = Own()
    model(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="is subclassed"):
        dqmq_tf.quantize_model(model)


def test_blocks_train_in_half_precision(tmp_path):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = network()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    qmodel = freeze(model)
    assert quantized_paths(qmodel) == KERNELS
    report = export.convert(qmodel, tmp_path / "model.tflite", data=images(qmodel))
    assert not report.float_layers
