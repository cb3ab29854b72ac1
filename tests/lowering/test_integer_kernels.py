"""Kernels and weights that litert-quantizer does not write in integers."""

import keras
import numpy as np
import pytest
from helpers.frozen_models import freeze
from helpers.networks import frozen, names, operators, shaken, written

from dqmq_tf import export, flatbuffer
from dqmq_tf.errors import ConversionError

layers = keras.layers


def conv(**options):
    return layers.Conv2D(4, 3, padding="same", **options)


def kernel(model, name):
    """Types of inputs and outputs of the one operator of a name."""
    ((_, entered, left),) = [entry for entry in operators(model) if entry[0] == name]
    return entered, left


@pytest.mark.parametrize(
    "io_dtype, around",
    [
        ("float32", lambda leaky: (conv(), leaky, conv())),
        ("float32", lambda leaky: (conv(), leaky)),
        ("int8", lambda leaky: (conv(), leaky)),
        ("int8", lambda leaky: (leaky, conv())),
        (
            "int8",
            lambda leaky: (
                conv(), layers.Activation("elu"), leaky, layers.Activation("elu"), conv()
            ),
        ),
    ],
    ids=["amid", "last", "last of integers", "first", "between floats"],
)  # fmt: skip
def test_leaky_relu_is_an_integer_kernel(around, io_dtype, tmp_path):
    qmodel = frozen((6, 6, 3), *around(layers.LeakyReLU(0.2)))
    model, report = written(qmodel, tmp_path, io_dtype=io_dtype)
    assert kernel(model, "LEAKY_RELU") == (("INT8",), ("INT8",))
    assert report.verification.different_numbers == 0
    assert report.verification.largest_quanta <= 2.01
    if io_dtype == "int8":
        graph = model.subgraphs[0]
        ends = (*graph.inputs, *graph.outputs)
        assert {flatbuffer.type_name(graph.tensors[i]) for i in ends} == {"INT8"}


def test_leaky_relu_that_is_read_in_both_ways(tmp_path):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 3))
    x = layers.LeakyReLU(0.2)(conv()(inputs))
    model = keras.Model(inputs, [conv(name="head")(x), layers.Activation("elu")(x), x])
    model, report = written(freeze(shaken(model)), tmp_path)
    assert kernel(model, "LEAKY_RELU") == (("INT8",), ("INT8",))
    assert names(model).count("QUANTIZE") == 1
    assert report.verification.different_numbers == 0


def mixed(last):
    """A sigmoid, whose grid is fixed, beside a convolution."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6, 6, 3))
    x = conv()(inputs)
    x = layers.Concatenate()([layers.Activation("sigmoid")(x), x])
    return freeze(shaken(keras.Model(inputs, x if last else conv(name="head")(x))))


@pytest.mark.parametrize("last, io_dtype", [(False, "float32"), (True, "float32"), (True, "int8")])
def test_concatenation_of_several_grids_requantizes(last, io_dtype, tmp_path):
    model, report = written(mixed(last), tmp_path, io_dtype=io_dtype)
    graph = model.subgraphs[0]
    assert kernel(model, "CONCATENATION") == (("INT8", "INT8"), ("INT8",))
    (operator,) = [
        o for o in graph.operators if flatbuffer.operator_name(model, o) == "CONCATENATION"
    ]
    grids = {
        (graph.tensors[i].quantization.scale[0], graph.tensors[i].quantization.zeroPoint[0])
        for i in (*operator.inputs, *operator.outputs)
    }
    assert len(grids) == 1
    assert ("QUANTIZE", ("INT8",), ("INT8",)) in operators(model)
    assert report.verification.different_numbers == 0
    assert report.verification.largest_quanta <= 2.01


def test_an_output_in_floating_point_that_an_integer_kernel_reads(tmp_path):
    keras.utils.set_random_seed(5)
    inputs = keras.Input((6, 6, 3))
    x = layers.Activation("elu", name="elu")(conv()(inputs))
    model = shaken(keras.Model(inputs, [conv(name="head")(x), x]))
    model, report = written(freeze(model), tmp_path)
    ends = model.subgraphs[0].outputs
    assert {flatbuffer.type_name(model.subgraphs[0].tensors[i]) for i in ends} == {"FLOAT32"}
    assert report.verification.largest_quanta <= 2.01


def test_integer_ends_of_float_layers(tmp_path):
    elu = layers.Activation("elu")
    model, report = written(frozen((6, 6, 3), elu, conv()), tmp_path, io_dtype="int8")
    assert operators(model)[:3] == [
        ("DEQUANTIZE", ("INT8",), ("FLOAT32",)),
        ("ELU", ("FLOAT32",), ("FLOAT32",)),
        ("QUANTIZE", ("FLOAT32",), ("INT8",)),
    ]
    assert report.verification.largest_quanta <= 1.01
    elu = layers.Activation("elu", name="elu")
    model, report = written(frozen((6, 6, 3), conv(), elu), tmp_path, io_dtype="int8")
    assert names(model) == ["CONV_2D", "DEQUANTIZE", "ELU", "QUANTIZE"]
    assert report.verification.largest_quanta <= 1.01
    qmodel = frozen((6, 6, 3), conv(), layers.Activation("elu", name="elu"), keep=["elu"])
    with pytest.raises(ConversionError, match="io_dtype='int8'.*floating point"):
        written(qmodel, tmp_path, io_dtype="int8")


@pytest.mark.parametrize(
    "target, bits, container, scales",
    [
        ("android", 6, "INT8", 1),
        ("android", 3, "INT8", 1),
        ("android_small", 6, "INT8", 11),
        ("android_small", 3, "INT4", 11),
    ],
)
def test_embedding_is_a_lookup_in_integers(target, bits, container, scales, tmp_path):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(11, 4, embeddings_initializer="normal", name="table")(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    qmodel = freeze(model, {"table": bits}, target=target)
    ids = np.random.default_rng(0).integers(0, 11, (64, 5)).astype("float32")
    report = export.convert(qmodel, tmp_path / "model.tflite", data=ids)
    model = flatbuffer.read((tmp_path / "model.tflite").read_bytes())
    assert kernel(model, "EMBEDDING_LOOKUP") == (("INT32", container), ("FLOAT32",))
    graph = model.subgraphs[0]
    (table,) = [t for t in graph.tensors if flatbuffer.text(t.name).startswith("w0")]
    given = qmodel.precision().weights["table"]["embeddings"]
    np.testing.assert_array_equal(flatbuffer.constant(model, table), given.integers)
    assert len(table.quantization.scale) == scales
    np.testing.assert_array_equal(table.quantization.scale, np.ravel(given.step))
    assert "GATHER" not in names(model)
    assert report.verification.largest_quanta <= 2.01


def test_a_table_that_two_layers_read_stands_once(tmp_path):
    keras.utils.set_random_seed(4)
    inputs = [keras.Input((5,), dtype="int32"), keras.Input((2,), dtype="int32")]
    table = layers.Embedding(11, 4, name="table")
    x = layers.Concatenate(axis=1)([table(entry) for entry in inputs])
    qmodel = freeze(keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    export.convert(qmodel, tmp_path / "model.tflite")
    model = flatbuffer.read((tmp_path / "model.tflite").read_bytes())
    lookups = [o for o in operators(model) if o[0] == "EMBEDDING_LOOKUP"]
    assert len(lookups) == 2
    held = [
        t
        for t in model.subgraphs[0].tensors
        if flatbuffer.type_name(t) == "INT8" and tuple(t.shape) == (11, 4)
    ]
    assert len(held) == 1
