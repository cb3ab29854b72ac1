import dataclasses

import pytest
from helpers.frozen_models import freeze, small_model

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
