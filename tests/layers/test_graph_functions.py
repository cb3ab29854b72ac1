"""Compares values and gradients of `one_node` with those of the function itself."""

import numpy as np
import pytest
import tensorflow as tf

from dqmq_tf.layers.graph_functions import graph_function, one_node, shapes_worth_compiling

SIGNATURE = [tf.TensorSpec([None, None]), tf.TensorSpec([None, 1]), tf.TensorSpec([])]


def scaled(x, scale, ignored):
    return tf.tanh(x) * tf.square(scale)


@pytest.fixture(params=[False, True], ids=["plain", "compiled"])
def traced(request):
    return one_node(scaled, SIGNATURE, compiled=request.param)


def arguments(rows, columns):
    random = np.random.default_rng(0)
    shapes = [(rows, columns), (rows, 1), ()]
    return [tf.constant(random.normal(size=shape), "float32") for shape in shapes]


def value_and_gradients(function, args):
    with tf.GradientTape() as tape:
        tape.watch(args)
        result = function(*args)
        loss = tf.reduce_sum(tf.square(result))
    return result, tape.gradient(loss, args)


@pytest.mark.parametrize("shape", [(3, 4), (1, 7)])
def test_values_and_gradients_are_those_of_the_function(traced, shape):
    args = arguments(*shape)
    expected, expected_gradients = value_and_gradients(scaled, args)
    for run in (traced, tf.function(traced)):
        found, gradients = value_and_gradients(run, args)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert gradients[2] is None and expected_gradients[2] is None
        for gradient, reference in zip(gradients[:2], expected_gradients[:2]):
            np.testing.assert_allclose(gradient, reference, rtol=1e-5)


def test_a_call_adds_few_nodes_and_keeps_shapes(traced):
    @tf.function
    def gradients(*args):
        with tf.GradientTape() as tape:
            tape.watch(args)
            result = traced(*args)
        assert result.shape == args[0].shape
        found = tape.gradient(result, args)
        assert found[0].shape == args[0].shape and found[1].shape == args[1].shape
        return found[:2]

    operations = gradients.get_concrete_function(*arguments(3, 4)).graph.get_operations()
    calls = [op for op in operations if "Call" in op.type]
    assert len(calls) == 2
    assert not {"Tanh", "Square", "TanhGrad"} & {op.type for op in operations}


def test_one_function_for_each_of_many_shapes_causes_no_warning_of_repeated_tracing(monkeypatch):
    warnings = []
    monkeypatch.setattr(tf.get_logger(), "warning", lambda *args: warnings.append(args))

    def doubled(x):
        return 2 * x

    for width in range(1, 8):
        graph_function(doubled, [tf.TensorSpec([None, width])], False)(tf.ones([1, width]))
    assert not warnings


def test_loops_are_compiled_for_shapes_that_hold_a_large_share_of_a_network():
    large, many, small = (112, 112, 32), (28, 28, 64), (16, 16, 32)
    normalizations = {"least_share": 0.08, "least_values": 24_576}
    assert shapes_worth_compiling([large, many, small], **normalizations) == {large, many}
    # Beside a much larger shape, `many` pays only where several layers have it.
    larger = (112, 112, 64)
    assert shapes_worth_compiling([larger, many], **normalizations) == {larger}
    assert shapes_worth_compiling([larger, *2 * [many]], **normalizations) == {larger, many}
    # However many layers have them, small activations do not.
    assert shapes_worth_compiling([small] * 50, **normalizations) == set()
    assert shapes_worth_compiling([small, (4, 4, 64)], 0.01) == {small}
    assert shapes_worth_compiling([(None, None, 64)], 0.01) == set()
    assert shapes_worth_compiling([], 0.01) == set()
