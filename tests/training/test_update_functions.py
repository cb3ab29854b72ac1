"""One function updates all variables of an optimizer, by the numbers of Keras."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import optimizers

from dqmq_tf.training import update_functions
from dqmq_tf.training.update_functions import shared_updates

SHAPES = ((3, 4), (), (5,), (2, 4), (1, 2, 3))
KINDS = {
    "adam": lambda: optimizers.Adam(0.01),
    "amsgrad, clipped": lambda: optimizers.Adam(0.01, amsgrad=True, clipnorm=1.0),
    "adam w": lambda: optimizers.AdamW(0.01, weight_decay=0.1),
    "sgd": lambda: optimizers.SGD(0.1),
    "nesterov": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "rms": lambda: optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "schedule": lambda: optimizers.Adam(optimizers.schedules.CosineDecay(0.1, 10)),
    "accumulation, average": lambda: optimizers.Adam(gradient_accumulation_steps=2, use_ema=True),
    "not known": lambda: optimizers.Nadam(0.01),
}


def variables(shapes=SHAPES):
    random = np.random.default_rng(0)
    return [keras.Variable(random.normal(size=shape).astype("float32")) for shape in shapes]


def gradients(seed):
    random = np.random.default_rng(seed)
    return [tf.constant(random.normal(size=shape), "float32") for shape in SHAPES]


def trained(optimizer, of_gradients=gradients, shared=True, graph=True):
    """Returns the values after five steps, and the operations of a step if it is a graph."""
    values = variables()
    optimizer.build(values)

    def step(*gradients):
        with shared_updates(optimizer) if shared else contextlib.nullcontext():
            optimizer.apply_gradients(zip(gradients, values))

    run = tf.function(step) if graph else step
    for seed in range(5):
        run(*of_gradients(seed))
    nodes = run.get_concrete_function(*of_gradients(0)).graph.get_operations() if graph else []
    return [variable.numpy() for variable in (*values, *optimizer.variables)], nodes


def assert_close(found, expected):
    """The graph optimizer may join a product and a sum into one rounding."""
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_variables_and_slots_are_those_of_keras(kind):
    optimizer = KINDS[kind]()
    found, _ = trained(optimizer)
    expected, _ = trained(KINDS[kind](), shared=False)
    assert_close(found, expected)
    assert not {"update_step", "_backend_update_step"} & vars(optimizer).keys()


def test_a_variable_adds_few_nodes():
    (_, nodes), (_, plain) = (trained(KINDS["adam"](), shared=shared) for shared in (True, False))
    assert sum(node.type == "StatefulPartitionedCall" for node in nodes) == len(SHAPES)
    assert not any(node.type == "Pow" for node in nodes)
    assert len(nodes) < len(plain) / 3


def test_variables_of_a_rank_share_a_function():
    _, nodes = trained(KINDS["adam"]())
    names = {node.get_attr("f").name for node in nodes if node.type == "StatefulPartitionedCall"}
    assert len(names) == len({len(shape) for shape in SHAPES})


def test_rows_of_an_embedding_are_updated_as_by_keras():
    def sparse(seed):
        first, *others = gradients(seed)
        return [tf.IndexedSlices(first[:2], tf.constant([2, 0]), tf.constant([3, 4])), *others]

    found, _ = trained(KINDS["adam"](), sparse)
    expected, _ = trained(KINDS["adam"](), sparse, shared=False)
    assert_close(found, expected)


def test_a_subclass_may_do_anything_in_its_update():
    class Halving(optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            variable.assign(variable / 2.0)

    found, _ = trained(Halving())
    for value, start in zip(found, variables()):
        np.testing.assert_array_equal(value, start.numpy() / 32)


def test_slots_that_are_not_found_are_those_of_keras(monkeypatch):
    class Tuples(optimizers.Adam):
        def build(self, variables):
            super().build(variables)
            self._velocities = tuple(self._velocities)

    monkeypatch.setattr(update_functions, "_OPTIMIZERS", (Tuples,))
    found, nodes = trained(Tuples(0.01))
    expected, _ = trained(KINDS["adam"](), shared=False)
    assert_close(found, expected)
    assert not any(node.type == "StatefulPartitionedCall" for node in nodes)


def test_an_optimizer_without_variables_makes_them_in_the_first_step():
    optimizer, (value,) = optimizers.Adam(0.1), variables([(2,)])

    @tf.function
    def step(gradient):
        with shared_updates(optimizer):
            optimizer.apply_gradients([(gradient, value)])

    start = value.numpy()
    step(tf.constant([1.0, -1.0]))
    np.testing.assert_allclose(value, start - [0.1, -0.1], atol=1e-5)


def test_eager_steps_stay_as_they_are():
    found, _ = trained(KINDS["adam"](), graph=False)
    expected, _ = trained(KINDS["adam"](), shared=False, graph=False)
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(value, other)
