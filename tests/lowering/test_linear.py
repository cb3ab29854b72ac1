"""Each layer is rebuilt in the lowered model and compared with the original; some are written to files too."""

import keras
import numpy as np
import pytest
from helpers.frozen_models import freeze
from helpers.networks import (
    assert_simulates,
    branches,
    chain,
    frozen,
    names,
    operators,
    shaken,
    written,
)

from dqmq_tf import graph
from dqmq_tf.errors import UnsupportedLayerError
from dqmq_tf.lowering import rules
from dqmq_tf.lowering.lowered_model import lower_model

layers = keras.layers


EINSUMS = {
    (6,): [("ab,bc->ac", (4,), "c")],
    (5, 6): [
        ("abc,cd->abd", (None, 4), None),
        ("...x,xy->...y", (4,), "y"),
        ("abc,cde->abde", (5, 2, 3), "de"),
        ("abc,cde->abde", (5, 2, 3), "d"),
        ("abc,cde->abde", (5, 2, 3), "e"),
        ("abc,cde->abed", (5, 3, 2), "ed"),
        ("abc,ced->abde", (5, 2, 3), "de"),
        ("abc,cde->abed", (5, 3, 2), "d"),
        ("abc,cde->adbe", (2, 5, 3), "de"),
        ("abc,bcd->ad", (4,), "d"),
        ("abc,bd->adc", (4, 6), "d"),
    ],
    (2, 5, 6): [("...x,xy->...y", (4,), "y")],
    (5, 2, 3): [
        ("abcd,cde->abe", (5, 4), "e"),
        ("abcd,dce->abe", (5, 4), "e"),
        ("abcd,ecd->abe", (5, 4), "e"),
    ],
    (2, 5, 3): [("acbd,cde->abe", (5, 4), "e")],
}


@pytest.mark.parametrize("shape", EINSUMS)
def test_einsum_is_a_product_of_rows(shape):
    stacks = [
        [layers.EinsumDense(equation, made, bias_axes=bias)]
        for equation, made, bias in EINSUMS[shape]
    ]
    lowered = assert_simulates(freeze(branches(shape, *stacks)))
    assert not lowered.float_layers
    assert {weights.kind for weights in lowered.weights} == {"FULLY_CONNECTED"}
    assert len(lowered.weights) == len(stacks)


def test_einsum_that_is_no_product_of_rows_is_in_floating_point(tmp_path):
    cases = {
        "shared": ("abc,bcd->abd", (5, 4), "bd"),
        "two": ("abc,bcde->abde", (5, 4, 3), "de"),
        "bias": ("abc,cd->abd", (5, 4), "bd"),
    }
    stacks = [
        [layers.EinsumDense(equation, made, bias_axes=bias, name=name)]
        for name, (equation, made, bias) in cases.items()
    ]
    qmodel = freeze(branches((5, 6), *stacks))
    why = "the equation {!r} is not a product of rows with one matrix"
    assert assert_simulates(qmodel).float_layers == {
        name: why.format(equation) for name, (equation, _, _) in cases.items()
    }
    model, report = written(qmodel, tmp_path)
    assert report.float_layers.keys() == cases.keys()
    assert names(model)[: len(cases)] == ["DEQUANTIZE"] * len(cases)
    assert report.verification.different_numbers == 0


SIGNALS = [
    layers.Conv1D(4, 3, padding="causal"),
    layers.Conv1D(4, 3, padding="causal", strides=2),
    layers.Conv1D(4, 3, padding="causal", dilation_rate=2),
    layers.Conv1D(4, 4, padding="same", strides=3, activation="relu"),
    layers.Conv1D(4, 3, dilation_rate=2, use_bias=False),
    layers.DepthwiseConv1D(3, strides=2),
    layers.DepthwiseConv1D(3, strides=2, padding="same", depth_multiplier=2),
    layers.DepthwiseConv1D(3, dilation_rate=2),
    layers.Conv1DTranspose(4, 3, strides=2),
    layers.Conv1DTranspose(4, 3, strides=2, padding="same"),
    layers.Conv1DTranspose(4, 3, strides=2, padding="same", output_padding=1),
    layers.Conv1DTranspose(4, 3, strides=2, padding="same", output_padding=0),
]
IMAGES = [
    layers.Conv2D(4, (1, 3), strides=(2, 1)),
    layers.Conv2D(4, 3, padding="same", dilation_rate=(1, 2), activation="relu6"),
    layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2),
    layers.DepthwiseConv2D(3, padding="same", dilation_rate=2),
    layers.Conv2DTranspose(4, 3, strides=2),
    layers.Conv2DTranspose(4, 3, strides=2, output_padding=(1, 0)),
    layers.Conv2DTranspose(4, (2, 3), strides=(2, 3), padding="same", activation="relu"),
    layers.Conv2DTranspose(4, 3, strides=2, padding="same", output_padding=1),
]
PRODUCTS = [layers.Dense(4, activation="relu"), layers.Dense(1, use_bias=False)]


