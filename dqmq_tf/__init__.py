"""Data-quality-aware mixed-precision quantization for Keras 3, from training to TFLite.

Source of the method: Wang, Guo, Guo, Zhang, "Data Quality-aware Mixed-precision Quantization via
Hybrid Reinforcement Learning", arXiv 2302.04453. The published idea is implemented here; none of
the paper's numbers are claimed.
"""

from dqmq_tf import graph, quality, runtimes, targets
from dqmq_tf.config import Budget, DQMQConfig, LayerRule, ObjectiveTerms
from dqmq_tf.errors import (
    ConversionError,
    DQMQError,
    FileFormatError,
    UnsupportedLayerError,
    VerificationError,
)
from dqmq_tf.export import (
    AdaptiveInterpreter,
    ConversionReport,
    convert,
    read_metadata,
    verify,
)
from dqmq_tf.model import DQMQModel
from dqmq_tf.policy.decision_table import DecisionTable
from dqmq_tf.quantize import quantize_model
from dqmq_tf.report.summary import Summary, summary
from dqmq_tf.targets import Target
from dqmq_tf.tfmot.annotate import quantize_annotate_layer, quantize_annotate_model, quantize_apply
from dqmq_tf.training.distillation import distill_labels
from dqmq_tf.version import __version__

__all__ = [
    "__version__",
    "AdaptiveInterpreter",
    "Budget",
    "ConversionError",
    "ConversionReport",
    "DQMQConfig",
    "DQMQError",
    "DQMQModel",
    "DQMQQuantizeConfig",
    "DecisionTable",
    "FileFormatError",
    "LayerRule",
    "ObjectiveTerms",
    "Summary",
    "Target",
    "UnsupportedLayerError",
    "VerificationError",
    "convert",
    "distill_labels",
    "graph",
    "quality",
    "quantize_annotate_layer",
    "quantize_annotate_model",
    "quantize_apply",
    "quantize_model",
    "read_metadata",
    "runtimes",
    "summary",
    "targets",
    "verify",
]


def __getattr__(name):
    # TFMOT changes the environment when it is imported: only for who asks for it.
    if name == "DQMQQuantizeConfig":
        from dqmq_tf.tfmot.quantize_config import DQMQQuantizeConfig

        return DQMQQuantizeConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
