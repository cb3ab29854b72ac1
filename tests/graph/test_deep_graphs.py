"""Networks whose quantized form is deeper than Python's recursion limit, such as EfficientNetV2L."""

import sys

import keras
import numpy as np
import pytest
from helpers.small_networks import network

import dqmq_tf
from dqmq_tf.graph.deep_graphs import deep_graphs


@pytest.fixture
def limits(monkeypatch):
    """The recursion limits under which functional models were created."""
    limits = []
    functional = type(network())
    create = functional.__init__

    def recorded(self, *args, **kwargs):
        limits.append(sys.getrecursionlimit())
        create(self, *args, **kwargs)

    monkeypatch.setattr(functional, "__init__", recorded)
    return limits


def test_every_model_that_the_package_creates_may_be_deep(limits, tmp_path):
    model = network()
    limits.clear()
    qmodel = dqmq_tf.quantize_model(model)
    images = np.zeros((4, *model.input_shape[1:]), "float32")
    qmodel.calibrate(images)
    dqmq_tf.convert(qmodel, tmp_path / "model.tflite", data=images)
    assert len(limits) > 5 and min(limits) > 10_000


def test_a_deep_graph_is_created_and_the_limit_is_restored():
    limit, layer = sys.getrecursionlimit(), keras.layers.Identity()
    x = inputs = keras.Input((1,))
    for _ in range(limit + 100):
        x = layer(x)
    with pytest.raises(RecursionError):
        keras.Model(inputs, x)
    with deep_graphs():
        assert keras.Model(inputs, x).outputs[0] is x
    assert sys.getrecursionlimit() == limit
