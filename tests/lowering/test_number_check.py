"""The numbers in the file are read back here without the code that wrote them."""

import dataclasses
import functools

import keras
import numpy as np
import pytest

import dqmq_tf
from dqmq_tf import export, flatbuffer, graph
from dqmq_tf.flatbuffer import editing
from dqmq_tf.lowering import number_check
from dqmq_tf.lowering.lowered_model import lower_model


def numpy(variable):
    return keras.ops.convert_to_numpy(variable).astype("float64")


def operators(model, name):
    part = model.subgraphs[0]
    for operator in part.operators:
        if flatbuffer.operator_name(model, operator) == name:
            yield [part.tensors[i] if i >= 0 else None for i in operator.inputs]


@pytest.fixture(scope="module")
def read():
    """A function that returns what a model and its file hold, and reads them once for all layers.

    That is the precision of the weights, the float model, its folded normalizations by layer, and
    the file. Nobody changes them.
    """

    @functools.cache
    def made(qmodel, path):
        float_model = qmodel.float_model()
        folds = {target: norm for norm, target in graph.trace(float_model).folds.items()}
        model = flatbuffer.read(export.decompress(path.read_bytes()))
        return qmodel.precision().weights, float_model, folds, model

    return made


KINDS = {"conv": "CONV_2D", "depthwise": "DEPTHWISE_CONV_2D", "dense": "FULLY_CONNECTED"}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_integers_scales_and_bias(every_bit_width, read, kind, bits):
    qmodel, path, _ = every_bit_width
    precision, float_model, folds, model = read(qmodel, path)
    layer_path = f"{kind}{bits}"
    given = precision[layer_path]["kernel"]
    assert given.bit_width == bits
    layer = float_model.get_layer(layer_path)
    gain, offset = np.ones(given.step.size), np.zeros(given.step.size)
    if layer_path in folds:
        norm = float_model.get_layer(folds[layer_path])
        deviation = np.sqrt(numpy(norm.moving_variance) + norm.epsilon)
        gain = numpy(norm.gamma) / deviation
        offset = numpy(norm.beta) - numpy(norm.moving_mean) * gain
    bias = numpy(layer.bias) if layer.use_bias else 0.0

    source, weights, biases = list(operators(model, KINDS[kind]))[bits - 2]
    found = flatbuffer.constant(model, weights)
    expected = given.integers * np.sign(gain).reshape(given.step.shape).astype(int)
    if kind == "conv":
        expected = expected.transpose(3, 0, 1, 2)
    elif kind == "dense":
        expected = expected.transpose(1, 0)
    np.testing.assert_array_equal(found.ravel(), expected.ravel())
    scales = np.asarray(weights.quantization.scale)
    expected_scales = (given.step.ravel().astype("float64") * np.abs(gain)).astype("float32")
    np.testing.assert_array_equal(scales, expected_scales)
    assert not np.any(weights.quantization.zeroPoint)
    assert weights.quantization.quantizedDimension == (3 if kind == "depthwise" else 0)

    real = (bias * gain + offset).astype("float32")
    step = source.quantization.scale[0].astype("float64") * scales.astype("float64")
    np.testing.assert_array_equal(flatbuffer.constant(model, biases), np.rint(real / step))
    # TFLite Micro's INT4 dense kernel takes one scale, and training has had one.
    assert (len(scales) == 1) == (qmodel.target.name == "microcontroller" and kind == "dense")
    assert flatbuffer.type_name(weights) == container(qmodel.target.name, kind, bits)


def container(target, kind, bits):
    if target == "android_small" and kind == "dense" and bits == 2:
        return "INT2"
    small = {"android_small": (2, 3, 4), "microcontroller": (4,)}
    # A table saves nothing on the few weights of a depthwise convolution.
    if target == "microcontroller" and kind == "depthwise":
        small[target] = (2, 3, 4)
    return "INT4" if bits in small.get(target, ()) else "INT8"


def test_activations_have_the_trained_grids(every_bit_width):
    qmodel, path, _ = every_bit_width
    model = flatbuffer.read(path.read_bytes())
    tensors = {flatbuffer.text(t.name): t for t in model.subgraphs[0].tensors}
    checked = 0
    for tensor, given in qmodel.precision().activations.items():
        if f"a{tensor}" in tensors:
            found = tensors[f"a{tensor}"].quantization
            assert found.scale[0] == np.float32(given.step)
            assert found.zeroPoint[0] == given.zero_point - 128
            checked += 1
    assert checked > 20


def test_nothing_differs_and_a_change_is_seen(small, small_file):
    model = flatbuffer.read(small_file[0].read_bytes())
    lowered = lower_model(small, 0)
    figures, messages = number_check.differences(model, lowered)
    assert figures["different"] == 0 and not messages
    assert figures["integers"] == 3 * 3 * 3 * 6 + 6 * 4
    tensor = next(t for t in model.subgraphs[0].tensors if flatbuffer.text(t.name) == "w0")
    values = flatbuffer.constant(model, tensor).copy()
    values[0, 0, 0, 0] += 1
    editing.set_constant(model, tensor, values)
    figures, messages = number_check.differences(model, lowered)
    assert figures["different"] == 1
    assert messages == ["conv: 1 of 162 integers differ"]


def test_a_message_names_the_layer_of_an_activation(small, small_file):
    model = flatbuffer.read(small_file[0].read_bytes())
    lowered = lower_model(small, 0)
    (key,) = lowered.outputs
    other = dataclasses.replace(lowered.quantization[key], step=1.0)
    _, messages = number_check.differences(model, lowered, {key: other})
    assert messages == ["the output of 'head_activation': 1 of 1 scales differ"]


def test_outputs_that_vanish_are_named_before_training_and_convert(tmp_path):
    keras.utils.set_random_seed(0)
    tiny = keras.initializers.RandomNormal(stddev=1e-7)
    stack = [keras.layers.Dense(8, kernel_initializer=tiny, name=f"dense_{i}") for i in range(3)]
    qmodel = dqmq_tf.quantize_model(keras.Sequential([keras.Input((4,)), *stack]))
    with pytest.warns(UserWarning, match="At 8 bits .*'dense_1'"):
        qmodel.calibrate(np.random.default_rng(0).normal(size=(64, 4)))
    report = export.convert(qmodel, tmp_path / "m.tflite", verify=False)
    assert report.size_bytes


def test_runtimes_take_a_relu6_whose_ceiling_is_too_many_steps_away(tmp_path):
    keras.utils.set_random_seed(0)
    tiny = keras.initializers.RandomNormal(stddev=1e-8)
    stack = [keras.layers.Conv2D(4, 3, kernel_initializer=tiny), keras.layers.ReLU(6.0)]
    model = keras.Sequential([keras.Input((6, 6, 2)), *stack, keras.layers.Conv2D(4, 3)])
    qmodel = dqmq_tf.quantize_model(model)
    images = np.random.default_rng(0).normal(size=(64, 6, 6, 2)).astype("float32")
    qmodel.calibrate(images)
    export.convert(qmodel, tmp_path / "m.tflite", data=images)
    report = export.verify(qmodel, tmp_path / "m.tflite", data=images)
    assert {row.runtime for row in report.rows if row.ran} >= {"litert-xnnpack", "litert-builtin"}
