"""Which tensors are decided, and between which bits."""

import keras
import pytest
from helpers.found_points import find, paths_of
from keras import layers, ops

from dqmq_tf import graph as graphs
from dqmq_tf import targets
from dqmq_tf.config import DQMQConfig, LayerRule
from dqmq_tf.graph import decision_points, fusion

BITS = tuple(range(2, 9))


def residual(x):
    y = layers.Conv2D(4, 3, padding="same", name="conv")(x)
    y = layers.BatchNormalization(name="bn")(y)
    y = layers.ReLU(name="relu")(y)
    y = layers.Conv2D(4, 3, padding="same", name="conv_1")(y)
    y = layers.BatchNormalization(name="bn_1")(y)
    y = layers.Add(name="add")([x, y])
    y = layers.ReLU(name="relu_1")(y)
    y = layers.GlobalAveragePooling2D(name="pool")(y)
    y = layers.Dense(3, name="dense")(y)
    return layers.Softmax(name="softmax")(y)


def test_a_linear_activation_shares_the_grid_of_its_input():
    def make(x):
        x = layers.Conv2D(4, 3, name="conv")(x)
        return layers.Conv2D(4, 3, name="end")(layers.Activation("linear", name="same")(x))

    graph, activations, _ = find(make)
    assert paths_of(graph, activations) == [("image",), ("conv", "same"), ("end",)]


def test_residual_network():
    graph, activations, weights = find(residual)
    assert paths_of(graph, activations) == [
        ("image",), ("relu",), ("bn_1",), ("relu_1",), ("pool",), ("dense",), ("softmax",),
    ]  # fmt: skip
    assert [p.name for p in activations] == [
        "image",
        "relu",
        "bn_1",
        "relu_1",
        "pool",
        "dense",
        "softmax",
    ]
    # The policy decides what a kernel reads; the rest keeps the most bits.
    assert [p.decided for p in activations] == [True, True, False, False, True, False, False]
    assert [p.bit_widths for p in activations] == [BITS, BITS, (8,), (8,), BITS, (8,), (8,)]
    assert [p.range for p in activations] == ["affine"] * 6 + ["unit"]
    assert activations[0].slots == (("", fusion.INPUT_CALL, 0),)
    assert [(p.name, p.input, p.macs) for p in weights] == [
        ("conv:kernel", 0, 64 * 9 * 16),
        ("conv_1:kernel", 1, 64 * 9 * 16),
        ("dense:kernel", 4, 12),
    ]
    assert [p.op_kind for p in weights] == ["conv", "conv", "dense"]


def test_on_devices_only_weights_are_decided():
    _, activations, weights = find(residual, target="android")
    assert not any(p.decided for p in activations)
    assert {p.bit_widths for p in activations} == {(8,)}
    assert {p.bit_widths for p in weights} == {BITS}


def test_depthwise_block():
    def make(x):
        y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
        y = layers.BatchNormalization(name="bn")(y)
        y = layers.Activation("relu6", name="relu6")(y)
        return layers.Conv2D(5, 1, name="pointwise")(y)

    graph, activations, weights = find(make)
    assert paths_of(graph, activations) == [("image",), ("relu6",), ("pointwise",)]
    assert [p.op_kind for p in weights] == ["depthwise", "conv"]
    assert [p.channel_axes for p in weights] == [(2, 3), (3,)]


def test_rules_choose_candidates():
    rules = [
        LayerRule(pattern="conv", weight_bits=(2, 4), activation_bits=(4, 8)),
        LayerRule(pattern="image", activation_bits=8),
        LayerRule(pattern="relu", activation_bits=(3, 5)),
        LayerRule(pattern="dense", weights=("kernel",)),
    ]
    _, activations, weights = find(residual, rules)
    by_name = {p.name: p for p in [*activations, *weights]}
    assert by_name["conv:kernel"].bit_widths == (2, 4)
    assert by_name["conv_1:kernel"].bit_widths == BITS
    assert by_name["image"].bit_widths == (8,) and not by_name["image"].decided
    assert by_name["relu"].bit_widths == (3, 5)


