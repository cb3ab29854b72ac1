"""Which tensors share a scale, are fused, or have a range that a kernel fixes."""

import keras
import pytest
from helpers.found_points import find, paths_of
from helpers.frozen_models import freeze, images
from keras import layers, ops

from dqmq_tf import LayerRule, export
from dqmq_tf.graph import fusion


def test_concatenated_tensors_share_one_scale_and_are_quantized_where_they_are_made():
    def make(x):
        a = layers.Conv2D(2, 1, activation="relu", name="a")(x)
        b = layers.Conv2D(3, 1, activation="relu", name="b")(x)
        y = layers.Concatenate(name="concat")([a, b])
        return layers.Conv2D(2, 1, name="head")(layers.MaxPooling2D(name="pool")(y))

    graph, activations, weights = find(make)
    assert paths_of(graph, activations) == [("image",), ("a", "b", "concat", "pool"), ("head",)]
    assert activations[1].slots == (("a", 0, 0), ("b", 0, 0))
    assert weights[2].input == 1


@pytest.mark.parametrize("layer", [layers.Concatenate(), ops.hstack, lambda x: ops.stack(x, 1)])
def test_what_is_joined_with_a_tensor_in_floating_point_has_a_scale_of_its_own(layer, tmp_path):
    def make(x):
        y = layers.Dense(4, name="wide", kernel_initializer=wide)(x)
        y = layer([layers.Dense(4, name="a")(x), y])
        return layers.Dense(3, name="head")(y)

    wide = keras.initializers.RandomNormal(stddev=5.0, seed=0)
    rules = [LayerRule(pattern="wide", quantize=False)]
    graph, activations, _ = find(make, rules, shape=(5,))
    assert [len(point.tensors) for point in activations] == [1, 1, 1, 1]
    inputs = keras.Input((5,))
    qmodel = freeze(keras.Model(inputs, make(inputs)), keep=["wide"])
    report = export.convert(qmodel, tmp_path / "model.tflite", data=images(qmodel))
    assert report.verification.largest_quanta <= 2.01


def test_layers_that_move_values_keep_the_scale():
    def make(x):
        y = layers.ZeroPadding2D(name="pad")(x)
        y = layers.MaxPooling2D(name="max")(y)
        y = layers.Dropout(0.5, name="dropout")(y)
        y = layers.Permute((2, 1, 3), name="permute")(y)
        y = layers.Flatten(name="flatten")(y)
        y = ops.reshape(y, (-1, 50, 2))[:, 1:]
        return layers.Dense(2, name="dense")(y)

    graph, activations, weights = find(make)
    assert len(activations) == 2
    assert activations[0].slots == (("", fusion.INPUT_CALL, 0),)
    assert len(activations[0].tensors) == 8
    assert weights[0].input == 0


@pytest.mark.parametrize("pool", [layers.AveragePooling2D(2), layers.UpSampling2D()])
def test_local_averages_keep_the_scale_and_round_again(pool):
    _, activations, _ = find(lambda x: layers.Dense(2)(pool(x)))
    assert activations[0].slots == (("", fusion.INPUT_CALL, 0), (pool.name, 0, 0))


@pytest.mark.parametrize("pool", [layers.GlobalAveragePooling2D(), layers.AveragePooling2D(8)])
def test_the_mean_of_a_whole_image_has_a_scale_of_its_own(pool):
    _, activations, _ = find(lambda x: layers.Dense(2)(pool(x)))
    assert [p.name for p in activations][:2] == ["image", pool.name]


@pytest.mark.parametrize(
    "pool", [layers.GlobalAveragePooling2D(keepdims=True), layers.AveragePooling2D(1)]
)
def test_the_mean_of_a_single_position_is_that_position(pool):
    graph, activations, _ = find(lambda x: layers.Dense(2, name="dense")(pool(x)), shape=(1, 1, 4))
    assert [p.name for p in activations] == ["image", "dense"]
    assert len(activations[0].tensors) == 2


def test_the_mean_of_a_sequence_of_one():
    pool = layers.GlobalAveragePooling1D(data_format="channels_first")
    _, activations, _ = find(lambda x: layers.Dense(2, name="dense")(pool(x)), shape=(4, 1))
    assert [p.name for p in activations] == ["image", "dense"]
    _, activations, _ = find(lambda x: layers.Dense(2, name="dense")(pool(x)), shape=(1, 4))
    assert [p.name for p in activations] == ["image", pool.name, "dense"]


