"""Activations and per-channel maps, in the lowered model and in the file."""

import keras
import numpy as np
import pytest
from helpers.frozen_models import batch_norm, freeze
from helpers.networks import assert_simulates, branches, chain, frozen, names, operators, written

from dqmq_tf import graph
from dqmq_tf.errors import UnsupportedLayerError
from dqmq_tf.lowering import rules
from dqmq_tf.lowering.elementwise import activation_name

layers = keras.layers


def conv(**options):
    return layers.Conv2D(4, 3, padding="same", **options)


def test_names_of_activations():
    assert activation_name(None) == activation_name(keras.activations.linear) == "linear"
    assert activation_name(keras.activations.swish) == "silu"
    assert activation_name(keras.activations.hard_swish) == "hard_silu"
    assert activation_name(keras.activations.elu) is None
    assert activation_name(lambda x: x) is None


ONE_OPERATOR = [
    (layers.Activation("sigmoid"), "LOGISTIC"),
    (layers.Activation("tanh"), "TANH"),
    (layers.Activation("hard_silu"), "HARD_SWISH"),
    (layers.Activation("gelu"), "GELU"),
    (layers.Activation("leaky_relu"), "LEAKY_RELU"),
    (layers.LeakyReLU(0.1), "LEAKY_RELU"),
    (layers.ReLU(negative_slope=0.3), "LEAKY_RELU"),
    (layers.Activation("softmax"), "SOFTMAX"),
    (layers.Softmax(axis=3), "SOFTMAX"),
]


@pytest.mark.parametrize("last", [False, True])
def test_activation_is_one_integer_operator(last, tmp_path):
    behind = [] if last else [layers.Dense(2)]
    stacks = [
        [conv(), type(layer).from_config(layer.get_config()), *behind] for layer, _ in ONE_OPERATOR
    ]
    qmodel = freeze(branches((6, 6, 3), *stacks))
    assert not assert_simulates(qmodel, ties=0.03).float_layers
    model, report = written(qmodel, tmp_path)
    wanted = [operator for _, operator in ONE_OPERATOR]
    found = [entry for entry in operators(model) if entry[0] in wanted]
    assert sorted(name for name, _, _ in found) == sorted(wanted)
    assert {types for _, *ends in found for types in ends} == {("INT8",)}
    assert report.verification.different_numbers == 0
    assert report.verification.largest_quanta <= 2.01


@pytest.mark.parametrize("fused", [False, True])
def test_silu_has_its_sigmoid_inside(fused, tmp_path):
    parts = [conv(activation="silu")] if fused else [conv(), layers.Activation("silu", name="act")]
    qmodel = frozen((6, 6, 3), *parts, layers.Dense(2))
    lowered = assert_simulates(qmodel, ties=0.001)
    (inner,) = [key for key in lowered.tensors if key.endswith("p")]
    assert lowered.quantization[inner].step == 1 / 256
    assert lowered.quantization[inner].zero_point == 0
    model, report = written(qmodel, tmp_path)
    assert names(model)[:4] == ["QUANTIZE", "CONV_2D", "LOGISTIC", "MUL"]
    assert report.verification.different_numbers == 0
    assert report.verification.largest_quanta <= 2.01


@pytest.mark.parametrize("target", ["android", "microcontroller"])
def test_training_rounds_the_gate_of_each_silu(target):
    """Also behind a batch normalization, of functions and of one layer that is called twice."""
    shared, inputs = layers.Activation("silu"), keras.Input((8, 8, 3))
    x = shared(layers.BatchNormalization()(conv()(inputs)))
    x = shared(layers.MaxPooling2D(1)(conv()(keras.ops.silu(conv()(x)))))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(keras.activations.swish(x))))
    assert_simulates(freeze(model, target=target), ties=0.005)


def test_a_silu_in_floating_point_has_a_gate_in_floating_point():
    """A rule leaves its input or its output without a grid."""
    for keep in ("conv", "act"):
        parts = [layers.Conv2D(4, 3, name="conv"), layers.Activation("silu", name="act")]
        qmodel = frozen((6, 6, 3), *parts, layers.Dense(2), keep=(keep,))
        lowered = assert_simulates(qmodel, ties=0.001)
        assert not [key for key in lowered.tensors if key.endswith("p")]


def test_relu_is_fused(tmp_path):
    relus = layers.ReLU(), layers.ReLU(6.0), layers.ReLU(max_value=6), layers.Activation("relu6")
    qmodel = freeze(branches((6, 6, 3), *([conv(), relu, conv()] for relu in relus)))
    assert not assert_simulates(qmodel).float_layers
    model, _ = written(qmodel, tmp_path)
    assert set(names(model)) == {"QUANTIZE", "CONV_2D", "DEQUANTIZE"}