def test_a_rule_may_leave_the_weights_alone_in_floating_point():
    _, activations, weights = find(residual, [LayerRule(pattern="conv|dense", weights=())])
    assert [p.name for p in weights] == ["conv_1:kernel"]
    assert "relu" in [p.name for p in activations]


def test_rules_leave_layers_and_their_outputs_in_floating_point():
    rules = [LayerRule(pattern="conv|bn|relu", quantize=False)]
    _, activations, weights = find(residual, rules)
    assert [p.name for p in weights] == ["conv_1:kernel", "dense:kernel"]
    assert weights[0].input is None
    assert "relu" not in [p.name for p in activations]


def test_points_that_share_a_scale_share_what_their_rules_allow():
    def make(x):
        a = layers.Conv2D(2, 1, name="a")(x)
        b = layers.Conv2D(2, 1, name="b")(x)
        return layers.Conv2D(2, 1)(layers.Concatenate()([a, b]))

    def bits_with(second):
        rules = [
            LayerRule(pattern="a", activation_bits=(2, 4, 6)),
            LayerRule(pattern="b", activation_bits=second),
        ]
        return find(make, rules)[1][1].bit_widths

    assert bits_with((4, 6, 8)) == (4, 6)
    assert bits_with((7, 8)) == (2, 4, 6)


def test_indices_of_an_embedding_are_not_quantized():
    def make(x):
        return layers.Dense(2, name="dense")(layers.Embedding(9, 3, name="embedding")(x))

    def reshaped(x):
        return make(layers.Reshape((2, 3), name="reshape")(x))

    def cast(x):
        return make(ops.cast(x, "int32"))

    for indices in (make, reshaped, cast):
        _, activations, weights = find(indices, shape=(6,))
        assert [p.name for p in activations] == ["embedding", "dense"]
        assert weights[0].input is None

    def also_read(x):
        return layers.Add()([make(x), layers.Dense(2, name="b")(layers.Reshape((6, 1))(x))])

    assert "image" in [p.name for p in find(also_read, shape=(6,))[1]]


def test_a_folded_rescaling_is_fused():
    def make(x):
        y = layers.Rescaling(0.5, name="scale")(layers.Dense(3, name="dense")(x))
        return layers.ReLU(name="relu")(y)

    graph, activations, _ = find(make, shape=(4,))
    assert [p.name for p in activations] == ["image", "relu"]
    made = {node.path: node.outputs[0] for node in graph.nodes}
    assert fusion.fused_tensors(graph) == {made["dense"], made["scale"]}
    graph, activations, _ = find(lambda x: layers.Dense(3)(layers.Rescaling(0.5)(x)), shape=(4,))
    assert len(activations) == 3 and not fusion.fused_tensors(graph)


def test_fused_tensors_do_not_depend_on_rules():
    rules = [LayerRule(pattern="conv|relu", quantize=False)]
    graph, activations, _ = find(residual, rules)
    made = {node.path: node.outputs[0] for node in graph.nodes}
    fused = fusion.fused_tensors(graph)
    assert fused == {made[path] for path in ("conv", "bn", "conv_1", "add")}
    assert not fused & {t for point in activations for t in point.tensors}


def test_products_have_quantizers_of_their_own():
    def make(x):
        y = layers.Dense(4, name="dense")(x)
        z = ops.matmul(y, ops.transpose(y, (0, 2, 1)))
        return ops.einsum("abc,acd->abd", z, y)

    graph, activations, _ = find(make, shape=(5, 4))
    kinds = [type(graph.producers[p.tensors[0]].layer).__name__ for p in activations[1:]]
    assert kinds == ["Dense", "Matmul", "Einsum"]


@pytest.mark.parametrize(
    "layer",
    [layers.LayerNormalization(), layers.LSTM(3, activation="sigmoid"), layers.GRU(3),
     layers.LeakyReLU(), layers.Activation("gelu"), layers.Activation("silu")],
    ids=lambda layer: layer.name,
)  # fmt: skip
def test_layers_that_compute_in_float_have_their_output_quantized(layer):
    _, activations, _ = find(lambda x: layers.Dense(2)(layer(x)), shape=(5, 4))
    assert [p.name for p in activations][1] == layer.name
    assert activations[1].range == "affine"


