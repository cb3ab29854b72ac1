"""Edits of a parsed file: new tensors and operators, constants, shared buffers."""

import copy

import numpy as np

from dqmq_tf.flatbuffer import bit_packing, serialization
from dqmq_tf.precision import tflite_zero_point


def renumber_buffers(model):
    """Drops the buffers that nothing refers to."""
    owners = [t for graph in model.subgraphs for t in graph.tensors] + list(model.metadata or ())
    kept = sorted({0, *(owner.buffer for owner in owners)})
    for owner in owners:
        owner.buffer = kept.index(owner.buffer)
    model.buffers = [model.buffers[i] for i in kept]


def share_buffers(model):
    """Keeps each content once, in an order that deflate likes.

    Buffer 0 stands for every tensor that has no values in the file. The others go by entropy:
    deflate codes a stretch of the file at a time, best where the stretch is of one kind.
    """
    owners = [tensor for graph in model.subgraphs for tensor in graph.tensors] + model.metadata
    contents = {}
    for owner in owners:
        data = model.buffers[owner.buffer].data
        key = b"" if data is None or not len(data) else bytes(data)
        contents.setdefault(key, []).append(owner)
    contents.setdefault(b"", [])
    model.buffers = []
    for key in sorted(contents, key=bit_packing.byte_entropy):
        buffer = serialization.schema().BufferT()
        buffer.data = np.frombuffer(key, np.uint8) if key else None
        for owner in contents[key]:
            owner.buffer = len(model.buffers)
        model.buffers.append(buffer)


def set_constant(model, tensor, values):
    """Overwrites a constant tensor's bytes with those of an array."""
    data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    model.buffers[tensor.buffer].data = data


def drop_unused_tensors(model, graph):
    """Takes out the tensors of a subgraph that no operator and no end of it refers to."""
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


def new_operator(model, name, inputs, outputs):
    """A new operator without options."""
    schema = serialization.schema()
    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
    model.operatorCodes.append(code)
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
    return operator


def new_tensor(graph, index, grid):
    """Index of a new int8 tensor on a grid, of the shape of another one."""
    schema = serialization.schema()
    tensor, quantization = copy.copy(graph.tensors[index]), schema.QuantizationParametersT()
    quantization.scale = np.array([grid.step], np.float32)
    quantization.zeroPoint = np.array([tflite_zero_point(grid)], np.int64)
    tensor.type, tensor.quantization = schema.TensorType.INT8, quantization
    graph.tensors[index].name += b"f"
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
