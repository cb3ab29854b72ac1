"""A model rounds the means of average pools as the kernels of its file do."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from helpers.frozen_models import images
from helpers.networks import assert_simulates, frozen, names, written
from helpers.predictions import predicted

layers = keras.layers


NETWORKS = {
    "unsigned": [layers.Conv2D(8, 3, activation="relu"), layers.AveragePooling2D(2)],
    "signed": [layers.Conv2D(8, 3), layers.AveragePooling2D((1, 2))],
    "four": [layers.Conv2D(8, 1, activation="relu"), *(layers.AveragePooling2D(2) for _ in "1234")],
    "borders": [
        layers.Conv2D(8, 3, activation="relu"),
        layers.AveragePooling2D(3, strides=2, padding="same"),
    ],
    "input": [layers.AveragePooling2D(2), layers.Conv2D(4, 3)],
    "function": [layers.Conv2D(8, 3, activation="relu"), lambda x: keras.ops.average_pool(x, 2)],
}


@pytest.mark.parametrize("kind", [*NETWORKS, "signal"])
def test_a_file_has_the_means_of_the_model(kind, tmp_path):
    if kind == "signal":
        shape = (32, 3)
        stack = [layers.Conv1D(8, 3, activation="relu"), layers.AveragePooling1D(2)]
    else:
        shape, stack = (32, 32, 3), NETWORKS[kind]
    qmodel = frozen(shape, *stack)
    data = images(qmodel, 32)
    lowered = assert_simulates(qmodel, data, ties=0.001)
    model, _ = written(qmodel, tmp_path)
    assert "AVERAGE_POOL_2D" in names(model)
    run = Interpreter(str(tmp_path / "model.tflite")).get_signature_runner()
    (name,) = run.get_input_details()
    outputs = [next(iter(run(**{name: data[i : i + 1]}).values())) for i in range(len(data))]
    step = lowered.quantization[lowered.outputs[0]].step
    found, expected = (
        np.round(x / step) for x in (np.concatenate(outputs), predicted(qmodel, data))
    )
    # The two add in another order: once in some 30,000 values, the sum of a convolution is a tie for
    # one of them only. The smallest output, of 1,024 means of 256 values each, may show one.
    assert (found != expected).sum() <= max(1, 1e-4 * found.size)
