"""Files with int8 inputs and outputs, of which some are read in floating point, or not at all."""

import keras
from helpers.frozen_models import freeze, images

from dqmq_tf import export, flatbuffer
from dqmq_tf.flatbuffer import TFLiteFile

layers = keras.layers


def converted(model, path):
    qmodel = freeze(model, target="microcontroller")
    path = path / "model.tflite"
    report = export.convert(qmodel, path, data=images(model, 32))
    assert report.verification.different_numbers == 0
    return TFLiteFile.load(path).model


def test_an_output_that_a_layer_in_floating_point_reads_too(tmp_path):
    inputs = keras.Input((5, 2))
    turned = layers.Permute((2, 1))(inputs)
    y = layers.Dense(3)(layers.TimeDistributed(layers.UnitNormalization())(turned))
    model = converted(keras.Model(inputs, [y, turned]), tmp_path)
    computed = set(map(int, model.subgraphs[0].inputs))
    for operator in model.subgraphs[0].operators:
        constants = {i for i in map(int, operator.inputs) if _is_constant(model, i)}
        assert set(map(int, operator.inputs)) - constants <= computed
        computed |= set(map(int, operator.outputs))


def _is_constant(model, index):
    return index < 0 or model.buffers[model.subgraphs[0].tensors[index].buffer].data is not None


def test_an_input_that_nothing_reads(tmp_path):
    used, unused = keras.Input((4,), name="used"), keras.Input((3,), name="unused")
    model = converted(keras.Model([unused, used], layers.Dense(2)(used)), tmp_path)
    graph = model.subgraphs[0]
    types = [flatbuffer.type_name(graph.tensors[index]) for index in graph.inputs]
    assert types == ["FLOAT32", "INT8"]
