"""Combines graph, policy and quantizing layers into one Keras graph."""

from dqmq_tf.assembly.model_parts import ModelParts, build

__all__ = ["ModelParts", "build"]
