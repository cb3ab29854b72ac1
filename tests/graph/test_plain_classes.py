"""Subclasses that only set other defaults compute what the Keras layer does."""

import keras
import numpy as np
import pytest
from helpers.eight_bits import converted, largest_error, quantized

from dqmq_tf.graph.plain_classes import plain_class

layers = keras.layers


class Capped(layers.ReLU):
    def __init__(self, **kwargs):
        super().__init__(**{"max_value": 4.0, **kwargs})


class Slower(layers.BatchNormalization):
    def __init__(self, **kwargs):
        super().__init__(**{"momentum": 0.999, **kwargs})

    def get_config(self):
        return super().get_config()


class Doubled(layers.ReLU):
    def call(self, x):
        return 2 * super().call(x)


class Standardized(layers.BatchNormalization):
    def _moments(self, inputs, mask):
        return super()._moments(inputs, mask)


def test_only_what_defines_nothing_else_is_plain():
    assert plain_class(Capped()) is plain_class(layers.ReLU()) is layers.ReLU
    assert plain_class(Slower()) is layers.BatchNormalization
    assert plain_class(Doubled()) is Doubled and plain_class(Standardized()) is Standardized
    assert plain_class(layers.Dense(2)) is layers.Dense and plain_class(None) is type(None)


@pytest.mark.parametrize("kind", [Capped, Slower])
def test_plain_subclasses_run_on_integer_kernels(kind, tmp_path):
    keras.utils.set_random_seed(0)
    data = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    inputs = keras.Input((6,))
    hidden = kind()(layers.Dense(5)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    with keras.saving.custom_object_scope({kind.__name__: kind}):
        qmodel = quantized(model, data)
        assert largest_error(model, qmodel, data) < 0.1
        assert not converted(qmodel, data, tmp_path).float_layers
