"""Keras layers that quantize other layers and decide their bit-widths."""

from dqmq_tf.layers.activation import ActivationQuantizer
from dqmq_tf.layers.batch_normalization import FusedBatchNormalization, is_fusible
from dqmq_tf.layers.encoder import QualityEncoder
from dqmq_tf.layers.normalization import QualityAffine
from dqmq_tf.layers.policy import BitWidthPolicy
from dqmq_tf.layers.rectified import RectifiedQuantizer
from dqmq_tf.layers.reorder import Reorder
from dqmq_tf.layers.wrapper import Constants, QuantizeWrapper

__all__ = [
    "ActivationQuantizer",
    "BitWidthPolicy",
    "Constants",
    "FusedBatchNormalization",
    "QualityAffine",
    "QualityEncoder",
    "QuantizeWrapper",
    "RectifiedQuantizer",
    "Reorder",
    "is_fusible",
]