def test_the_grid_clips_a_relu_with_a_ceiling(tmp_path):
    parts = [conv(), layers.ReLU(max_value=0.5, name="clip"), conv()]
    other = [layers.Activation("gelu"), layers.ReLU(max_value=2, name="other"), conv()]
    qmodel = freeze(branches((6, 6, 3), parts, other))
    lowered = assert_simulates(qmodel)
    assert not lowered.float_layers
    tops = {grid.step * (255 - grid.zero_point) for grid in lowered.quantization.values()}
    assert any(top == pytest.approx(0.5) for top in tops)
    model, report = written(qmodel, tmp_path)
    assert report.verification.different_numbers == 0
    assert {"RELU6", "MINIMUM"}.isdisjoint(names(model))


def test_what_no_kernel_does_is_in_floating_point():
    reasons = {
        layers.ReLU(max_value=1.0, threshold=0.5): "max_value=1.0",
        layers.ReLU(threshold=0.2): "threshold=0.2",
        layers.ReLU(max_value=6.0, negative_slope=0.1): "max_value=6.0",
        layers.Activation("elu"): "'elu' has no integer kernel",
        layers.Softmax(axis=1): "the last axis, not 1",
        layers.Softmax(axis=(2, 3)): "the last axis",
        layers.PReLU(): "no integer kernel for PReLU",
    }
    stacks = [[conv(), layer, layers.Dense(2)] for layer in reasons]
    found = assert_simulates(freeze(branches((6, 6, 3), *stacks))).float_layers
    assert set(found) == {layer.name for layer in reasons}
    for layer, reason in reasons.items():
        assert reason in found[layer.name]


def test_relu6_that_nothing_fuses_is_in_floating_point():
    parts = conv(), layers.Activation("gelu"), layers.ReLU(6.0, name="clip"), layers.Dense(2)
    assert list(assert_simulates(frozen((6, 6, 3), *parts)).float_layers) == ["clip"]


@pytest.mark.parametrize("shape, relu", [((6,), True), ((5, 6), True), ((4, 5, 6), False)])
def test_lone_batch_norm_of_any_rank(shape, relu, tmp_path):
    qmodel = frozen(shape, batch_norm(1), *[layers.ReLU()] * relu, layers.Dense(3))
    lowered = assert_simulates(qmodel)
    assert not lowered.float_layers
    norm, _ = lowered.weights
    assert norm.kind == "DEPTHWISE_CONV_2D" and norm.variable == "gamma"
    assert set(abs(norm.integers.ravel())) == {127}
    if relu:
        model, report = written(qmodel, tmp_path)
        assert "DEPTHWISE_CONV_2D" in names(model) and "MUL" not in names(model)
        assert report.verification.largest_quanta <= 1.01


@pytest.mark.parametrize("shape, axis, why", [((5, 6), 1, "axis 1"), ((2, 3, 5, 6), -1, "rank 5")])
def test_batch_norm_that_no_kernel_does(shape, axis, why):
    norm = layers.BatchNormalization(axis=axis, name="norm")
    lowered = assert_simulates(frozen(shape, norm, layers.Dense(3)))
    assert why in lowered.float_layers["norm"]


@pytest.mark.parametrize(
    "shape, channels", [((32, 40, 3), 60), ((33, 37, 1), 37), ((64, 64, 2), 64)]
)
def test_columns_of_a_large_image_are_channels_of_one_convolution(shape, channels, tmp_path):
    scale = [0.5, -2.0, 1.0][: shape[-1]]
    qmodel = frozen(shape, layers.Rescaling(scale, offset=0.25), layers.Conv2D(2, 3))
    assert not assert_simulates(qmodel).float_layers
    model, report = written(qmodel, tmp_path)
    kinds = ["QUANTIZE", "RESHAPE", "DEPTHWISE_CONV_2D", "RESHAPE", "CONV_2D", "DEQUANTIZE"]
    assert names(model) == kinds
    assert report.weights[0].count == channels
    assert report.verification.different_numbers == 0
    assert report.verification.largest_quanta <= 1.01


@pytest.mark.parametrize("scale, offset", [(0.5, 0.1), (-1.0, 0.1)])
def test_rescaling_is_folded_into_the_layer_before(scale, offset):
    parts = conv(), layers.Rescaling(scale, offset), layers.ReLU(), layers.Dense(2)
    qmodel = frozen((6, 6, 3), *parts)
    lowered = assert_simulates(qmodel)
    assert [weights.kind for weights in lowered.weights] == ["CONV_2D", "FULLY_CONNECTED"]
    given = qmodel.precision().weights[lowered.weights[0].path]["kernel"]
    expected = given.step.ravel() * abs(scale)
    assert lowered.weights[0].scales == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale, offset", [(2.0, -1.0), ([0.5, 1.0, -2.0], [0.0, 0.1, 0.2])])
