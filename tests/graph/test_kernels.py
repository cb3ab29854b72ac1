"""Which variables of a layer are kernels, what they become on a device, and what they cost."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from dqmq_tf import graph as graphs
from dqmq_tf import targets
from dqmq_tf.config import DQMQConfig
from dqmq_tf.graph import decision_points
from dqmq_tf.graph.kernels import einsum_terms


def weights_of(make, shape=(8, 8, 4), target="simulation", dtype="float32"):
    x = keras.Input(shape, name="image", dtype=dtype)
    graph = graphs.trace(keras.Model(x, make(x)))
    return decision_points.find_points(graph, targets.get(target), DQMQConfig())[1]


@pytest.mark.parametrize(
    "layer,expected",
    [
        (layers.Conv2D(6, 3, padding="same"), [8 * 8 * 9 * 4 * 6]),
        (layers.Conv2D(6, 3, padding="valid"), [6 * 6 * 9 * 4 * 6]),
        (layers.Conv2D(6, 3, strides=2, padding="same"), [4 * 4 * 9 * 4 * 6]),
        (layers.Conv2D(6, 3, strides=2, padding="valid"), [3 * 3 * 9 * 4 * 6]),
        (layers.Conv2D(6, 3, dilation_rate=2), [4 * 4 * 9 * 4 * 6]),
        (layers.Conv2D(6, 3, groups=2, padding="same"), [8 * 8 * 9 * 2 * 6]),
        (layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"), [8 * 8 * 9 * 4 * 2]),
        (layers.SeparableConv2D(6, 3, strides=2, padding="same"), [4 * 4 * 9 * 4, 4 * 4 * 4 * 6]),
        (layers.Conv2DTranspose(6, 3, strides=2, padding="same"), [8 * 8 * 9 * 4 * 6]),
        (layers.Dense(7), [8 * 8 * 4 * 7]),
        (layers.EinsumDense("abcd,de->abce", output_shape=(8, 8, 7)), [8 * 8 * 4 * 7]),
        (layers.EinsumDense("abcd,def->abcef", output_shape=(8, 8, 2, 7)), [8 * 8 * 4 * 2 * 7]),
        (layers.EinsumDense("abcd,bcde->ae", output_shape=7), [8 * 8 * 4 * 7]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_multiply_accumulates_of_image_layers(layer, expected):
    weights = weights_of(layer)
    assert [p.macs for p in weights] == expected


def test_the_name_of_a_class_does_not_change_what_it_costs():
    class Upsampling(layers.Conv2DTranspose):
        pass

    class TransposeKernel(layers.Layer):
        def build(self, input_shape):
            self.kernel = self.add_weight(name="kernel", shape=(4, 6))

        def call(self, x):
            return (x @ self.kernel)[:, :2, :2]

    assert [p.macs for p in weights_of(Upsampling(6, 3, strides=2))] == [8 * 8 * 9 * 4 * 6]
    assert [p.macs for p in weights_of(TransposeKernel())] == [2 * 2 * 4 * 6]


@pytest.mark.parametrize(
    "layer,expected",
    [
        (layers.Dense(7), [5 * 3 * 7]),
        (layers.Conv1D(7, 3), [3 * 3 * 3 * 7]),
        (layers.LSTM(2), [5 * 3 * 8, 5 * 2 * 8]),
        (layers.LSTM(2, return_sequences=True), [5 * 3 * 8, 5 * 2 * 8]),
        (layers.GRU(2), [5 * 3 * 6, 5 * 2 * 6]),
        (layers.Bidirectional(layers.LSTM(2)), [5 * 3 * 8, 5 * 2 * 8] * 2),
        (layers.Bidirectional(layers.LSTM(2, return_sequences=True)), [5 * 3 * 8, 5 * 2 * 8] * 2),
        (layers.TimeDistributed(layers.Dense(7)), [5 * 3 * 7]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_multiply_accumulates_of_sequence_layers(layer, expected):
    weights = weights_of(layer, shape=(5, 3))
    assert [p.macs for p in weights] == expected


def test_multiply_accumulates_of_attention():
    attention = layers.MultiHeadAttention(2, 3, name="mha")
    weights = weights_of(lambda x: attention(x, x), shape=(5, 4))
    assert {p.variable: p.macs for p in weights} == {
        f"{name}/kernel": 5 * 4 * 2 * 3 for name in ("query", "key", "value", "attention_output")
    }
    assert {p.input for p in weights} == {0}


@pytest.mark.parametrize(
    "layer",
    [
        layers.BatchNormalization(),
        layers.LayerNormalization(axis=(1, 2, 3)),
        layers.GroupNormalization(2),
        layers.Normalization(mean=0.0, variance=1.0),
        layers.PReLU(),
        layers.PReLU(shared_axes=(1, 2)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_scale_have_no_kernel(layer):
    weights = weights_of(lambda x: layer(layers.Conv2D(4, 1, name="conv")(x)))
    assert [p.name for p in weights] == ["conv:kernel"]


def test_custom_layers_are_served_by_their_variables():
    @keras.saving.register_keras_serializable(package="dqmq_tf_tests")
    class Bilinear(layers.Layer):
        def build(self, shape):
            self.core = self.add_weight(name="core", shape=(shape[-1], 3))
            self.table_bias = self.add_weight(name="table_bias", shape=(3, 1))
            self.counts = self.add_weight(name="counts", shape=(2, 2), trainable=False)
            self.ids = self.add_weight(name="ids", shape=(2, 2), dtype="int32", trainable=False)

        def call(self, x):
            return ops.matmul(x, self.core)

    weights = weights_of(Bilinear(name="bilinear"), shape=(4,))
    assert [(p.name, p.op_kind, p.channel_axes, p.macs) for p in weights] == [
        ("bilinear:core", "other", (1,), 12)
    ]


def test_a_frozen_layer_has_its_kernels_quantized_too():
    layer = layers.Conv2D(4, 1, name="conv", trainable=False)
    assert [p.name for p in weights_of(layer)] == ["conv:kernel"]


@pytest.mark.parametrize(
    "layer,shape,expected",
    [
        (layers.Conv2D(6, 3), (8, 8, 4), {"kernel": (3,)}),
        (layers.Conv2DTranspose(6, 3), (8, 8, 4), {"kernel": (2,)}),
        (layers.Conv1DTranspose(6, 3), (8, 4), {"kernel": (1,)}),
        (layers.DepthwiseConv1D(3), (8, 4), {"kernel": (1, 2)}),
        (
            layers.SeparableConv2D(6, 3),
            (8, 8, 4),
            {"depthwise_kernel": (2, 3), "pointwise_kernel": (3,)},
        ),
        (layers.Dense(6), (4,), {"kernel": (1,)}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_axes_of_the_output_channels(layer, shape, expected):
    weights = weights_of(layer, shape=shape)
    assert {p.variable: p.channel_axes for p in weights} == expected
    for p in weights:
        assert len(p.shape) > max(p.channel_axes)


@pytest.mark.parametrize(
    "layer,shape,kind",
    [
        (layers.Conv1D(6, 3), (8, 4), "conv"),
        (layers.Conv2D(6, 3), (8, 8, 4), "conv"),
        (layers.DepthwiseConv1D(3), (8, 4), "depthwise"),
        (layers.DepthwiseConv2D(3), (8, 8, 4), "depthwise"),
        (layers.Conv1DTranspose(6, 3), (8, 4), "transpose"),
        (layers.Conv2DTranspose(6, 3), (8, 8, 4), "transpose"),
        (layers.Dense(6), (4,), "dense"),
        (layers.EinsumDense("ab,bc->ac", output_shape=6), (4,), "dense"),
        (layers.Embedding(9, 3), (4,), "embedding"),
        (layers.LSTM(3), (8, 4), "other"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_kinds_of_op_and_the_targets_that_give_them_one_step(layer, shape, kind):
    def make(x):
        return layers.Dense(2)(layers.Flatten()(layer(x)))

    dtype = "int32" if kind == "embedding" else "float32"
    x = keras.Input(shape, dtype=dtype)
    graph = graphs.trace(keras.Model(x, make(x)))
    for target in targets.TARGETS.values():
        _, weights = decision_points.find_points(graph, target, DQMQConfig())
        point = weights[0]
        assert point.op_kind == kind
        assert (point.channel_axes == ()) == (kind in target.per_tensor), target.name


def test_axes_of_an_einsum():
    two_axes = layers.EinsumDense("abc,cde->abde", output_shape=(None, 2, 7))
    assert weights_of(two_axes, (5, 4))[0].channel_axes == (1, 2)
    joined = layers.EinsumDense("abcd,cde->abe", output_shape=(None, 7))
    assert weights_of(joined, (5, 4, 3))[0].channel_axes == (2,)
    own = layers.EinsumDense("abc,bcd->abd", output_shape=(5, 7))
    assert weights_of(own, (5, 4))[0].channel_axes == (2,)


@pytest.mark.parametrize(
    "equation,output_shape,expected",
    [
        ("abc,cd->abd", (None, 7), 5 * 4 * 7),
        ("...c,cd->...d", 7, 5 * 4 * 7),
        ("abc,bcd->abd", (5, 7), 5 * 4 * 7),
        ("abc,cd->ad", (7,), 5 * 4 * 7),
        ("abc,bd->adc", (7, None), 5 * 4 * 7),
    ],
)
def test_multiply_accumulates_of_an_einsum(equation, output_shape, expected):
    layer = layers.EinsumDense(equation, output_shape=output_shape)
    assert [p.macs for p in weights_of(layer, (5, 4))] == [expected]


def test_a_batch_norm_behind_gives_channels_their_scales_whatever_the_target_says():
    def make(x):
        y = layers.BatchNormalization()(layers.Dense(4, name="normed")(x))
        return layers.Rescaling(0.5)(layers.Dense(3, name="scaled")(y))

    weights = weights_of(make, (5,), "microcontroller")
    assert {p.path: p.channel_axes for p in weights} == {"normed": (1,), "scaled": ()}


@pytest.mark.parametrize(
    "equation, rank, letters",
    [
        ("abc,cd->abd", 3, ("abc", "cd", "abd")),
        ("abc, cd -> abd", 3, ("abc", "cd", "abd")),
        ("...x,xy->...y", 2, ("Ax", "xy", "Ay")),
        ("...x,xy->...y", 4, ("ABCx", "xy", "ABCy")),
        ("...Ax,xyB->...ByA", 4, ("CDAx", "xyB", "CDByA")),
        ("a...x,xy->a...y", 2, ("ax", "xy", "ay")),
        ("...x, xy->...y", None, ("...x", "xy", "...y")),
    ],
)
def test_letters_of_an_equation(equation, rank, letters):
    assert einsum_terms(equation, rank) == letters


@pytest.mark.parametrize(
    "layer", [layers.Dense(4), layers.EinsumDense("ab,bc->ac", 4), layers.Conv2D(3, 2)]
)
def test_a_kernel_with_lora_weights_is_refused_and_loads_merged(layer, tmp_path):
    def build(layer):
        inputs = keras.Input((5, 5, 2) if isinstance(layer, layers.Conv2D) else (6,), name="image")
        return keras.Model(inputs, layer(inputs))

    model, merged = build(layer), build(type(layer).from_config(layer.get_config()))
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(layer.lora_kernel_b + 1.0)
    with pytest.raises(ValueError, match=f"{layer.name!r} has LoRA weights"):
        decision_points.find_points(graphs.trace(model), targets.get("android"), DQMQConfig())
    model.save_weights(tmp_path / "model.weights.h5")
    merged.load_weights(tmp_path / "model.weights.h5")
    data = np.random.default_rng(0).normal(size=(3, *model.input_shape[1:]))
    np.testing.assert_allclose(
        merged.predict(data, verbose=0), model.predict(data, verbose=0), 1e-4
    )


def test_a_layer_that_keras_has_quantized_is_refused():
    inputs, layer = keras.Input((6,)), layers.Dense(4, name="own")
    model = keras.Model(inputs, layers.Dense(2)(layer(inputs)))
    layer.quantize("int8")
    with pytest.raises(ValueError, match="'own' is quantized by Keras .int8."):
        decision_points.find_points(graphs.trace(model), targets.get("android"), DQMQConfig())
