"""Data-quality-aware mixed-precision quantization for Keras 3, from training to TFLite."""

from dqmq_tf import config, graph, targets
from dqmq_tf.config import Budget, DQMQConfig, LayerRule, Terms
from dqmq_tf.model import DQMQModel
from dqmq_tf.quantize import quantize_model

__version__ = "0.1.0"
