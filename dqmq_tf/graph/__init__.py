"""A Keras model as data: which layer is called on which tensors, in order."""

from dqmq_tf.graph.from_keras import trace, trace_nested
from dqmq_tf.graph.graph import Graph, Node, inline, replay

__all__ = [
    "Graph",
    "Node",
    "inline",
    "replay",
    "trace",
    "trace_nested",
]
