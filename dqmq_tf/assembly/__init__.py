"""Combines graph, policy and quantizing layers into one Keras graph."""

from dqmq_tf.assembly.model_parts import ModelParts, build
from dqmq_tf.assembly.settings import build_again, settings_of

__all__ = ["ModelParts", "build", "build_again", "settings_of"]
