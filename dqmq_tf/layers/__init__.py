"""Keras layers: `Exposure` for images, and those that quantize other layers and activations."""

from dqmq_tf.layers.activation_quantizer import ActivationQuantizer
from dqmq_tf.layers.chained_activation import ChainedActivation, is_chainable
from dqmq_tf.layers.exposure import Exposure
from dqmq_tf.layers.fused_batch_normalization import FusedBatchNormalization, is_fusible
from dqmq_tf.layers.graph_functions import shapes_worth_compiling
from dqmq_tf.layers.quality_affine import QualityAffine
from dqmq_tf.layers.quantize_wrapper import Constants, QuantizeWrapper
from dqmq_tf.layers.relu_quantizer import RectifiedQuantizer
from dqmq_tf.layers.reorder import Reorder
from dqmq_tf.layers.user_activation_quantizer import UserActivationQuantizer
from dqmq_tf.layers.user_quantizer import UserQuantizer

__all__ = [
    "ActivationQuantizer",
    "ChainedActivation",
    "Constants",
    "Exposure",
    "FusedBatchNormalization",
    "QualityAffine",
    "QuantizeWrapper",
    "RectifiedQuantizer",
    "Reorder",
    "UserActivationQuantizer",
    "UserQuantizer",
    "is_chainable",
    "is_fusible",
    "shapes_worth_compiling",
]
