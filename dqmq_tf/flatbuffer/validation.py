"""What must hold in a parsed file before anything relies on it: whatever is referred to is there."""

import numpy as np

_BITS = {"FLOAT16": 16, "BFLOAT16": 16, "FLOAT32": 32, "FLOAT64": 64, "BOOL": 8}
_BITS |= {f"{sign}INT{bits}": bits for sign in ("", "U") for bits in (8, 16, 32, 64)}
_BITS |= {"INT4": 4, "UINT4": 4, "INT2": 2}


def validate(model, schema):
    """Checks a parsed file.

    Args:
        model: `ModelT`.
        schema: The schema module.

    Raises:
        ValueError: If something that is referred to is not there, or is not of its size.
        TypeError, AttributeError: If something that every file has is missing.
    """
    if not model.subgraphs or not model.buffers:
        raise ValueError("no subgraph")
    operators = set(_numbers(schema.BuiltinOperator))
    types = {number: name for name, number in vars(schema.TensorType).items() if name in _BITS}
    known_types = set(_numbers(schema.TensorType))
    for code in model.operatorCodes:
        if max(code.builtinCode, code.deprecatedBuiltinCode) not in operators:
            raise ValueError("an operator's code is unknown")
        _decoded(code.customCode)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            _check_tensor(model, tensor, types, known_types)
        for operator in graph.operators:
            _check_index(operator.opcodeIndex, model.operatorCodes, "an operator's code")
            for index in (*operator.inputs, *operator.outputs):
                if index != -1:  # An input that is left out.
                    _check_index(index, graph.tensors, "a tensor of an operator")
        for index in (*graph.inputs, *graph.outputs):
            _check_index(index, graph.tensors, "an input or output")
    for definition in model.signatureDefs or ():
        _decoded(definition.signatureKey)
        _check_index(definition.subgraphIndex, model.subgraphs, "the subgraph of a signature")
        tensors = model.subgraphs[definition.subgraphIndex].tensors
        for entry in (*definition.inputs, *definition.outputs):
            _decoded(entry.name)
            _check_index(entry.tensorIndex, tensors, "a tensor of a signature")
    for entry in model.metadata or ():
        _decoded(entry.name)
        _check_index(entry.buffer, model.buffers, "the buffer of metadata")


def _check_tensor(model, tensor, types, known_types):
    name = _decoded(tensor.name)
    _check_index(tensor.buffer, model.buffers, f"the buffer of tensor {name!r}")
    if tensor.type not in known_types:
        raise ValueError(f"tensor {name!r} has an unknown type")
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data) or tensor.type not in types or tensor.sparsity is not None:
        return
    shape = () if tensor.shape is None else tensor.shape
    # In Python's integers, which do not overflow.
    count = int(np.prod([int(length) for length in shape], dtype=object))
    expected = -(-count * _BITS[types[tensor.type]] // 8)
    if len(data) != expected:
        raise ValueError(f"tensor {name!r} has {len(data)} bytes, its shape asks for {expected}")


def _check_index(index, sequence, what):
    if not 0 <= index < len(sequence):
        raise ValueError(f"{what} is not there")


def _decoded(name):
    return name.decode() if isinstance(name, bytes) else name


def _numbers(enumeration):
    return [number for number in vars(enumeration).values() if isinstance(number, int)]
