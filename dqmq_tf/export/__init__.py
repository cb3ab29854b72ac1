"""From a trained model to a file on a device: `convert`, then `verify`."""

from dqmq_tf.export.c_array import write_c_array
from dqmq_tf.export.compression import decompress
from dqmq_tf.export.convert import convert
from dqmq_tf.export.errors import ConversionError, UnsupportedLayerError, VerificationError
from dqmq_tf.export.metadata import read_metadata
from dqmq_tf.export.report import ConversionReport, VerificationReport
from dqmq_tf.export.verify import verify

__all__ = [
    "ConversionError",
    "ConversionReport",
    "UnsupportedLayerError",
    "VerificationError",
    "VerificationReport",
    "convert",
    "decompress",
    "read_metadata",
    "verify",
    "write_c_array",
]
