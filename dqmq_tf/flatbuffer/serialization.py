"""A `.tflite` file as objects: read, look up, write."""

import numpy as np

from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import bit_packing, checksum, validation

IDENTIFIER = b"TFL3"
_ALIGNMENT = 16
_UNPACK = {"INT4": bit_packing.unpack_int4, "INT2": bit_packing.unpack_int2}


def schema():
    """The generated schema module of LiteRT.

    Raises:
        ImportError: If `ai-edge-litert` is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise ImportError(
            "Reading and writing .tflite files needs ai-edge-litert: pip install ai-edge-litert"
        ) from error
    return schema_py_generated


def load(path):
    """Reads and parses a file.

    Args:
        path: Path of a `.tflite` file.

    Returns:
        `(contents, model)`: bytes, and the schema's `ModelT`.

    Raises:
        FileNotFoundError: If there is no such file.
        ConversionError: If it is truncated or corrupt, or dqmq_tf did not write it.
    """
    contents = checksum.load(path)
    try:
        return contents, read(contents)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error


def read(data):
    """Parses a file.

    Args:
        data: Contents of a `.tflite` file.

    Returns:
        The schema's `ModelT`.

    Raises:
        ConversionError: If the bytes are not a complete TFLite file.
    """
    data = bytes(data)
    if len(data) < 8 or data[4:8] != IDENTIFIER:
        raise ConversionError(
            f"Not a TFLite file: bytes 4 to 8 are {data[4:8]!r}, expected {IDENTIFIER!r}."
        )
    try:
        model = schema().ModelT.InitFromPackedBuf(data, 0)
        _take_in(model, data)
        validation.validate(model, schema())
    except Exception as error:
        raise ConversionError(
            f"The TFLite file is truncated or corrupt ({type(error).__name__}: {error})."
        ) from error
    return model


def write(model):
    """Serializes a model: buffers aligned to 16 bytes, equal vectors stored once.

    Args:
        model: `ModelT`.

    Returns:
        Contents of a `.tflite` file.
    """
    builder = _sharing_builder()
    builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
    return bytes(builder.Output())


def operator_name(model, operator):
    """Name of an operator's builtin code, such as `"CONV_2D"`."""
    return builtin_name(model.operatorCodes[operator.opcodeIndex])


def builtin_name(code):
    """Name of a builtin code, such as `"CONV_2D"`; `"CUSTOM"` where it is none."""
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    return _names(schema().BuiltinOperator)[number]


def type_name(tensor):
    """Name of a tensor's type, such as `"INT8"`."""
    return _names(schema().TensorType)[tensor.type]


def is_constant(model, tensor):
    """Whether a tensor's values stand in the file."""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def constant(model, tensor):
    """Values of a constant tensor.

    Args:
        model: `ModelT`.
        tensor: One of its tensors, of type FLOAT32, INT8, INT4, INT2, UINT8, INT32 or INT64.

    Returns:
        Array of the tensor's shape; INT4 and INT2 values are unpacked to int8.
    """
    data = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
    shape, name = tuple(tensor.shape) if tensor.shape is not None else (), type_name(tensor)
    if name in _UNPACK:
        return _UNPACK[name](data, int(np.prod(shape))).reshape(shape)
    return np.frombuffer(data.tobytes(), np.dtype(name.lower())).reshape(shape)


def text(name):
    """A name of the schema as str."""
    return name.decode() if isinstance(name, bytes) else (name or "")


def _sharing_builder():
    import flatbuffers

    class SharingBuilder(flatbuffers.Builder):
        """Stores equal vectors once: most are the zero points of symmetric channels."""

        def __init__(self):
            super().__init__(1024)
            self._vectors = {}

        def CreateNumpyVector(self, x):  # noqa: N802 (the name is that of flatbuffers)
            key = (x.dtype.str, x.tobytes())
            if key not in self._vectors:
                # Bytes are tensors' contents, which kernels read as vectors of any type.
                alignment = _ALIGNMENT if x.dtype == np.uint8 else x.dtype.itemsize
                self.StartVector(x.dtype.itemsize, x.size, alignment)
                self.head = self.head - x.nbytes
                self.Bytes[self.head : self.head + x.nbytes] = key[1]
                self._vectors[key] = self.EndVector()
            return self._vectors[key]

    return SharingBuilder()


def _names(enumeration):
    return {v: k for k, v in vars(enumeration).items() if isinstance(v, int)}


def _take_in(model, data):
    """Takes in contents that stand behind the flatbuffer, as large files have them."""
    for buffer in model.buffers or ():
        if buffer.offset > 1:
            end = buffer.offset + buffer.size
            if end > len(data):
                raise ValueError(f"contents end at byte {end} of {len(data)}")
            buffer.data = np.frombuffer(data[buffer.offset : end], np.uint8)
            buffer.offset = buffer.size = 0


def activation_tensors(model, graph):
    """Indices of float tensors that operators make or that enter the graph, in order."""
    indices = [*graph.inputs]
    for operator in graph.operators:
        indices.extend(operator.outputs)
    return [i for i in dict.fromkeys(indices) if type_name(graph.tensors[i]) == "FLOAT32"]
