"""Files with activations of 16 bits, from the float model to LiteRT, TFLite Micro and Vela."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers.frozen_models import TABLES, batch_norm, images

import dqmq_tf
from dqmq_tf import flatbuffer, runtimes
from dqmq_tf.flatbuffer import TFLiteFile
from dqmq_tf.lowering.int16_kernels import is_int16_operator
from dqmq_tf.lowering.lowered_model import lower_model

layers = keras.layers
# Patterns of the tensors with 16 bits. All others have 8.
ALL, SOME = ".*", "image|r6|gate|tanh|joined|up|probabilities"


def every_int16_operator():
    """All kinds of operators that have an int16 kernel in LiteRT, TFLite Micro and Vela."""
    keras.utils.set_random_seed(1)
    bias = keras.initializers.RandomUniform(-0.3, 0.3, seed=1)
    x = inputs = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.ReLU(6.0, name="r6")(batch_norm(1)(x))
    x = layers.ZeroPadding2D(name="pad")(layers.MaxPooling2D(name="pool")(x))
    a = layers.Conv2D(6, 3, activation="relu", bias_initializer=bias, name="left")(x)
    b = layers.Conv2D(6, 3, name="right")(x)
    product = layers.Multiply(name="product")([a, layers.Activation("sigmoid", name="gate")(b)])
    tanh = layers.Activation("tanh", name="tanh")(b)
    difference = layers.Subtract(name="difference")([product, tanh])
    x = layers.Concatenate(name="joined")([product, difference])
    x = layers.Add(name="sum")([x, layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)])
    x = layers.AveragePooling2D(2, name="average")(x)
    x = layers.Conv2DTranspose(5, 2, strides=2, bias_initializer=bias, name="up")(x)
    x = layers.LeakyReLU(0.1, name="leaky")(x)
    mean = layers.GlobalAveragePooling2D(name="mean")(x)
    mean = layers.Activation("silu", name="silu")(mean)
    x = layers.Flatten()(layers.Permute((2, 1))(layers.Reshape((16, 5))(x)))
    x = layers.Concatenate(name="features")([x, mean])
    x = layers.Dense(4, bias_initializer=bias, name="classes")(x)
    return keras.Model(inputs, layers.Softmax(name="probabilities")(x))


def small_network():
    keras.utils.set_random_seed(2)
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, activation="relu", name="conv")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    return keras.Model(inputs, layers.Dense(4, name="dense")(layers.Flatten(name="flat")(x)))


def frozen(model, pattern, target="ethos_u", weight_bits=8):
    """Returns a calibrated model in which the outputs of some layers have 16 bits."""
    wide = dqmq_tf.LayerRule(pattern=pattern, activation_bits=16, weight_bits=weight_bits)
    narrow = dqmq_tf.LayerRule(pattern=".*", activation_bits=8, weight_bits=weight_bits)
    qmodel = dqmq_tf.quantize_model(
        model,
        target=target,
        budget=dqmq_tf.Budget(size_bytes=10**7),
        config=dqmq_tf.DQMQConfig(rules=[wide, narrow]),
    )
    qmodel.calibrate(images(model))
    return qmodel.freeze()


def types_by_name(file):
    """Returns `{name: type}` of the tensors of a file."""
    return {
        flatbuffer.text(t.name): flatbuffer.type_name(t) for t in file.model.subgraphs[0].tensors
    }


@pytest.fixture(scope="module", params=[ALL, SOME])
def written(request, tmp_path_factory):
    model = every_int16_operator()
    qmodel = frozen(model, request.param)
    path = tmp_path_factory.mktemp("int16") / "model.tflite"
    dqmq_tf.convert(qmodel, path, data=images(model))
    return request.param, qmodel, path, images(model)


def test_every_number_is_the_model_s_and_both_runtimes_agree(written):
    _, qmodel, path, data = written
    report = dqmq_tf.verify(qmodel, path, data, samples=128)
    assert report.different_numbers == 0
    assert report.checked_numbers > 1500
    assert [row.runtime for row in report.rows] == ["tflite-micro", "litert-reference"]
    for row in report.rows:
        assert row.ran, row.note
        assert row.top1_agreement >= 0.98
        assert row.mean_quanta < 1.0


def test_vela_compiles_all_of_it_for_the_npu(written):
    _, qmodel, path, data = written
    vela = dqmq_tf.verify(qmodel, path, data, samples=2, runtimes=["litert-reference"]).vela
    assert vela.cpu_operators == 0
    assert vela.npu_operators > 10


def test_each_tensor_has_the_bits_that_it_was_trained_with(written):
    pattern, qmodel, path, _ = written
    lowered, found = lower_model(qmodel, 0), types_by_name(TFLiteFile.load(path))
    expected = {
        key: f"INT{precision.bit_width}"
        for key, precision in lowered.quantization.items()
        if key in found
    }
    assert {key: found[key] for key in expected} == expected
    assert set(expected.values()) == ({"INT16"} if pattern == ALL else {"INT8", "INT16"})
    assert {found[name] for name in found if name.startswith("w")} == {"INT8"}


# A step of an 8-bit tensor is many steps of the 16-bit tensors behind it.
@pytest.mark.parametrize("written", [ALL], indirect=True)
def test_the_runtime_computes_each_tensor_to_few_steps_of_its_grid(written):
    _, qmodel, path, data = written
    file, simulated = TFLiteFile.load(path), lower_model(qmodel, 0, simulate=True)
    few = [data[:1]]
    expected, graph = simulated.values(few), file.model.subgraphs[0]
    names = [flatbuffer.text(tensor.name) for tensor in graph.tensors]
    indices = [i for i, name in enumerate(names) if name in simulated.quantization]
    run = runtimes.run(file, few, runtime="litert-reference", tensors=indices)
    assert len(run.tensors) > 15
    for index, integers in run.tensors.items():
        grid = simulated.quantization[names[index]]
        integers = integers.astype("int64").reshape(expected[names[index]].shape)
        difference = np.abs(integers - expected[names[index]] / grid.step)
        # TFLite reduces the multipliers of int16 operators to 16 bits, and differences add up.
        assert difference.max() < 8 and difference.mean() < 1.5, names[index]


def test_inputs_and_outputs_have_their_own_integers_or_floats(tmp_path):
    path, qmodel = tmp_path / "model.tflite", frozen(small_network(), "image")
    for io_dtype, types in (("int8", ("INT16", "INT8")), ("float32", ("FLOAT32",) * 2)):
        dqmq_tf.convert(qmodel, path, io_dtype=io_dtype, verify=False)
        graph = TFLiteFile.load(path).model.subgraphs[0]
        ends = (graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]])
        assert tuple(map(flatbuffer.type_name, ends)) == types


def test_weights_of_4_bits_are_int8_where_activations_have_16(tmp_path):
    model, path = small_network(), tmp_path / "model.tflite"
    # The dense layer alone reads and computes 8 bits.
    qmodel = frozen(model, "image", target="microcontroller", weight_bits=4)
    dqmq_tf.convert(qmodel, path, data=images(model))
    found = types_by_name(TFLiteFile.load(path))
    assert [found[name] for name in ("w0", "w1", "w2")] == ["INT8", "INT4", "INT4"]


def test_tables_decode_the_weights_of_int16_operators(tmp_path):
    model, path = small_network(), tmp_path / "model.tflite"
    target = dataclasses.replace(TABLES, int4_ops=frozenset())
    qmodel = frozen(model, ".*", target=target, weight_bits=3)
    report = dqmq_tf.convert(qmodel, path, data=images(model))
    assert any(code.customCode for code in TFLiteFile.load(path).model.operatorCodes)
    row = report.verification.row("tflite-micro")
    assert row.ran and row.top1_agreement >= 0.98


def test_biases_are_64_bit_integers_in_units_of_the_products(written):
    _, _, path, _ = written
    file = TFLiteFile.load(path)
    graph = file.model.subgraphs[0]
    convolutions = [
        [graph.tensors[i] for i in operator.inputs]
        for operator in graph.operators
        if flatbuffer.operator_name(file.model, operator) == "CONV_2D"
    ]
    assert len(convolutions) == 3
    wide = [tensors for tensors in convolutions if flatbuffer.type_name(tensors[0]) == "INT16"]
    assert wide
    for source, weights, bias in wide:
        assert flatbuffer.type_name(bias) == "INT64"
        unit = np.float64(source.quantization.scale[0]) * weights.quantization.scale
        assert np.allclose(bias.quantization.scale, unit, rtol=1e-6)


def test_additions_have_any_scales(written):
    # Vela would compute with powers of two otherwise.
    _, _, path, _ = written
    file = TFLiteFile.load(path)
    options = [
        operator.builtinOptions.potScaleInt16
        for operator in file.model.subgraphs[0].operators
        if flatbuffer.operator_name(file.model, operator) in ("ADD", "SUB")
        and is_int16_operator(file.model.subgraphs[0], operator.inputs)
    ]
    assert options and not any(options)


def test_a_shared_layer_may_run_in_int16_in_one_call_and_in_int8_in_another(tmp_path):
    keras.utils.set_random_seed(3)
    inputs, shared = keras.Input((6, 6, 3), name="image"), layers.Conv2D(3, 3, padding="same")
    x = shared(layers.ReLU(name="relu")(shared(inputs)))
    model = keras.Model(inputs, layers.Dense(3, name="classes")(layers.Flatten()(x)))
    path = tmp_path / "model.tflite"
    report = dqmq_tf.convert(frozen(model, "image"), path, data=images(model))
    assert report.verification.different_numbers == 0
    file = TFLiteFile.load(path)
    graph = file.model.subgraphs[0]
    convolutions = [
        operator.inputs[:2]
        for operator in graph.operators
        if flatbuffer.operator_name(file.model, operator) == "CONV_2D"
    ]
    sources, kernels = zip(*convolutions)
    assert [flatbuffer.type_name(graph.tensors[i]) for i in sources] == ["INT16", "INT8"]
    assert kernels[0] == kernels[1]
