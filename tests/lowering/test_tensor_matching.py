import dataclasses

import keras
import numpy as np
import pytest
from helpers.frozen_models import freeze
from helpers.networks import frozen
from helpers.predictions import predicted

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import editing
from dqmq_tf.lowering import float_file, lowered_model, tensor_matching
from dqmq_tf.lowering.lowered_model import lower_model


@pytest.fixture(scope="module")
def exported(small):
    lowered = lower_model(small, 0)
    return lowered, float_file.export_float(lowered.model).contents


def test_every_tensor_and_weight_is_found(exported):
    lowered, data = exported
    model = flatbuffer.read(data)
    found = tensor_matching.match_tensors(model, lowered)
    assert set(found.tensors.values()) == set(lowered.marked)
    assert [w.path for w in found.weights.values()] == ["conv", "head"]
    assert not found.floating and not found.stored
    graph = model.subgraphs[0]
    paths = {
        flatbuffer.operator_name(model, graph.operators[index]): path
        for index, path in found.paths.items()
    }
    # An operator belongs to the layer at its end: a relu behind a convolution is fused.
    assert paths["CONV_2D"].startswith("re_lu")
    assert paths["MEAN"].startswith("global_average_pooling2d")
    assert paths["FULLY_CONNECTED"].startswith("head") and paths["SOFTMAX"].startswith("head")


@pytest.fixture(scope="module")
def island():
    """A lowered with a layer in floating point, whose weights are integers, and its file."""
    layers = keras.layers
    qmodel = frozen(
        (4, 3), layers.Dense(3, name="in"), layers.GRU(2, name="gru"), layers.Dense(2, name="out")
    )
    lowered = lower_model(qmodel, 0)
    return lowered, float_file.export_float(lowered.model).contents


def test_operators_of_a_layer_in_floating_point_and_its_weights(island):
    lowered, data = island
    model = flatbuffer.read(data)
    found = tensor_matching.match_tensors(model, lowered)
    graph = model.subgraphs[0]
    assert {found.paths[index] for index in found.floating} == {"gru"}
    integer = set(range(len(graph.operators))) - found.floating
    assert {found.paths[index] for index in integer} == {
        "",
        "in",
        "out",
    }  # It begins with a reshaped input.
    assert sorted(w.variable.split("/")[-1] for w in found.stored.values()) == [
        "kernel",
        "recurrent_kernel",
    ]
    for index, weights in found.stored.items():
        values = flatbuffer.constant(model, graph.tensors[index])
        assert sorted(values.ravel()) == sorted(weights.values.ravel())


def test_stored_weights_that_are_not_there_are_an_error(island):
    lowered, data = island
    model = flatbuffer.read(data)
    found = tensor_matching.match_tensors(flatbuffer.read(data), lowered)
    (kernel,) = [w for w in found.stored.values() if w.variable.endswith("recurrent_kernel")]
    for tensor in model.subgraphs[0].tensors:
        if flatbuffer.type_name(tensor) == "FLOAT32" and flatbuffer.is_constant(model, tensor):
            values = flatbuffer.constant(model, tensor)
            if sorted(values.ravel()) == sorted(kernel.values.ravel()):
                editing.set_constant(model, tensor, values * np.float32(1.01))
    with pytest.raises(ConversionError, match="weights of 'gru' are not in the converted file"):
        tensor_matching.match_tensors(model, lowered)


class Halves(keras.layers.Layer):
    """Computes with the halves of two kernels, which the converter stores one by one."""

    def build(self, shape):
        self.one = self.add_weight(name="one", shape=(shape[-1], 4))
        self.other = self.add_weight(name="other", shape=(shape[-1], 4))

    def call(self, x):
        halves = [*keras.ops.split(self.one, 2, axis=1), *keras.ops.split(self.other, 2, axis=1)]
        return sum(keras.ops.tanh(keras.ops.matmul(x, half)) for half in halves)


def test_a_layer_with_several_weights_that_are_not_there_is_named_once_with_its_rule():
    lowered = lower_model(frozen((3,), Halves(name="it"), keras.layers.Dense(2)), 0)
    message = (
        "weights of 'it' are not in the converted file.*parts of a kernel.*"
        r"LayerRule\(pattern='it', quantize=False\)"
    )
    with pytest.raises(ConversionError, match=message):
        tensor_matching.match_tensors(float_file.export_float(lowered.model).model, lowered)


def test_equal_tensors_of_different_grids_are_an_error(exported):
    lowered, data = exported
    last = lowered.marked[-1]
    other = dataclasses.replace(lowered.quantization[last], zero_point=3)
    # A layer that the converter dropped: both ends have one tensor.
    keys = [lowered.marked[0], last]
    changed = dataclasses.replace(lowered, quantization=lowered.quantization | {last: other})
    model = flatbuffer.read(data)
    graph = model.subgraphs[0]
    names = [flatbuffer.operator_name(model, o) for o in graph.operators]
    first = graph.operators[names.index("QUANTIZE")]
    final = graph.operators[len(names) - 1 - names[::-1].index("QUANTIZE")]
    final.inputs = first.inputs.copy()
    path = lowered.paths[last]
    said = (
        rf"outputs of the input and '{path}' \(tensors {keys[0]}, {keys[1]}\) .*different "
        rf"quantization. Remove '{path}', which"
    )
    with pytest.raises(ConversionError, match=said):
        tensor_matching.match_tensors(model, changed)


def test_probe_of_indices_stays_in_the_table():
    inputs = keras.Input((50,), dtype="int32")
    x = keras.layers.Embedding(7, 2)(inputs)
    lowered = lower_model(freeze(keras.Model(inputs, keras.layers.Dense(2)(x))), 0)
    (probe,) = lowered_model.probe_inputs(lowered, 8)
    assert set(probe.ravel()) == set(range(7))
    assert probe.shape == (8, 50)


def test_weights_that_are_not_there_are_an_error(exported):
    lowered, data = exported
    model = flatbuffer.read(data)
    for tensor in model.subgraphs[0].tensors:
        if tensor.shape is not None and len(tensor.shape) == 2 and tensor.shape[0] == 4:
            values = flatbuffer.constant(model, tensor).copy()
            editing.set_constant(model, tensor, values + np.float32(1e-3))
    with pytest.raises(ConversionError, match="weights of 'head' are not in the converted file"):
        tensor_matching.match_tensors(model, lowered)


def test_probe_covers_the_input_range(exported):
    lowered = exported[0]
    (probe,) = lowered_model.probe_inputs(lowered, 16)
    grid = lowered.quantization[lowered.inputs[0]]
    assert probe.shape == (16, 8, 8, 3)
    assert probe.min() == pytest.approx(-grid.step * grid.zero_point, abs=0.02)
    assert probe.max() == pytest.approx(grid.step * (255 - grid.zero_point), abs=0.02)


def test_simulated_skeleton_is_the_model(small):
    lowered = lower_model(small, 0, simulate=True)
    x = np.random.default_rng(0).uniform(-1, 1, (16, 8, 8, 3)).astype("float32")
    expected = predicted(small, x)
    np.testing.assert_allclose(predicted(lowered.model, x), expected, atol=1.01 / 256)
    assert isinstance(lowered.model, keras.Model)