def test_lone_rescaling_is_a_map_of_channels(scale, offset):
    lowered = assert_simulates(frozen((6, 6, 3), layers.Rescaling(scale, offset), conv()))
    assert [weights.variable for weights in lowered.weights] == ["scale", "kernel"]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x * 2.0,
        lambda x: 0.5 + x,
        lambda x: x - 0.5,
        lambda x: 0.5 - x,
        lambda x: keras.ops.multiply(x1=-0.5, x2=x),
    ],
)
def test_a_number_is_a_map_of_each_channel(call):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 3))
    qmodel = freeze(keras.Model(inputs, layers.Dense(2)(call(conv()(inputs)))))
    assert not assert_simulates(qmodel).float_layers


def test_a_constant_tensor_is_a_map_of_channels_or_for_floating_point():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 3))
    x = conv()(inputs) * np.full((1, 1, 1, conv().filters), 2.0, "float32")
    y = conv()(inputs) * np.full((1, 6, 6, 1), 2.0, "float32")
    qmodel = freeze(keras.Model(inputs, [layers.Dense(2)(x), layers.Dense(2)(y)]))
    (reason,) = assert_simulates(qmodel).float_layers.values()
    assert reason == "its constant tensor differs between positions"


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(4, 3, data_format="channels_first", name="first"),
        layers.MaxPooling2D(data_format="channels_first", name="first"),
        layers.Flatten(data_format="channels_first", name="first"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_channels_first_is_refused_by_name(layer):
    with pytest.raises(UnsupportedLayerError, match="'first'.*channels_first.*channels_last"):
        rules.check_supported(graph.trace(chain((6, 6, 6), layer)))


def test_sums_of_signals_of_one_channel(tmp_path):
    inputs = keras.Input((9, 1))
    x = inputs + inputs
    y = layers.Permute((2, 1))(layers.Add()([x, layers.PReLU()(x)]))
    model = keras.Model(inputs, [layers.Dense(2)(y), layers.Dense(2)(layers.SimpleRNN(2)(x))])
    file, _ = written(freeze(model), tmp_path)
    assert names(file).count("ADD") >= 2


@pytest.mark.parametrize("sizes", [(64, 40), (32, 16)])
def test_a_rescaling_of_images_of_two_sizes_is_one_layer(sizes, tmp_path):
    inputs = [keras.Input((size, size, 3)) for size in sizes]
    scale, conv = layers.Rescaling(0.5, offset=0.25), layers.Conv2D(2, 3)
    outputs = [layers.GlobalAveragePooling2D()(conv(scale(x))) for x in inputs]
    qmodel = freeze(keras.Model(inputs, outputs))
    assert written(qmodel, tmp_path)[1].verification.different_numbers == 0


@pytest.mark.parametrize("width", [37, 41])
def test_images_without_a_suitable_divisor_grow_no_file(width, tmp_path):
    qmodel = frozen((32, width, 3), layers.Rescaling(0.5, offset=0.25), layers.Conv2D(2, 3))
    assert written(qmodel, tmp_path)[1].weights[0].count == 3


def test_defaults_of_the_user_change_nothing_in_a_file(tmp_path):
    keras.config.set_image_data_format("channels_first")
    try:
        last = {"data_format": "channels_last"}
        stack = [layers.Rescaling(0.5, offset=1.0), layers.Conv2D(4, 3, **last)]
        qmodel = frozen((8, 8, 3), *stack, layers.GlobalAveragePooling2D(**last))
        assert not assert_simulates(qmodel).float_layers
        assert written(qmodel, tmp_path)[1].verification.different_numbers == 0
        assert keras.config.image_data_format() == "channels_first"
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize("is_constant", [False, True])
def test_masks_of_a_call_are_read(is_constant, tmp_path):
    inputs = keras.Input((5, 4))
    x = layers.Dense(4)(inputs)
    scores = layers.Dense(5)(x)
    mask = np.tril(np.ones((1, 5, 5), bool)) if is_constant else scores > -0.5
    weights = layers.Softmax(name="softmax")(scores, mask=mask)
    x = keras.ops.matmul(weights, x)
    mask = np.array([[True, True, False, True, False]]) if is_constant else inputs[..., 0] > -2
    x = layers.GlobalAveragePooling1D(name="mean")(x, mask=mask)
    qmodel = freeze(keras.Model(inputs, layers.Dense(3)(x)))
    assert_simulates(qmodel)
    _, report = written(qmodel, tmp_path)
    assert report.float_layers.items() >= {
        ("softmax", "it gets a mask"),
        ("mean", "it gets a mask"),
    }
    assert report.verification.largest_quanta <= 2.01
