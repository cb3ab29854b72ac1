import keras
import numpy as np
import pytest

from dqmq_tf.export import flatbuffer, litert, matching
from dqmq_tf.export.errors import ConversionError
from dqmq_tf.export.verify import skeleton_of


@pytest.fixture(scope="module")
def exported(small):
    skeleton = skeleton_of(small, 0)
    return skeleton, graph, litert.export_float(skeleton.model)


def test_every_tensor_and_weight_is_found(exported):
    skeleton, _, data = exported
    model = flatbuffer.read(data)
    found = matching.match(model, data, skeleton)
    assert all(found.tensors.values())
    assert [w.site for w in found.weights.values()] == ["conv", "head"]


def test_weights_that_are_not_there_are_an_error(exported):
    skeleton, _, data = exported
    model = flatbuffer.read(data)
    for tensor in model.subgraphs[0].tensors:
        if tensor.shape is not None and len(tensor.shape) == 2 and tensor.shape[0] == 4:
            values = flatbuffer.constant(model, tensor).copy()
            flatbuffer.set_constant(model, tensor, values + np.float32(1e-3))
    with pytest.raises(ConversionError, match="weights of 'head' are not in the converted file"):
        matching.match(model, data, skeleton)


def test_probe_covers_the_input_range(exported):
    skeleton = exported[0]
    (probe,) = matching.probe_inputs(skeleton, 16)
    grid = skeleton.quantization[skeleton.inputs[0]]
    assert probe.shape == (16, 8, 8, 3)
    assert probe.min() == pytest.approx(-grid.step * grid.zero_point, abs=0.02)
    assert probe.max() == pytest.approx(grid.step * (255 - grid.zero_point), abs=0.02)


def test_simulated_skeleton_is_the_model(small):
    skeleton = skeleton_of(small, 0, simulate=True)
    x = np.random.default_rng(0).uniform(-1, 1, (16, 8, 8, 3)).astype("float32")
    expected = small.predict(x, verbose=0)
    np.testing.assert_allclose(skeleton.model.predict(x, verbose=0), expected, atol=1.01 / 256)
    assert isinstance(skeleton.model, keras.Model)