@pytest.mark.parametrize(
    "shape, kinds",
    [
        ((11, 3), SIGNALS[:5]),
        ((11, 3), SIGNALS[5:]),
        ((7, 6, 3), IMAGES),
        ((6,), PRODUCTS),
        ((5, 6), PRODUCTS),
        ((5, 1), PRODUCTS),
        ((2, 5, 6), PRODUCTS),
    ],
    ids=["signals", "other signals", "images", "rank 2", "rank 3", "one feature", "rank 4"],
)
def test_skeleton_computes_what_the_layer_does(shape, kinds):
    fresh = [[type(layer).from_config(layer.get_config())] for layer in kinds]
    lowered = assert_simulates(freeze(branches(shape, *fresh)))
    assert not lowered.float_layers and len(lowered.weights) == len(kinds)


@pytest.mark.parametrize(
    "layer, shape, operator",
    [
        (layers.Conv1D(4, 3, padding="same", dilation_rate=2), (11, 3), "CONV_2D"),
        (layers.Conv1D(4, 3, padding="causal", dilation_rate=2), (11, 3), "CONV_2D"),
        (layers.Conv2D(4, 3, dilation_rate=(1, 2), activation="relu"), (7, 6, 3), "CONV_2D"),
        (
            layers.DepthwiseConv2D(3, padding="same", dilation_rate=2),
            (7, 6, 3),
            "DEPTHWISE_CONV_2D",
        ),
    ],
)
def test_dilated_convolutions_that_read_the_same_are_one_operator_each(
    layer, shape, operator, tmp_path
):
    twins = [[type(layer).from_config({**layer.get_config(), "name": name})] for name in "ab"]
    model, report = written(freeze(branches(shape, *twins)), tmp_path)
    assert names(model).count(operator) == 2 and "SPACE_TO_BATCH_ND" not in names(model)
    assert not report.float_layers and report.verification.different_numbers == 0


@pytest.mark.parametrize(
    "shape, stack",
    [
        ((11, 3), (layers.Conv1D(4, 3, padding="causal", dilation_rate=2),)),
        ((11, 3), (layers.DepthwiseConv1D(3, strides=2),)),
        ((11, 3), (layers.Conv1DTranspose(4, 3, strides=2, padding="same", output_padding=1),)),
        ((5, 6), (layers.EinsumDense("abc,cde->adbe", (2, 5, 3), bias_axes="e"),)),
        ((6, 6, 3), (layers.Conv2DTranspose(4, 3), layers.BatchNormalization(), layers.ReLU())),
        ((2, 5, 6), (layers.Dense(4), layers.BatchNormalization(), layers.ReLU())),
    ],
    ids=["causal", "depthwise", "transpose", "einsum", "transpose, norm", "dense, norm"],
)
def test_file_is_in_integers_and_agrees(shape, stack, tmp_path):
    stack = [type(layer).from_config(layer.get_config()) for layer in stack]
    model, report = written(frozen(shape, *stack), tmp_path)
    found = names(model)
    assert found[0] == "QUANTIZE" and found[-1] == "DEQUANTIZE"
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(found[1:-1])
    assert report.verification.different_numbers == 0
    assert report.verification.largest_quanta <= 1.01


