"""Lookup-table compression for TFLite Micro: weights of b bits take b bits in the file.

The integers of a tensor are stored as indices into a table of values. An operator `TFLM_DECODE`
before each operator that reads them restores the INT8 tensor in the arena. The format is that of
TFLite Micro's own compressor, with one difference: the distance between the tables of two channels
is 0, so that all channels, and all tensors of the same bit-width, share one table. As the format is
not documented, `export.device_checks.check_bit_exact` checks each file before it is delivered:
TFLite Micro must decode the integers that were stored, and compute the same bits from the file as
from its uncompressed form.

No other runtime knows the operator. `decompress` restores the form that all of them run.
"""

import copy
from collections.abc import Mapping

import numpy as np

from dqmq_tf.errors import ConversionError, FileFormatError
from dqmq_tf.flatbuffer import bit_packing, editing, serialization
from dqmq_tf.flatbuffer.serialization import ModelT, OperatorT, SubGraphT, TensorT
from dqmq_tf.flatbuffer.tflite_file import TFLiteFile

DECODE = b"TFLM_DECODE"
_HEADER_BYTES = 16
_LOOKUP_TABLE, _VERSION = 0, 1
_ONE_TABLE = 15


def compress(file: TFLiteFile, bit_widths: Mapping[str, int]) -> TFLiteFile:
    """Stores weights as indices into lookup tables.

    Args:
        file: A finished file.
        bit_widths: `{name of an INT8 weight tensor: bits, 2 to 7}`.

    Returns:
        The compressed file, or `file` itself if `bit_widths` is empty.

    Raises:
        ConversionError: If an integer does not fit into its bits, a tensor is not the weights of
            an operator, or the file has several subgraphs.
    """
    if not bit_widths:
        return file
    file = file.copy()
    model = file.model
    if len(model.subgraphs) != 1:
        raise ConversionError(
            f"The file has {len(model.subgraphs)} subgraphs: compress the file of each profile "
            "before merging them."
        )
    graph, writer = model.subgraphs[0], _TableWriter(model)
    operators = []
    for operator in graph.operators:
        inputs = list(operator.inputs)
        if len(inputs) > 1 and inputs[1] >= 0:
            bits = bit_widths.get(serialization.text(graph.tensors[inputs[1]].name))
            if bits is not None:
                decode, inputs[1] = writer.decode(inputs[1], bits)
                operators.append(decode)
                operator.inputs = np.array(inputs, np.int32)
        operators.append(operator)
    graph.operators = operators
    missing = set(bit_widths) - writer.written
    if missing:
        raise ConversionError(f"No operator has {sorted(missing)[0]!r} as its weights.")
    editing.renumber_buffers(model)
    file.edited()
    return file


def decompress(contents: bytes) -> bytes:
    """Returns a compressed file with plain INT8 weights, which every runtime loads.

    Args:
        contents: Contents of a `.tflite` file.

    Returns:
        Contents of the same network without `TFLM_DECODE`, or `contents` itself if it holds no
        lookup tables.

    Raises:
        FileFormatError: If the file is corrupt, or holds a lookup table that decoders read
            differently: the header for one table per tensor on weights with a scale per channel.

    Example:

    >>> contents = dqmq_tf.export.decompress(pathlib.Path("model.tflite").read_bytes())
    """
    return decompress_file(TFLiteFile(contents)).contents


def decompress_file(file: TFLiteFile) -> TFLiteFile:
    """Does what `decompress` does, on a `TFLiteFile`."""
    if not is_compressed(file.model):
        return file
    file = file.copy()
    model = file.model
    try:
        for graph in model.subgraphs:
            _decode_graph(model, graph)
    except (IndexError, ValueError, TypeError, AttributeError) as error:
        raise FileFormatError(f"The file's lookup tables are corrupt ({error}).") from error
    decoders = {i for i, code in enumerate(model.operatorCodes) if code.customCode == DECODE}
    kept = [i for i in range(len(model.operatorCodes)) if i not in decoders]
    for graph in model.subgraphs:
        for operator in graph.operators:
            operator.opcodeIndex = kept.index(operator.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[i] for i in kept]
    editing.renumber_buffers(model)
    file.edited()
    return file


def is_compressed(model: ModelT) -> bool:
    """Returns whether a parsed file holds weights in lookup tables."""
    return any(code.customCode == DECODE for code in model.operatorCodes)


def coded_tensors(model: ModelT, graph: SubGraphT) -> dict[str, tuple[TensorT, TensorT]]:
    """Maps each compressed weight tensor to its tensor of indices and its lookup table.

    Args:
        model: A `ModelT`.
        graph: One of its subgraphs. Each has its own names.

    Returns:
        `{name of a weight tensor: (tensor of its indices, tensor of its table)}`.
    """
    coded: dict[str, tuple[TensorT, TensorT]] = {}
    for operator in graph.operators:
        if _is_decoder(model, operator):
            indices, table = (graph.tensors[i] for i in operator.inputs)
            name = serialization.text(graph.tensors[operator.outputs[0]].name)
            coded.setdefault(name, (indices, table))
    return coded