@pytest.mark.parametrize(
    "rule,target,message",
    [
        (LayerRule(pattern="conv", weight_bits=(4, 16)), "android", r"'conv'.*weight.*\[16\]"),
        (LayerRule(pattern="relu", activation_bits=4), "android", r"'relu'.*activation.*\[4\]"),
        (LayerRule(pattern="image", activation_bits=4), "android", r"'image'.*activation"),
        (LayerRule(pattern="dense", weights=("core",)), "android", r"'dense'.*'core'.*kernel"),
        (LayerRule(pattern=".*", quantize=False), "android", "no layer with a kernel"),
    ],
)
def test_rules_that_cannot_be_met_name_the_layer(rule, target, message):
    with pytest.raises(ValueError, match=message):
        find(residual, [rule], target)


def test_a_model_without_kernels_is_refused():
    with pytest.raises(ValueError, match="no layer with a kernel"):
        find(lambda x: layers.ReLU()(x))


def test_calls_of_a_shared_layer_have_a_quantizer_each_and_one_kernel():
    dense = layers.Dense(4, name="dense")
    _, activations, weights = find(lambda x: dense(ops.tanh(dense(x))), shape=(4,))
    assert [p.slots for p in activations if "dense" in p.name] == [
        (("dense", 0, 0),), (("dense", 1, 0),),
    ]  # fmt: skip
    assert len({p.name for p in activations}) == len(activations)
    assert [(p.name, p.macs) for p in weights] == [("dense:kernel", 2 * 16)]


def test_a_nested_model_that_is_called_twice_has_one_quantizer_inside():
    x = keras.Input((4,))
    inner = keras.Model(
        x, layers.Dense(4, name="b")(layers.Dense(4, activation="relu", name="a")(x)), name="inner"
    )

    def make(x):
        # The first call's output is fused into the relu, the second's is not: none may be.
        return layers.Add(name="add")([layers.ReLU(name="relu")(inner(x)), inner(x)])

    graph, activations, weights = find(make, shape=(4,))
    inside = [p for p in activations if p.name.startswith("inner/")]
    assert [p.slots for p in inside] == [(("inner/a", 0, 0),), (("inner/b", 0, 0),)]
    assert [len(p.tensors) for p in inside] == [2, 2]
    assert [(p.name, p.macs) for p in weights] == [("inner/a:kernel", 32), ("inner/b:kernel", 32)]


def test_a_nested_layer_that_moves_values_leaves_its_calls_their_own_scales():
    x = keras.Input((4,))
    inner = keras.Model(x, layers.Reshape((2, 2), name="reshape")(x), name="inner")

    def make(x):
        gate = layers.Activation("sigmoid", name="gate")(layers.Dense(4, name="a")(x))
        other = layers.Dense(4, activation="relu", name="b")(x)
        return layers.Multiply(name="multiply")([inner(gate), inner(other)])

    _, activations, _ = find(lambda x: layers.Dense(2)(make(x)), shape=(4,))
    ranges = {p.name: (p.range, len(p.tensors)) for p in activations}
    assert ranges["gate"] == ("unit", 2) and ranges["b"] == ("affine", 2)


def test_integer_tensors_are_not_quantized():
    def make(x):
        return layers.Dense(2, name="dense")(layers.Embedding(9, 3, name="embedding")(x))

    graph, activations, weights = find(make, shape=(5,), dtype="int32")
    assert [p.name for p in activations] == ["embedding", "dense"]
    assert [(p.name, p.input, p.macs, p.channel_axes) for p in weights] == [
        ("embedding:embeddings", None, 0, (0,)),
        ("dense:kernel", 0, 5 * 6, (1,)),
    ]


def test_weights_that_rules_leave_in_floating_point_are_counted():
    x = keras.Input((8, 8, 4), name="image")
    graph = graphs.trace(keras.Model(x, residual(x)))
    rules = [LayerRule(pattern="conv", quantize=False)]
    _, weights = decision_points.find_points(graph, targets.get("android"), DQMQConfig(rules=rules))
    assert decision_points.float_weight_count(graph, weights) == 9 * 4 * 4


def test_an_input_may_be_left_in_floating_point():
    _, activations, weights = find(residual, [LayerRule(pattern="image", quantize=False)])
    assert "image" not in [p.name for p in activations]
    assert weights[0].input is None