def test_relu6_behind_a_transposed_convolution_without_bias_is_in_integers(tmp_path):
    # The converter fuses it with the bias, and leaves a bias of zeros out.
    large = [keras.initializers.RandomNormal(0, 4, seed=seed) for seed in (1, 2)]
    fused, plain = (
        layers.Conv2DTranspose(
            4, 3, use_bias=False, activation=activation, kernel_initializer=kernel
        )
        for activation, kernel in zip(("relu6", None), large)
    )
    behind = [plain, layers.ReLU(6.0)]
    model, report = written(freeze(branches((6, 6, 3), [fused], behind)), tmp_path)
    kernels = [kinds for name, *kinds in operators(model) if name == "RELU6"]
    assert kernels == [[("INT8",), ("INT8",)]] * 2
    assert not report.float_layers and report.verification.different_numbers == 0
    assert report.verification.largest_quanta <= 1.01


@pytest.mark.parametrize("layer", [layers.Dense(6), layers.Conv1D(6, 1, padding="same")])
def test_a_shared_layer_has_its_weights_once(layer, tmp_path):
    keras.utils.set_random_seed(1)
    layer = type(layer).from_config(layer.get_config() | {"name": "shared"})
    inputs = keras.Input((5, 6))
    model = shaken(keras.Model(inputs, layer(layers.ReLU()(layer(inputs)))))
    qmodel = freeze(model)
    lowered = assert_simulates(qmodel)
    assert [weights.path for weights in lowered.weights] == ["shared"]
    file, report = written(qmodel, tmp_path)
    assert [row.name for row in report.weights] == ["shared"]
    wanted = "FULLY_CONNECTED" if isinstance(layer, layers.Dense) else "CONV_2D"
    assert names(file).count(wanted) == 2
    assert report.verification.different_numbers == 0


TWINS = {
    "conv": lambda: layers.Conv2D(4, 3),
    "fused": lambda: layers.Conv2D(4, 3, activation="relu"),
    "depthwise": lambda: layers.DepthwiseConv2D(3),
    "transpose": lambda: layers.Conv2DTranspose(4, 3),
    "separable": lambda: layers.SeparableConv2D(4, 3),
    "dense": lambda: layers.Dense(4),
    "einsum": lambda: layers.EinsumDense("abcd,de->abce", (6, 6, 5)),
    "in floating point": lambda: layers.Conv2D(4, 3, groups=2),
}


def test_two_layers_with_equal_weights_that_read_one_tensor_stay_two(tmp_path):
    stacks = [[make()] for make in TWINS.values() for _ in range(2)]
    model = branches((6, 6, 4), *stacks)
    for (first,), (second,) in zip(stacks[::2], stacks[1::2]):
        second.set_weights(first.get_weights())
    qmodel = freeze(model)
    assert_simulates(qmodel)
    assert written(qmodel, tmp_path)[1].verification.different_numbers == 0


def test_groups_are_in_floating_point():
    qmodel = frozen((6, 6, 4), layers.Conv2D(4, 3, groups=2, name="grouped"))
    lowered = assert_simulates(qmodel)
    assert "2 groups" in lowered.float_layers["grouped"]


@pytest.mark.parametrize(
    "shape, layer",
    [
        ((6, 3), layers.Conv1DTranspose(4, 3, dilation_rate=2, name="gaps")),
        ((6, 6, 3), layers.Conv2DTranspose(4, 3, dilation_rate=(1, 2), name="gaps")),
    ],
)
def test_dilated_transposed_convolution_is_refused_by_name(shape, layer):
    with pytest.raises(UnsupportedLayerError, match="'gaps'.*dilation_rate"):
        rules.check_supported(graph.trace(chain(shape, layer)))


def test_embedding_reads_rows_by_number():
    keras.utils.set_random_seed(2)
    inputs = keras.Input((5,), name="ids")
    table = layers.Embedding(11, 4, embeddings_initializer="normal", name="table")
    qmodel = freeze(keras.Model(inputs, layers.Dense(3)(table(inputs))))
    ids = np.random.default_rng(0).integers(0, 11, (32, 5)).astype("float32")
    lowered = assert_simulates(qmodel, ids)
    assert lowered.vocabulary == {lowered.inputs[0]: 11}
    assert lowered.inputs[0] not in lowered.quantization
    # The rows are floats: the dense layer behind puts them on their grid.
    assert lower_model(qmodel, 0).floating >= {"a1"}
