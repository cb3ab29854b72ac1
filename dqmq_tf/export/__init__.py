"""From a trained model to a file on a device: `convert`, then `verify`."""

from dqmq_tf.export.c_array import write_c_array
from dqmq_tf.export.compression import decompress
from dqmq_tf.export.convert import convert
from dqmq_tf.export.errors import ConversionError, UnsupportedLayerError, VerificationError
from dqmq_tf.export.interpreter import AdaptiveInterpreter, AdaptiveResult
from dqmq_tf.export.listing import Listing, listing
from dqmq_tf.export.metadata import read_metadata
from dqmq_tf.export.report import AdaptiveReport, ConversionReport
from dqmq_tf.export.verification_report import (
    AdaptiveVerificationReport,
    RuntimeReport,
    VerificationReport,
)
from dqmq_tf.export.verify import verify

__all__ = [
    "AdaptiveInterpreter",
    "AdaptiveReport",
    "AdaptiveResult",
    "AdaptiveVerificationReport",
    "ConversionError",
    "ConversionReport",
    "Listing",
    "RuntimeReport",
    "UnsupportedLayerError",
    "VerificationError",
    "VerificationReport",
    "convert",
    "decompress",
    "listing",
    "read_metadata",
    "verify",
    "write_c_array",
]
