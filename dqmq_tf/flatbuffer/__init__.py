"""A `.tflite` file as objects: read, check, edit, write."""

from dqmq_tf.flatbuffer.serialization import (
    IDENTIFIER,
    ModelT,
    OperatorT,
    SignatureDefT,
    SubGraphT,
    TensorT,
    activation_tensors,
    builtin_name,
    constant,
    is_constant,
    litert_module,
    operator_name,
    read,
    schema,
    text,
    type_name,
    write,
)
from dqmq_tf.flatbuffer.tflite_file import TFLiteFile, read_metadata

__all__ = [
    "IDENTIFIER",
    "ModelT",
    "OperatorT",
    "SignatureDefT",
    "SubGraphT",
    "TFLiteFile",
    "TensorT",
    "activation_tensors",
    "builtin_name",
    "constant",
    "is_constant",
    "litert_module",
    "operator_name",
    "read",
    "read_metadata",
    "schema",
    "text",
    "type_name",
    "write",
]
