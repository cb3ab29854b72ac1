"""The decision points of a few layers."""

import keras

from dqmq_tf import graph as graphs
from dqmq_tf import targets
from dqmq_tf.config import DQMQConfig
from dqmq_tf.graph import decision_points


def find(make, rules=(), target="simulation", shape=(8, 8, 4), dtype="float32"):
    x = keras.Input(shape, name="image", dtype=dtype)
    graph = graphs.trace(keras.Model(x, make(x)))
    activations, weights = decision_points.find_points(
        graph, targets.get(target), DQMQConfig(rules=rules)
    )
    return graph, activations, weights


def paths_of(graph, activations):
    """Which outputs each activation point holds, named by the layers that make them."""
    producers = graph.producers
    return [
        tuple(producers[t].path if t in producers else "image" for t in point.tensors)
        for point in activations
    ]
