"""Edits of a parsed file: new operators, tensors and buffers, constants, shared buffers."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from dqmq_tf.flatbuffer import bit_packing, serialization
from dqmq_tf.flatbuffer.serialization import ModelT, OperatorT, SubGraphT, TensorT
from dqmq_tf.precision import ActivationPrecision, tflite_zero_point


def renumber_buffers(model: ModelT) -> None:
    """Drops the buffers that nothing refers to."""
    owners = _buffer_owners(model)
    kept = sorted({0, *(owner.buffer for owner in owners)})
    for owner in owners:
        owner.buffer = kept.index(owner.buffer)
    model.buffers = [model.buffers[i] for i in kept]


def share_buffers(model: ModelT) -> None:
    """Stores equal contents once, in an order that deflate compresses well.

    Buffer 0 belongs to every tensor that has no values in the file. The others are sorted by
    entropy: deflate compresses a file block by block, and best where a block is of one kind.
    """
    owners_of: dict[bytes, list[Any]] = {}
    for owner in _buffer_owners(model):
        data = model.buffers[owner.buffer].data
        key = b"" if data is None or not len(data) else bytes(data)
        owners_of.setdefault(key, []).append(owner)
    owners_of.setdefault(b"", [])
    model.buffers = []
    for key in sorted(owners_of, key=bit_packing.byte_entropy):
        index = add_buffer(model, key)
        for owner in owners_of[key]:
            owner.buffer = index


def add_buffer(model: ModelT, data: bytes) -> int:
    """Adds a buffer.

    Args:
        model: A `ModelT`, changed in place.
        data: Contents of the buffer.

    Returns:
        Index of the buffer.
    """
    buffer = serialization.schema().BufferT()
    buffer.data = np.frombuffer(data, np.uint8) if data else None
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def set_constant(model: ModelT, tensor: TensorT, values: np.ndarray) -> None:
    """Overwrites the bytes of a constant tensor with those of an array."""
    data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    model.buffers[tensor.buffer].data = data


def drop_unused_tensors(model: ModelT, graph: SubGraphT) -> None:
    """Removes the tensors that are no input, output or operand of a subgraph."""
    used = {*graph.inputs, *graph.outputs}
    for operator in graph.operators:
        used.update(i for i in (*operator.inputs, *operator.outputs) if i >= 0)
    kept = sorted(int(i) for i in used)
    position = {old: new for new, old in enumerate(kept)} | {-1: -1}
    graph.tensors = [graph.tensors[i] for i in kept]
    for owner in (graph, *graph.operators):
        owner.inputs = np.array([position[i] for i in owner.inputs], np.int32)
        owner.outputs = np.array([position[i] for i in owner.outputs], np.int32)
    for definition in model.signatureDefs or ():
        for entry in (*definition.inputs, *definition.outputs):
            entry.tensorIndex = position[entry.tensorIndex]


def add_operator_code(
    model: ModelT, name: str, *, version: int = 1, custom_code: bytes | None = None
) -> int:
    """Adds an operator code.

    Args:
        model: A `ModelT`, changed in place.
        name: Name of the builtin operator, `"CUSTOM"` for a custom one.
        version: Version of the operator.
        custom_code: Name of a custom operator.

    Returns:
        Index of the operator code.
    """
    schema = serialization.schema()
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    # Old runtimes read this field, which holds one byte.
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version, code.customCode = version, custom_code
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def make_operator(code: int, inputs: Sequence[int], outputs: Sequence[int]) -> OperatorT:
    """Returns an operator without options.

    Args:
        code: Index of its operator code.
        inputs: Indices of the tensors that it reads.
        outputs: Indices of the tensors that it produces.
    """
    operator = serialization.schema().OperatorT()
    operator.opcodeIndex = code
    operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
    return operator


def new_operator(
    model: ModelT, name: str, inputs: Sequence[int], outputs: Sequence[int]
) -> OperatorT:
    """Returns a builtin operator without options, with an operator code of its own.

    Args:
        model: A `ModelT`. The operator code is added to it, the operator is not.
        name: Name of the operator, such as `"DEQUANTIZE"`.
        inputs: Indices of the tensors that it reads.
        outputs: Indices of the tensors that it produces.
    """
    return make_operator(add_operator_code(model, name), inputs, outputs)


def add_tensor(graph: SubGraphT, tensor: TensorT) -> int:
    """Adds a tensor to a subgraph and returns its index."""
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def add_bytes_tensor(model: ModelT, graph: SubGraphT, name: str, data: bytes) -> int:
    """Adds a constant uint8 tensor of rank 1 to a subgraph.

    Args:
        model: A `ModelT`, which gets a new buffer.
        graph: A subgraph, which gets a new tensor.
        name: Name of the tensor.
        data: Values of the tensor.

    Returns:
        Index of the tensor.
    """
    schema = serialization.schema()
    tensor = schema.TensorT()
    tensor.name, tensor.type = name.encode(), schema.TensorType.UINT8
    tensor.shape = np.array([len(data)], np.int32)
    tensor.buffer = add_buffer(model, data)
    return add_tensor(graph, tensor)


def operator_position(graph: SubGraphT, operator: OperatorT) -> int:
    """Returns the position of an operator in its graph."""
    return next(i for i, other in enumerate(graph.operators) if other is operator)


def add_integer_tensor(graph: SubGraphT, index: int, grid: ActivationPrecision) -> int:
    """Adds the int8 or int16 counterpart of a float tensor, which takes over its name.

    Args:
        graph: A subgraph, changed in place. The float tensor gets the suffix `f`.
        index: Index of the float tensor.
        grid: Quantization of the new tensor.

    Returns:
        Index of the new tensor.
    """
    tensor = copy.copy(graph.tensors[index])
    graph.tensors[index].name += b"f"
    zero_point = np.array([tflite_zero_point(grid)], np.int64)
    quantize_tensor(tensor, np.array([grid.step], np.float32), zero_point)
    if grid.is_int16:
        tensor.type = serialization.schema().TensorType.INT16
    return add_tensor(graph, tensor)


def quantize_tensor(
    tensor: TensorT, scales: np.ndarray, zero_points: np.ndarray, axis: int = 0
) -> None:
    """Makes a tensor an int8 tensor.

    Args:
        tensor: The tensor, changed in place.
        scales: float32 array, one value, or one for each index of `axis`.
        zero_points: int64 array of the same length.
        axis: Axis along which the scales vary.
    """
    schema = serialization.schema()
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = scales, zero_points
    quantization.quantizedDimension = axis
    tensor.type, tensor.quantization = schema.TensorType.INT8, quantization


def _buffer_owners(model: ModelT) -> list[Any]:
    """Returns everything that refers to a buffer: tensors and metadata."""
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    return tensors + list(model.metadata or ())
