import keras
import pytest
from helpers.frozen_models import freeze
from helpers.networks import frozen, written

from dqmq_tf import flatbuffer
from dqmq_tf.flatbuffer import operator_versions

layers = keras.layers


def versions_of(path):
    model = flatbuffer.read(path.read_bytes())
    part, found = model.subgraphs[0], {}
    for operator in part.operators:
        name = flatbuffer.operator_name(model, operator)
        types = [flatbuffer.type_name(part.tensors[i]) for i in operator.inputs if i >= 0]
        weights = types[1] if len(types) > 1 else types[0]
        found[name, weights] = model.operatorCodes[operator.opcodeIndex].version
    return found


def test_versions_follow_the_types_of_tensors(every_bit_width):
    qmodel, path, report = every_bit_width
    found = versions_of(path)
    newest = dict(qmodel.target.operator_versions)
    for (name, _), version in found.items():
        assert version <= newest.get(name, version)
    assert found["DEPTHWISE_CONV_2D", "INT8"] == 3
    assert found["CONV_2D", "INT8"] == 3
    assert found["FULLY_CONNECTED", "INT8"] == 4
    assert found["AVERAGE_POOL_2D", "INT8"] == 2
    int8_ends = qmodel.target.name in ("microcontroller", "ethos_u")
    assert (("QUANTIZE", "FLOAT32") in found) != int8_ends
    if not int8_ends:
        assert found["QUANTIZE", "FLOAT32"] == 1
        assert found["DEQUANTIZE", "INT8"] == 2
    if qmodel.target.name in ("android_small", "microcontroller"):
        assert found["CONV_2D", "INT4"] == 7
        assert found["DEPTHWISE_CONV_2D", "INT4"] == 7
    if qmodel.target.name == "android_small":
        assert found["FULLY_CONNECTED", "INT4"] == 10
        assert found["FULLY_CONNECTED", "INT2"] == 14
    oldest = {"android_small": "2.21.0", "microcontroller": "2.11.0"}
    assert report.min_runtime_version == oldest.get(qmodel.target.name, "1.14.0")


def file_of(tmp_path, shape, *stack, **options):
    """Returns a file's `ModelT`, `{operator: its versions}`, and its oldest runtime."""
    model, report = written(frozen(shape, *stack, **options), tmp_path, verify=False)
    found = {}
    for operator in model.subgraphs[0].operators:
        version = model.operatorCodes[operator.opcodeIndex].version
        found.setdefault(flatbuffer.operator_name(model, operator), set()).add(version)
    return model, found, report.min_runtime_version


def test_the_version_of_dequantize_depends_on_the_type_and_number_of_scales(tmp_path):
    several = file_of(tmp_path, (3, 3), layers.GRU(4))
    one = file_of(tmp_path, (3, 3), layers.GRU(4), target="microcontroller")
    assert several[1]["DEQUANTIZE"] == {2, 5} and several[2] == "2.7.0"
    assert one[1]["DEQUANTIZE"] == {2}
    model = several[0]
    graph = model.subgraphs[0]
    restored = [o for o in graph.operators if flatbuffer.operator_name(model, o) == "DEQUANTIZE"]
    tensor = graph.tensors[restored[0].inputs[0]]
    assert operator_versions.operator_version(model, graph, restored[0]) == 5
    tensor.type = flatbuffer.schema().TensorType.INT4
    assert operator_versions.operator_version(model, graph, restored[0]) == 6


@pytest.mark.parametrize(
    "target, bits, version, release",
    [
        ("android", 6, 3, "1.14.0"),
        ("android_small", 6, 4, "2.21.0"),
        ("android_small", 3, 4, "2.21.0"),
    ],
)
def test_the_version_of_a_lookup_depends_on_the_number_of_scales(
    target, bits, version, release, tmp_path
):
    table = layers.Embedding(9, 4, name="table")
    stack = table, layers.Flatten(), layers.Dense(3, name="head")
    # At 8 bits every release runs the head.
    _, found, oldest = file_of(
        tmp_path, (5,), *stack, target=target, bits={"table": bits, "head": 8}
    )
    assert found["EMBEDDING_LOOKUP"] == {version} and oldest == release


@pytest.mark.parametrize(
    "options, version, release",
    [
        ({"use_bias": False}, 2, "2.2.0"),
        ({}, 3, "2.3.0"),
        ({"activation": "relu"}, 4, "2.13.0"),
    ],
    ids=["plain", "bias", "relu"],
)
def test_the_version_of_a_transposed_convolution_depends_on_bias_and_activation(
    options, version, release, tmp_path
):
    _, found, oldest = file_of(tmp_path, (4, 4, 2), layers.Conv2DTranspose(3, 3, **options))
    assert found["TRANSPOSE_CONV"] == {version} and oldest == release


def test_versions_of_resizes_and_activations(tmp_path):
    parts = [
        layers.Conv2D(3, 1),
        layers.UpSampling2D(2, interpolation="bilinear"),
        layers.Activation("gelu"),
        layers.UpSampling2D(2),
        layers.LeakyReLU(),
    ]
    _, found, oldest = file_of(tmp_path, (4, 4, 2), *parts)
    assert found["RESIZE_BILINEAR"] == found["RESIZE_NEAREST_NEIGHBOR"] == {3}
    assert found["GELU"] == found["LEAKY_RELU"] == {2}
    assert oldest == "2.9.0"


def test_the_version_of_a_product_of_two_tensors(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4))
    x = layers.Dense(4)(inputs)
    x = keras.ops.matmul(x, layers.Dense(4)(x))
    model, _ = written(freeze(keras.Model(inputs, layers.Dense(2)(x))), tmp_path, verify=False)
    found = {
        flatbuffer.operator_name(model, o): model.operatorCodes[o.opcodeIndex].version
        for o in model.subgraphs[0].operators
    }
    assert found["BATCH_MATMUL"] == 2


def test_versions_that_are_not_listed_need_the_release_that_was_tested():
    assert operator_versions.oldest_release("DEQUANTIZE", 6) == "2.21.0"
    assert operator_versions.oldest_release("CONV_2D", 1) == "1.5.0"
