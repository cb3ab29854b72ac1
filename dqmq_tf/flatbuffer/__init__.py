"""A `.tflite` file as objects: read, check, edit, write."""

from dqmq_tf.flatbuffer.serialization import (
    IDENTIFIER,
    activation_tensors,
    builtin_name,
    constant,
    is_constant,
    load,
    operator_name,
    read,
    schema,
    text,
    type_name,
    write,
)

__all__ = [
    "IDENTIFIER",
    "activation_tensors",
    "builtin_name",
    "constant",
    "is_constant",
    "load",
    "operator_name",
    "read",
    "schema",
    "text",
    "type_name",
    "write",
]
