import dataclasses

import keras
import pytest
import tensorflow as tf
from helpers.frozen_models import freeze, small_model

import dqmq_tf
from dqmq_tf import export, targets
from dqmq_tf.errors import ConversionError


def test_an_operator_that_is_newer_than_the_target_allows_is_refused_by_name(tmp_path):
    target = dataclasses.replace(
        targets.get("android_small"),
        name="old_phones",
        operator_versions=targets.get("android").operator_versions,
        oldest_tflite="2.1.0",
    )
    qmodel = freeze(small_model(), {"conv": 4}, target=target)
    message = "version 7 of operator CONV_2D.*'old_phones' allows version 3.*TensorFlow Lite 2.1.0"
    with pytest.raises(ConversionError, match=message):
        export.convert(qmodel, tmp_path / "model.tflite", verify=False)
    assert not list(tmp_path.iterdir())


def test_a_failure_of_tensorflows_converter_is_a_conversion_error(monkeypatch):
    class Failing:
        target_spec = tf.lite.TargetSpec()

        def convert(self):
            raise RuntimeError("op x should be of the same rank with y")

    monkeypatch.setattr(
        tf.lite.TFLiteConverter, "from_concrete_functions", lambda functions, saved: Failing()
    )
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    with pytest.warns(UserWarning, match="cannot be converted.*converter says: op x should"):
        dqmq_tf.quantize_model(model)
