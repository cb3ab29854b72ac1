"""The names of operators lead to the layers that they come from."""

import pytest
import tensorflow as tf

from dqmq_tf.lowering.operator_origins import origin, origins_in_error

PATHS = {"float_0_hash": "hash", "float_1_block_x_1": "block/x_1"}


@pytest.mark.parametrize(
    "name, path",
    [
        ("functional_8_1/float_0_hash_1/AsString", "hash"),
        ("float_0_hash/AsString", "hash"),
        ("functional_8_1/float_1_block_x_1/Erf;functional_8_1/marker", "block/x_1"),
        ("functional_8_1/float_1_block_x_1_2/inner/Erf", "block/x_1"),
        ("functional_8_1/Reshape;functional_8_1/float_0_hash_1/AsString", "hash"),
        ("functional_8_1/dense_1/MatMul", None),
        ("", None),
    ],
)
def test_the_origin_of_an_operator(name, path):
    assert origin(name, PATHS) == path


def test_the_origins_in_an_error():
    with tf.Graph().as_default() as graph:
        with tf.name_scope("functional_1/float_1_block_x_1"):
            tf.raw_ops.Erfinv(x=tf.constant([0.5]))
        tf.raw_ops.Erf(x=tf.constant([0.5]))
    text = "error: 'tf.Erfinv' op is neither a custom op nor a flex op"
    assert origins_in_error(text, graph, PATHS) == ["block/x_1"]
    text = "Input 0 of node functional_3_1/float_0_hash_1/AssignVariableOp was passed int64"
    assert origins_in_error(text, graph, PATHS) == ["hash"]
    assert origins_in_error("something else", graph, PATHS) == []
