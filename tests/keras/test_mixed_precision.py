"""Models that were built under `keras.mixed_precision`."""

import keras
import numpy as np
import pytest
import rich
from helpers.small_networks import compiled, images, network

import dqmq_tf
from dqmq_tf.training.bit_history import mean_bits


@pytest.mark.parametrize(
    "policy, target", [("mixed_bfloat16", "simulation"), ("mixed_float16", "android")]
)
def test_bits_can_be_looked_at(policy, target):
    keras.config.set_dtype_policy(policy)
    try:
        model = compiled(dqmq_tf.quantize_model(network(), target=target))
        x, y = images(64), np.arange(64) % 10
        model.decisions(x)
        logs = model.fit(x, y, epochs=2, verbose=0).history
        assert mean_bits(model).keys()
        decisions = model.decisions(x)
        summary = dqmq_tf.summary(model, (x, y))
    finally:
        keras.config.set_dtype_policy("float32")
    rich.print(decisions, summary)
    # Bits are whole numbers, which half precision would hold as well. Their mean is none.
    assert 2 <= logs["mean_bits"][-1] <= 8
    assert model._parts.encoder(x).dtype == "float32"
