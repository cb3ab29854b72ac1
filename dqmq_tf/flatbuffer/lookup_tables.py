"""Lookup-table compression for TFLite Micro: weights of b bits take b bits in the file.

A tensor's integers are stored as indices into a table of values, and an operator `TFLM_DECODE`
before each operator that reads them restores the INT8 tensor in the arena. The format is that of
TFLite Micro's own compressor with one difference: the distance between the tables of two channels
is set to 0, so that all channels, and all tensors of the same bits, share one table. As that is not
documented, a file is delivered only after TFLite Micro has decoded its very integers and computed
the same bits from it as from its uncompressed twin (`check_bit_exact`).

No other runtime knows the operator; `decompress` gives the twin that they run.
"""

import copy
from collections.abc import Mapping

import numpy as np

from dqmq_tf.errors import ConversionError, FileFormatError
from dqmq_tf.flatbuffer import bit_packing, editing, serialization
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
            f"The file has {len(model.subgraphs)} subgraphs: compress each profile's file before "
            "they are merged."
        )
    graph, writer = model.subgraphs[0], _Writer(model)
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
        FileFormatError: If the file is corrupt, or holds lookup tables that decoders read
            differently: the header for one table per tensor on weights with a scale per channel.
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


def is_compressed(model):
    """Whether a parsed file holds weights in lookup tables."""
    return any(code.customCode == DECODE for code in model.operatorCodes)


def coded_tensors(model):
    """What a compressed file holds in the stead of weights.

    Args:
        model: `ModelT` of the file.

    Returns:
        `{name of a weight tensor: (its indices' tensor, its table's tensor)}`.
    """
    found = {}
    for graph in model.subgraphs:
        for operator in graph.operators:
            if model.operatorCodes[operator.opcodeIndex].customCode == DECODE:
                coded, table = (graph.tensors[i] for i in operator.inputs)
                name = serialization.text(graph.tensors[operator.outputs[0]].name)
                found.setdefault(name, (coded, table))
    return found


class _Writer:
    """Adds coded tensors, tables and the operators that decode them to a model."""

    def __init__(self, model):
        self.model, self.graph = model, model.subgraphs[0]
        self.written, self._coded, self._tables = set(), {}, {}
        self._code = editing.add_operator_code(model, "CUSTOM", custom_code=DECODE)

    def decode(self, index, bits):
        """The operator that decodes a tensor, and the index of what it makes.

        A decoded tensor lives until the next operator only, so each reader has its own.
        """
        name = serialization.text(self.graph.tensors[index].name)
        if name not in self._coded:
            self._coded[name] = self._encode(name, self.graph.tensors[index], bits)
            self.graph.tensors[index].buffer = 0
        else:
            index = editing.add_tensor(self.graph, copy.copy(self.graph.tensors[index]))
            self.graph.tensors[index].name = f"{name}'{index}".encode()
        self.written.add(name)
        return editing.make_operator(self._code, self._coded[name], [index]), index

    def _encode(self, name, tensor, bits):
        integers, largest = serialization.constant(self.model, tensor), 2 ** (bits - 1) - 1
        if np.abs(integers.astype(int)).max(initial=0) > largest:
            raise ConversionError(
                f"{name!r} holds integers beyond {largest}, which do not fit into {bits} bits."
            )
        axis = tensor.quantization.quantizedDimension
        if axis not in (0, len(tensor.shape) - 1):
            raise ConversionError(
                f"{name!r} has scales along axis {axis}: decoders know the first and the last."
            )
        table = _table(axis, bits)
        if table not in self._tables:
            self._tables[table] = self._add(f"t{len(self._tables)}", table)
        coded = bit_packing.pack_indices(integers.astype(int) + largest, bits).tobytes()
        return self._add(f"{name}c", coded), self._tables[table]

    def _add(self, name: str, data: bytes) -> int:
        """Adds a constant uint8 tensor and returns its index."""
        schema = serialization.schema()
        tensor = schema.TensorT()
        tensor.name, tensor.type = name.encode(), schema.TensorType.UINT8
        tensor.shape = np.array([len(data)], np.int32)
        tensor.buffer = editing.add_buffer(self.model, data)
        return editing.add_tensor(self.graph, tensor)


def _table(axis, bits):
    """Header and values: the integers of so many bits in ascending order, filled up to 2**bits."""
    header = bytes([_LOOKUP_TABLE, _VERSION, 0, 0, 1, axis << 4 | bits, 0])
    largest = 2 ** (bits - 1) - 1
    values = np.array([*range(-largest, largest + 1), 0], np.int8)
    return header.ljust(_HEADER_BYTES, b"\0") + values.tobytes()


def _decode_graph(model, graph):
    """Puts the weights themselves where an operator would decode them."""
    operators, owners, renamed = [], {}, {}
    for operator in graph.operators:
        if model.operatorCodes[operator.opcodeIndex].customCode == DECODE:
            index, key = int(operator.outputs[0]), int(operator.inputs[0])
            if key in owners:
                renamed[index] = owners[key]
                continue
            owners[key] = index
            tensor, (coded, table) = (
                graph.tensors[index],
                (graph.tensors[i] for i in operator.inputs),
            )
            integers = _integers(model, tensor, coded, table)
            tensor.buffer = editing.add_buffer(model, integers.tobytes())
            continue
        operator.inputs = np.array([renamed.get(int(i), i) for i in operator.inputs], np.int32)
        operators.append(operator)
    graph.operators = operators
    editing.drop_unused_tensors(model, graph)


def _integers(model, tensor, coded, table):
    data = serialization.constant(model, table)
    axis, bits, stride = data[5] >> 4, data[5] & 7, int(data[6])
    if data[0] != _LOOKUP_TABLE or data[1] != _VERSION or not bits:
        raise ValueError(f"unknown header {bytes(data[:7])!r}")
    channels = len(tensor.quantization.scale)
    name = serialization.text(tensor.name)
    if axis == _ONE_TABLE and channels > 1:
        raise FileFormatError(
            f"{name!r} has a scale per channel but the header for one table per tensor, on which "
            "decoders disagree: some read past the table. Compress it with a table per channel."
        )
    values = data[_HEADER_BYTES:].view(np.int8)
    shape = tuple(int(n) for n in tensor.shape)
    indices = bit_packing.unpack_indices(
        serialization.constant(model, coded), int(np.prod(shape)), int(bits)
    ).reshape(shape)
    along = [1] * len(shape)
    if channels > 1:
        along[tensor.quantization.quantizedDimension] = channels
    offsets = np.arange(channels).reshape(along) * stride
    return values[indices + offsets]
