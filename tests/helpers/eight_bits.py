"""Models quantized at 8 bits, which must predict what the float models predict."""

import keras
import numpy as np
from helpers.predictions import predicted

import dqmq_tf
from dqmq_tf import export


def quantized(model, data, target="android"):
    """Returns a `DQMQModel` with weights and activations of 8 bits, calibrated on data."""
    eight = dqmq_tf.LayerRule(pattern=".*", weight_bits=(8,))
    qmodel = dqmq_tf.quantize_model(
        model,
        target=target,
        budget=dqmq_tf.Budget(size_bytes=10_000_000),
        config=dqmq_tf.DQMQConfig(rules=(eight,)),
    )
    qmodel.calibrate(data)
    return qmodel


def trained(qmodel, data, epochs=1):
    """Trains a model to give a constant, in two steps an epoch."""
    labels = keras.tree.map_structure(np.zeros_like, predicted(qmodel, data))
    # Tracing would take longer than these few steps.
    qmodel.compile(keras.optimizers.SGD(1e-4), "mse", run_eagerly=True)
    size = len(keras.tree.flatten(data)[0])
    qmodel.fit(data, labels, batch_size=(size + 1) // 2, epochs=epochs, verbose=0)
    return qmodel


def converted(qmodel, data, path):
    """Freezes a model and writes its file, which `convert` verifies. Returns the report."""
    qmodel.freeze()
    return export.convert(qmodel, path / "model.tflite", data=data)


def largest_error(model, other, data):
    """Returns the largest difference between two models' outputs, relative to the largest output."""
    outputs, others = (
        np.concatenate([np.ravel(y) for y in keras.tree.flatten(predicted(m, data))])
        for m in (model, other)
    )
    return np.abs(outputs - others).max() / np.abs(outputs).max()