@pytest.mark.parametrize(
    "activation,expected", [("sigmoid", "unit"), ("softmax", "unit"), ("tanh", "tanh")]
)
@pytest.mark.parametrize("kind", [layers.AveragePooling2D, layers.UpSampling2D])
def test_local_averages_keep_a_fixed_range(kind, activation, expected):
    def make(x):
        y = layers.Activation(activation, name="gate")(layers.Conv2D(2, 1)(x))
        return layers.Conv2D(2, 1, name="head")(kind(2, name="pool")(y))

    graph, activations, _ = find(make)
    (point,) = [p for p in activations if p.name == "gate"]
    assert point.range == expected
    assert point.slots == (("gate", 0, 0), ("pool", 0, 0))


def test_concatenated_tensors_of_one_fixed_range_share_it():
    def make(kinds):
        def made(x):
            parts = [layers.Activation(kind)(layers.Dense(2)(x)) for kind in kinds]
            return layers.Dense(2)(layers.Concatenate(name="concat")(parts))

        return made

    def points_of(*kinds):
        graph, activations, weights = find(make(kinds), shape=(4,))
        return paths_of(graph, activations), {p.name: p.range for p in activations}

    paths, ranges = points_of("sigmoid", "softmax")
    assert any(len(group) == 3 and "concat" in group for group in paths)
    assert "concat" not in ranges and list(ranges.values()).count("unit") == 1
    for other in ("relu", "tanh"):
        paths, ranges = points_of("sigmoid", other)
        assert ("concat",) in paths and ranges["concat"] == "affine"
        assert list(ranges.values()).count("unit") == 1


@pytest.mark.parametrize(
    "relu",
    [
        layers.ReLU(),
        layers.ReLU(max_value=6),
        layers.ReLU(max_value=4),
        layers.Activation("relu"),
        ops.relu,
        ops.relu6,
    ],
)
@pytest.mark.parametrize("combine", [layers.Add(), layers.Multiply(), layers.Subtract()])
def test_relu_is_fused_into_elementwise_layers(relu, combine):
    def make(x):
        return relu(combine([layers.Conv2D(4, 1)(x), x]))

    graph, activations, _ = find(make)
    assert len(activations) == 3
    assert combine.name not in [point.name for point in activations]


@pytest.mark.parametrize(
    "activation",
    [layers.ReLU(max_value=4, threshold=1), layers.ReLU(negative_slope=0.1), layers.LeakyReLU(),
     layers.Activation("gelu"), layers.Activation("softmax")],
)  # fmt: skip
def test_other_activations_read_a_quantized_tensor(activation):
    graph, activations, _ = find(lambda x: activation(layers.Conv2D(4, 1, name="conv")(x)))
    assert "conv" in [point.name for point in activations]


def test_relu_is_not_fused_if_its_input_is_read_elsewhere():
    def make(x):
        y = layers.Conv2D(4, 1, name="conv")(x)
        return layers.Add(name="add")([layers.ReLU(name="relu")(y), y])

    graph, activations, _ = find(make)
    assert [p.name for p in activations] == ["image", "conv", "relu", "add"]

    def output(x):
        y = layers.Conv2D(4, 1, name="conv")(x)
        return [layers.ReLU(name="relu")(y), y]

    graph, activations, _ = find(output)
    assert [p.name for p in activations] == ["image", "conv", "relu"]


@pytest.mark.parametrize(
    "layer,expected",
    [
        (layers.Softmax(), "unit"),
        (layers.Activation("softmax"), "unit"),
        (layers.Activation("sigmoid"), "unit"),
        (layers.Activation("tanh"), "tanh"),
        (ops.sigmoid, "unit"),
        (ops.softmax, "unit"),
        (ops.tanh, "tanh"),
        (layers.Activation("gelu"), "affine"),
        (layers.Activation("relu"), "affine"),
    ],
)
def test_ranges_that_int8_kernels_fix(layer, expected):
    _, activations, _ = find(lambda x: layer(layers.Dense(4)(x)))
    assert activations[-1].range == expected


def test_a_fixed_range_holds_through_a_reshape_and_yields_to_other_tensors():
    def make(x):
        y = layers.Activation("sigmoid", name="gate")(layers.Dense(4)(x))
        return [layers.Reshape((-1,))(y)]

    _, activations, _ = find(make)
    assert activations[-1].range == "unit"

    def mixed(x):
        y = layers.Activation("sigmoid", name="gate")(layers.Dense(4, name="dense")(x))
        return layers.Concatenate(name="concatenate")([y, x])

    graph, activations, _ = find(mixed)
    ranges = {p.name: p.range for p in activations}
    # One scale would fit neither: the concatenation has its own.
    assert ranges == {
        "image": "affine", "dense": "affine", "gate": "unit", "concatenate": "affine",
    }  # fmt: skip
