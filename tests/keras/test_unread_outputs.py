"""Models that leave some of what they compute unused."""

import keras
import numpy as np
import pytest
from helpers.eight_bits import converted, quantized, trained
from keras import layers, ops

DATA = np.random.default_rng(0).normal(0, 1, (32, 6, 4)).astype("float32")


class TwoHeads(layers.Layer):
    def build(self, shape):
        self.first = self.add_weight(name="first_kernel", shape=(shape[-1], 3))
        self.second = self.add_weight(name="second_kernel", shape=(shape[-1], 5))

    def call(self, x):
        return ops.matmul(x, self.first), ops.matmul(x, self.second)


def states_alone(x):
    return layers.Concatenate()(layers.LSTM(5, return_state=True)(x)[1:])


def one_part_of_a_split(x):
    return layers.Flatten()(ops.split(layers.Dense(4)(x), 2, axis=-1)[0])


def some_of_an_unstack(x):
    steps = ops.unstack(layers.Dense(4)(x), axis=1)
    return steps[0] + steps[3]


def values_without_their_places(x):
    return layers.Flatten()(ops.top_k(layers.Dense(4)(x), 2)[0])


def one_head_of_two(x):
    return layers.Flatten()(TwoHeads()(x)[1])


def one_output_of_a_nested_model(x):
    inner = keras.Input((6, 4))
    outputs = [layers.Dense(3, name="unused")(inner), layers.Dense(2, name="used")(inner)]
    return layers.Flatten()(keras.Model(inner, outputs, name="nested")(x)[1])


KINDS = [
    states_alone,
    one_part_of_a_split,
    some_of_an_unstack,
    values_without_their_places,
    one_head_of_two,
    one_output_of_a_nested_model,
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_nothing_reads_is_no_hindrance(kind, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(DATA.shape[1:], name="x")
    model = keras.Model(inputs, layers.Dense(2)(kind(inputs)))
    qmodel = trained(quantized(model, DATA), DATA)
    names = [point.name for point in qmodel._parts.costs.weights]
    assert not [name for name in names if "unused" in name or "first_kernel" in name]
    converted(qmodel, DATA, tmp_path)


def test_an_input_that_nothing_reads(tmp_path):
    keras.utils.set_random_seed(0)
    used, unused = keras.Input((6, 4), name="used"), keras.Input((3,), name="unused")
    model = keras.Model([used, unused], layers.Dense(2)(layers.Flatten()(used)))
    data = [DATA, DATA[:, 0, :3]]
    converted(trained(quantized(model, data), data), data, tmp_path)
