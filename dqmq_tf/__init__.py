"""Data-quality-aware mixed-precision quantization for Keras 3, from training to TFLite.

Source of the method: Wang, Guo, Guo, Zhang, "Data Quality-aware Mixed-precision Quantization via
Hybrid Reinforcement Learning", arXiv 2302.04453. The published idea is implemented here; none of
the paper's numbers are claimed.
"""

import itertools
import pathlib
import sys
from typing import Any

from dqmq_tf.version import __version__


def _is_command() -> bool:
    """Returns whether this process is `python -m dqmq_tf`, or the installed script `dqmq_tf`."""
    program = sys.argv[0] if sys.argv else ""
    # Python sets the name of the program to "-m" while it imports the package of the module.
    if program == "-m":
        return ("-m", "dqmq_tf") in itertools.pairwise(sys.orig_argv)
    return pathlib.PurePath(program).stem == "dqmq_tf"


# The command imports what it needs, so that its help does not wait for TensorFlow. Any other program
# gets all of the package at once: Keras can load a saved model only after its classes are imported.
if not _is_command():
    from dqmq_tf import graph, layers, quality, runtimes, targets
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
        Preprocessing,
        convert,
        export_qonnx,
        read_metadata,
        verify,
    )
    from dqmq_tf.model import DQMQModel
    from dqmq_tf.policy.decision_table import DecisionTable
    from dqmq_tf.quantize import change_input_shape, quantize_model
    from dqmq_tf.report.history_plots import plot_bits, plot_pareto
    from dqmq_tf.report.summary import Summary, summary
    from dqmq_tf.targets import Target
    from dqmq_tf.tfmot.annotate import (
        quantize_annotate_layer,
        quantize_annotate_model,
        quantize_apply,
    )
    from dqmq_tf.tfmot.from_tf_keras import from_tf_keras
    from dqmq_tf.training import callbacks
    from dqmq_tf.training.distillation import distill_labels
    from dqmq_tf.training.exposure_trial import ExposureTrial, try_exposure

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
    "ExposureTrial",
    "FileFormatError",
    "LayerRule",
    "ObjectiveTerms",
    "Preprocessing",
    "Summary",
    "Target",
    "UnsupportedLayerError",
    "VerificationError",
    "callbacks",
    "convert",
    "change_input_shape",
    "distill_labels",
    "export_qonnx",
    "from_tf_keras",
    "graph",
    "layers",
    "plot_bits",
    "plot_pareto",
    "quality",
    "quantize_annotate_layer",
    "quantize_annotate_model",
    "quantize_apply",
    "quantize_model",
    "read_metadata",
    "runtimes",
    "summary",
    "targets",
    "try_exposure",
    "verify",
]


def __getattr__(name: str) -> Any:
    # TFMOT changes the environment when it is imported. Import it only on request.
    if name == "DQMQQuantizeConfig":
        from dqmq_tf.tfmot.quantize_config import DQMQQuantizeConfig

        return DQMQQuantizeConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
