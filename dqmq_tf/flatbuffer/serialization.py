"""A `.tflite` file as objects: read, look up, write."""

import functools
import importlib
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from dqmq_tf.errors import FileFormatError
from dqmq_tf.flatbuffer import bit_packing, validation

# Objects of LiteRT's generated schema, which is not typed.
ModelT: TypeAlias = Any
SubGraphT: TypeAlias = Any
TensorT: TypeAlias = Any
OperatorT: TypeAlias = Any
OperatorCodeT: TypeAlias = Any
SignatureDefT: TypeAlias = Any

IDENTIFIER = b"TFL3"
_ALIGNMENT = 16
_UNPACK = {"INT4": bit_packing.unpack_int4, "INT2": bit_packing.unpack_int2}


def litert_module(name: str) -> ModuleType:
    """Imports a module of LiteRT.

    Args:
        name: Name of the module, such as `"interpreter"`.

    Raises:
        ImportError: If `ai-edge-litert` is not installed.
    """
    try:
        return importlib.import_module(f"ai_edge_litert.{name}")
    except ImportError as error:
        raise ImportError(
            "Reading, writing and running .tflite files needs ai-edge-litert: "
            "pip install ai-edge-litert"
        ) from error


def schema() -> ModuleType:
    """Returns the generated schema module of LiteRT.

    Raises:
        ImportError: If `ai-edge-litert` is not installed.
    """
    return litert_module("schema_py_generated")


def read(data: bytes) -> ModelT:
    """Parses a file. `TFLiteFile` does so once for all steps that need the objects.

    Args:
        data: Contents of a `.tflite` file.

    Returns:
        The schema's `ModelT`.

    Raises:
        FileFormatError: If the bytes are not a complete TFLite file.
        ImportError: If `ai-edge-litert` is not installed.
    """
    litert = schema()
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise FileFormatError(
            f"Not a TFLite file: bytes 4 to 8 are {data[4:8]!r}, not {IDENTIFIER!r}."
        )
    try:
        model = litert.ModelT.InitFromPackedBuf(data, 0)
        _load_outside_buffers(model, data)
        validation.validate(model, litert)
    except Exception as error:
        raise FileFormatError(
            f"The TFLite file is truncated or corrupt ({type(error).__name__}: {error})."
        ) from error
    return model


def write(model: ModelT) -> bytes:
    """Serializes a model. Buffers are aligned to 16 bytes and equal vectors are stored once.

    Args:
        model: A `ModelT`.

    Returns:
        Contents of a `.tflite` file.
    """
    builder = _sharing_builder()
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def operator_name(model: ModelT, operator: OperatorT) -> str:
    """Returns the name of an operator, such as `"CONV_2D"`, or `"CUSTOM"`."""
    return builtin_name(model.operatorCodes[operator.opcodeIndex])


def builtin_name(code: OperatorCodeT) -> str:
    """Returns the name of an operator code, such as `"CONV_2D"`, or `"CUSTOM"`."""
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return _names(schema().BuiltinOperator)[number]


def type_name(tensor: TensorT) -> str:
    """Returns the name of a tensor's type, such as `"INT8"`."""
    return _names(schema().TensorType)[tensor.type]


def is_constant(model: ModelT, tensor: TensorT) -> bool:
    """Returns whether the file holds a tensor's values."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def constant(model: ModelT, tensor: TensorT) -> np.ndarray:
    """Returns the values of a constant tensor.

    Args:
        model: A `ModelT`.
        tensor: One of its tensors, of type FLOAT32, INT8, INT4, INT2, UINT8, INT32 or INT64.

    Returns:
        An array of the tensor's shape. INT4 and INT2 values are unpacked to int8.
    """
    data = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
    shape, name = tuple(tensor.shape) if tensor.shape is not None else (), type_name(tensor)
    if name in _UNPACK:
        return _UNPACK[name](data, int(np.prod(shape))).reshape(shape)
    return np.frombuffer(data.tobytes(), np.dtype(name.lower())).reshape(shape)


def activation_tensors(model: ModelT, graph: SubGraphT) -> list[int]:
    """Returns the indices of the float tensors that are inputs or that operators produce.

    They are in the order of execution.
    """
    indices = [*graph.inputs]
    for operator in graph.operators:
        indices.extend(operator.outputs)
    return [i for i in dict.fromkeys(indices) if type_name(graph.tensors[i]) == "FLOAT32"]


def text(name: bytes | str | None) -> str:
    """Returns a name of the schema as a string."""
    return name.decode() if isinstance(name, bytes) else (name or "")


def _sharing_builder() -> Any:
    import flatbuffers

    class SharingBuilder(flatbuffers.Builder):
        """Stores equal vectors once. Most of them are the zero points of symmetric channels."""

        def __init__(self) -> None:
            super().__init__(1024)
            self._vectors: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802 (named by flatbuffers)
            key = (x.dtype.str, x.tobytes())
            if key not in self._vectors:
                # Bytes are contents of tensors, which kernels read as vectors of any type.
                alignment = _ALIGNMENT if x.dtype == np.uint8 else x.dtype.itemsize
                self.StartVector(x.dtype.itemsize, x.size, alignment)
                self.head = self.head - x.nbytes  # type: ignore[has-type]  # untyped base
                self.Bytes[self.head : self.head + x.nbytes] = key[1]
                self._vectors[key] = self.EndVector()
            return self._vectors[key]

    return SharingBuilder()


@functools.cache
def _names(enumeration: type) -> dict[int, str]:
    return {v: k for k, v in vars(enumeration).items() if isinstance(v, int)}


def _load_outside_buffers(model: ModelT, data: bytes) -> None:
    """Loads the buffers that a large file keeps behind its flatbuffer."""
    for buffer in model.buffers or ():
        if buffer.offset > 1:
            end = buffer.offset + buffer.size
            if end > len(data):
                raise ValueError(f"contents end at byte {end} of {len(data)}")
            buffer.data = np.frombuffer(data[buffer.offset : end], np.uint8)
            buffer.offset = buffer.size = 0