class _TableWriter:
    """Adds indices, lookup tables and the operators that decode them to a model.

    Args:
        model: A `ModelT` with one subgraph, changed in place.

    Attributes:
        written: Names of the weight tensors that were compressed.
    """

    def __init__(self, model: ModelT) -> None:
        self.written: set[str] = set()
        self._model, self._graph = model, model.subgraphs[0]
        self._coded: dict[str, tuple[int, int]] = {}
        self._tables: dict[bytes, int] = {}
        self._code = editing.add_operator_code(model, "CUSTOM", custom_code=DECODE)

    def decode(self, index: int, bits: int) -> tuple[OperatorT, int]:
        """Compresses a weight tensor for one of its readers.

        A decoded tensor lives until the next operator only, so each reader needs its own.

        Args:
            index: Index of the weight tensor.
            bits: Bits per weight.

        Returns:
            `(operator, index)`: the operator that decodes the weights, and the tensor that it
            produces.

        Raises:
            ConversionError: If the weights cannot be compressed.
        """
        tensor = self._graph.tensors[index]
        name = serialization.text(tensor.name)
        if name not in self._coded:
            self._coded[name] = self._encode(name, tensor, bits)
            tensor.buffer = 0
        else:
            index = editing.add_tensor(self._graph, copy.copy(tensor))
            self._graph.tensors[index].name = f"{name}'{index}".encode()
        self.written.add(name)
        return editing.make_operator(self._code, self._coded[name], [index]), index

    def _encode(self, name: str, tensor: TensorT, bits: int) -> tuple[int, int]:
        """Adds the indices of a tensor, and its table; returns the indices of both tensors."""
        integers, largest = serialization.constant(self._model, tensor), 2 ** (bits - 1) - 1
        if np.abs(integers.astype(int)).max(initial=0) > largest:
            raise ConversionError(
                f"{name!r} holds integers beyond {largest}, which do not fit into {bits} bits."
            )
        axis = tensor.quantization.quantizedDimension
        if axis not in (0, len(tensor.shape) - 1):
            raise ConversionError(
                f"{name!r} has scales along axis {axis}, but decoders support the first and the "
                "last axis only."
            )
        table = _table(axis, bits)
        if table not in self._tables:
            self._tables[table] = self._add(f"t{len(self._tables)}", table)
        indices = bit_packing.pack_indices(integers.astype(int) + largest, bits).tobytes()
        return self._add(f"{name}c", indices), self._tables[table]

    def _add(self, name: str, data: bytes) -> int:
        return editing.add_bytes_tensor(self._model, self._graph, name, data)


def _is_decoder(model: ModelT, operator: OperatorT) -> bool:
    return model.operatorCodes[operator.opcodeIndex].customCode == DECODE


def _table(axis: int, bits: int) -> bytes:
    """Returns a header and all integers of so many bits in ascending order, padded to `2**bits`."""
    header = bytes([_LOOKUP_TABLE, _VERSION, 0, 0, 1, axis << 4 | bits, 0])
    largest = 2 ** (bits - 1) - 1
    values = np.array([*range(-largest, largest + 1), 0], np.int8)
    return header.ljust(_HEADER_BYTES, b"\0") + values.tobytes()


def _decode_graph(model: ModelT, graph: SubGraphT) -> None:
    """Replaces each operator that decodes weights by the weights themselves."""
    operators = []
    # Several operators may decode the same indices. The first one's tensor serves all readers.
    first_output: dict[int, int] = {}
    replacements: dict[int, int] = {}
    for operator in graph.operators:
        if not _is_decoder(model, operator):
            inputs = [replacements.get(int(i), i) for i in operator.inputs]
            operator.inputs = np.array(inputs, np.int32)
            operators.append(operator)
            continue
        output, source = int(operator.outputs[0]), int(operator.inputs[0])
        if source in first_output:
            replacements[output] = first_output[source]
            continue
        first_output[source] = output
        indices, table = (graph.tensors[i] for i in operator.inputs)
        integers = _integers(model, graph.tensors[output], indices, table)
        graph.tensors[output].buffer = editing.add_buffer(model, integers.tobytes())
    graph.operators = operators
    editing.drop_unused_tensors(model, graph)


def _integers(model: ModelT, tensor: TensorT, indices: TensorT, table: TensorT) -> np.ndarray:
    """Returns the weights of a tensor, looked up in its table."""
    data = serialization.constant(model, table)
    axis, bits, stride = data[5] >> 4, data[5] & 7, int(data[6])
    if data[0] != _LOOKUP_TABLE or data[1] != _VERSION or not bits:
        raise ValueError(f"unknown header {bytes(data[:7])!r}")
    channels = len(tensor.quantization.scale)
    name = serialization.text(tensor.name)
    if axis == _ONE_TABLE and channels > 1:
        raise FileFormatError(
            f"{name!r} has a scale per channel but the header for one table per tensor, which some "
            "decoders misread: they read past the table. Compress it with a table per channel."
        )
    values = data[_HEADER_BYTES:].view(np.int8)
    shape = tuple(int(n) for n in tensor.shape)
    numbers = bit_packing.unpack_indices(
        serialization.constant(model, indices), int(np.prod(shape)), int(bits)
    ).reshape(shape)
    channel_shape = [1] * len(shape)
    if channels > 1:
        channel_shape[tensor.quantization.quantizedDimension] = channels
    offsets = np.arange(channels).reshape(channel_shape) * stride
    return values[numbers + offsets]
