"""Callbacks for `DQMQModel.fit`: the public names of `dqmq_tf.callbacks`."""

from dqmq_tf.training.bit_history import BitHistory
from dqmq_tf.training.pareto_checkpoint import ParetoCheckpoint, ParetoEntry
from dqmq_tf.training.progress_line import ProgressLine

__all__ = ["BitHistory", "ParetoCheckpoint", "ParetoEntry", "ProgressLine"]
