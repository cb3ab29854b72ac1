"""Compressed weights for TFLite Micro: weights of b bits take b bits in the file, or fewer.

The integers of a tensor are stored as indices into a table of values, or as the words of a Huffman
code. An operator `TFLM_DECODE` before each operator that reads them restores the INT8 tensor in the
arena. The format of indices is that of TFLite Micro's own compressor, with one difference: the
distance between the tables of two channels is 0, so that all channels, and all tensors of the same
bit-width, share one table. TFLite Micro decodes Huffman codes, but has no compressor for them. As the
formats are not documented, `export.device_checks.check_bit_exact` checks each file before it is delivered:
TFLite Micro must decode the integers that were stored, and compute the same bits from the file as
from its uncompressed form.

No other runtime knows the operator. `decompress` restores the form that all of them run.
"""

import copy
from collections.abc import Mapping

import numpy as np

from dqmq_tf.errors import ConversionError, FileFormatError
from dqmq_tf.flatbuffer import bit_packing, editing, huffman, serialization
from dqmq_tf.flatbuffer.huffman import Code
from dqmq_tf.flatbuffer.serialization import ModelT, OperatorT, SubGraphT, TensorT
from dqmq_tf.flatbuffer.tflite_file import TFLiteFile

DECODE = b"TFLM_DECODE"
_HEADER_BYTES = 16
_LOOKUP_TABLE, _HUFFMAN, _VERSION = 0, 1, 1
_ONE_TABLE = 15


def compress(file: TFLiteFile, codings: Mapping[str, int | Code]) -> TFLiteFile:
    """Stores weights as indices into lookup tables, or as words of Huffman codes.

    Args:
        file: A finished file.
        codings: `{name of an INT8 weight tensor: coding}`. A coding is a number of bits, 2 to 7, for
            indices into a table, or a `huffman.Code`.

    Returns:
        The compressed file, or `file` itself if `codings` is empty.

    Raises:
        ConversionError: If an integer does not fit into its bits or has no word, a tensor is not the weights of
            an operator, or the file has several subgraphs.
    """
    if not codings:
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
            coding = codings.get(serialization.text(graph.tensors[inputs[1]].name))
            if coding is not None:
                decode, inputs[1] = writer.decode(inputs[1], coding)
                operators.append(decode)
                operator.inputs = np.array(inputs, np.int32)
        operators.append(operator)
    graph.operators = operators
    missing = set(codings) - writer.written
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
        compressed weights.

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
        raise FileFormatError(f"The file's coded weights are corrupt ({error}).") from error
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
    """Returns whether a parsed file holds weights that TFLite Micro decodes."""
    return any(code.customCode == DECODE for code in model.operatorCodes)


def coded_tensors(model: ModelT, graph: SubGraphT) -> dict[str, tuple[TensorT, TensorT]]:
    """Maps each compressed weight tensor to its tensor of indices or words, and its tables.

    Args:
        model: A `ModelT`.
        graph: One of its subgraphs. Each has its own names.

    Returns:
        `{name of a weight tensor: (tensor of its indices or words, tensor of its tables)}`.
    """
    coded: dict[str, tuple[TensorT, TensorT]] = {}
    for operator in graph.operators:
        if _is_decoder(model, operator):
            indices, table = (graph.tensors[i] for i in operator.inputs)
            name = serialization.text(graph.tensors[operator.outputs[0]].name)
            coded.setdefault(name, (indices, table))
    return coded


def coding_of(model: ModelT, table: TensorT) -> str:
    """Returns how the weights with a tensor of tables are coded, one of `targets.CODINGS`."""
    is_huffman = serialization.constant(model, table)[0] == _HUFFMAN
    return "huffman" if is_huffman else "table"


class _TableWriter:
    """Adds coded weights, their tables and the operators that decode them to a model.

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

    def decode(self, index: int, coding: int | Code) -> tuple[OperatorT, int]:
        """Compresses a weight tensor for one of its readers.

        A decoded tensor lives until the next operator only, so each reader needs its own.

        Args:
            index: Index of the weight tensor.
            coding: Bits per weight, or a Huffman code.

        Returns:
            `(operator, index)`: the operator that decodes the weights, and the tensor that it
            produces.

        Raises:
            ConversionError: If the weights cannot be compressed.
        """
        tensor = self._graph.tensors[index]
        name = serialization.text(tensor.name)
        if name not in self._coded:
            self._coded[name] = self._encode(name, tensor, coding)
            tensor.buffer = 0
        else:
            index = editing.add_tensor(self._graph, copy.copy(tensor))
            self._graph.tensors[index].name = f"{name}'{index}".encode()
        self.written.add(name)
        return editing.make_operator(self._code, self._coded[name], [index]), index

    def _encode(self, name: str, tensor: TensorT, coding: int | Code) -> tuple[int, int]:
        """Adds a coded tensor and its tables; returns the indices of both new tensors."""
        integers = serialization.constant(self._model, tensor)
        if isinstance(coding, Code):
            data, table = _words(name, integers, coding), _huffman_tables(coding)
        else:
            data, table = self._indices(name, tensor, integers, coding)
        if table not in self._tables:
            self._tables[table] = self._add(f"t{len(self._tables)}", table)
        return self._add(f"{name}c", data), self._tables[table]

    @staticmethod
    def _indices(
        name: str, tensor: TensorT, integers: np.ndarray, bits: int
    ) -> tuple[bytes, bytes]:
        """Returns the indices of a tensor and its lookup table."""
        largest = 2 ** (bits - 1) - 1
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
        indices = bit_packing.pack_indices(integers.astype(int) + largest, bits).tobytes()
        return indices, _table(axis, bits)

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


def _words(name: str, integers: np.ndarray, code: Code) -> bytes:
    """Returns the words of a tensor in a Huffman code."""
    try:
        return code.encode(integers)
    except ValueError as error:
        raise ConversionError(f"{name!r} cannot be Huffman-coded: {error}.") from error


def _huffman_tables(code: Code) -> bytes:
    """Returns a header and the tables of a Huffman code, which have 16-bit entries."""
    header = bytes([_HUFFMAN, _VERSION, 0, 0, _VERSION, (code.first_bits - 1) << 4])
    return header.ljust(_HEADER_BYTES, b"\0") + code.tables


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
    """Returns the weights of a tensor, decoded by its tables."""
    data = serialization.constant(model, table)
    if data[0] == _HUFFMAN:
        return _huffman_integers(model, tensor, indices, data)
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


def _huffman_integers(
    model: ModelT, tensor: TensorT, words: TensorT, data: np.ndarray
) -> np.ndarray:
    """Returns the weights of a tensor, decoded by the Huffman tables `data`."""
    if data[1] != _VERSION or data[4] != _VERSION or data[5] & 15:
        raise ValueError(f"unknown header {bytes(data[:7])!r}")
    shape = tuple(int(n) for n in tensor.shape)
    contents = serialization.constant(model, words).tobytes()
    tables = data[_HEADER_BYTES:].tobytes()
    first_bits = int(data[5] >> 4) + 1
    return huffman.decode(contents, tables, first_bits, int(np.prod(shape))).reshape(shape)
