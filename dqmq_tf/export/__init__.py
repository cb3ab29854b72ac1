"""From a trained model to a file on a device: `convert`, then `verify`."""

from dqmq_tf.errors import (
    ConversionError,
    DQMQError,
    FileFormatError,
    UnsupportedLayerError,
    VerificationError,
)
from dqmq_tf.export.c_array import write_c_array
from dqmq_tf.export.conversion_report import AdaptiveReport, ConversionReport
from dqmq_tf.export.convert import convert
from dqmq_tf.export.export_qonnx import QonnxReport, export_qonnx
from dqmq_tf.export.file_contents import FileContents, inspect_file
from dqmq_tf.export.preprocessing import Preprocessing
from dqmq_tf.export.verification_report import (
    AdaptiveVerificationReport,
    RuntimeReport,
    VerificationReport,
)
from dqmq_tf.export.verify import verify
from dqmq_tf.flatbuffer.lookup_tables import decompress
from dqmq_tf.flatbuffer.tflite_file import read_metadata
from dqmq_tf.runtimes.adaptive_interpreter import AdaptiveInterpreter, AdaptiveResult

__all__ = [
    "AdaptiveInterpreter",
    "AdaptiveReport",
    "AdaptiveResult",
    "AdaptiveVerificationReport",
    "ConversionError",
    "ConversionReport",
    "DQMQError",
    "FileContents",
    "FileFormatError",
    "Preprocessing",
    "QonnxReport",
    "RuntimeReport",
    "UnsupportedLayerError",
    "VerificationError",
    "VerificationReport",
    "convert",
    "decompress",
    "export_qonnx",
    "inspect_file",
    "read_metadata",
    "verify",
    "write_c_array",
]
