"""Calibration of a large network runs it on a part of the data at a time."""

import keras
import numpy as np

import dqmq_tf
from dqmq_tf.graph import samples_at_once as limits
from dqmq_tf.training import range_calibration

_COUNT = 40


class Watched(keras.layers.Layer):
    """Passes on its input and remembers how many samples it was called with."""

    calls = []

    def call(self, x):
        if x.shape[0] is not None:
            Watched.calls.append(x.shape[0])
        return x


def _images():
    return np.random.default_rng(0).uniform(0, 255, (_COUNT, 8, 8, 3)).astype("float32")


def _calibrated(is_new):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Conv2D(4, 3, name="conv")(x)
    norm = keras.layers.BatchNormalization()
    x = keras.layers.ReLU()(norm(Watched()(x)))
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    if not is_new:
        norm.moving_mean.assign([0.1, 0.2, 0.3, 0.4])
    qmodel = dqmq_tf.quantize_model(model, target="android")
    Watched.calls.clear()
    qmodel.calibrate(_images())
    steps = {v.path: v.numpy() for v in qmodel.variables if v.path.endswith("/log_step")}
    return qmodel, steps, list(Watched.calls)


def test_steps_are_those_of_all_data_at_once(monkeypatch):
    _, expected, calls = _calibrated(is_new=False)
    assert max(calls) == _COUNT
    monkeypatch.setattr(limits, "_VALUES", 1)
    qmodel, steps, calls = _calibrated(is_new=False)
    assert max(calls) == 8 and calls.count(8) >= _COUNT / 8
    for found, values in zip(steps.values(), expected.values(), strict=True):
        np.testing.assert_allclose(found, values, rtol=1e-5)
    assert len(expected) > 2


def test_statistics_of_new_layers_are_means_over_the_parts(monkeypatch):
    monkeypatch.setattr(limits, "_VALUES", 1)
    qmodel, _, _ = _calibrated(is_new=True)
    parts, (norm, _) = qmodel._parts, range_calibration._trained_norms(qmodel._parts.graph)[0]
    state = range_calibration.set_ranges(parts, _images(), for_training=False)
    conv = keras.Model(parts.body.inputs, parts.body.get_layer("conv").output)
    values = conv.predict(_images(), verbose=0).reshape(5, -1, 4)
    np.testing.assert_allclose(state[id(norm.moving_mean)], values.mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(
        state[id(norm.moving_variance)], values.var(1).mean(0), rtol=1e-3, atol=1e-6
    )
