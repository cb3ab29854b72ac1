"""From a trained model to a file on a device: `convert`, then `verify`."""

from dqmq_tf.export.convert import convert
from dqmq_tf.export.errors import ConversionError, UnsupportedLayerError, VerificationError
from dqmq_tf.export.metadata import read_metadata
from dqmq_tf.export.report import ConversionReport
from dqmq_tf.export.verification_report import RuntimeReport, VerificationReport
from dqmq_tf.export.verify import verify

__all__ = [
    "ConversionError",
    "ConversionReport",
    "RuntimeReport",
    "UnsupportedLayerError",
    "VerificationError",
    "VerificationReport",
    "convert",
    "read_metadata",
    "verify",
]
