"""Checks that a parsed file is complete: every index that it holds refers to something."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

_BITS = {"FLOAT16": 16, "BFLOAT16": 16, "FLOAT32": 32, "FLOAT64": 64, "BOOL": 8}
_BITS |= {f"{sign}INT{bits}": bits for sign in ("", "U") for bits in (8, 16, 32, 64)}
_BITS |= {"INT4": 4, "UINT4": 4, "INT2": 2}


def validate(model: Any, schema: ModuleType) -> None:
    """Checks a parsed file.

    Args:
        model: A `ModelT`.
        schema: LiteRT's schema module.

    Raises:
        ValueError: If an index refers to nothing, a code or type is unknown, or a constant does
            not have the size of its tensor.
        TypeError, AttributeError: If a field that every file has is missing.
    """
    if not model.subgraphs or not model.buffers:
        raise ValueError("no subgraph")
    operators = set(_numbers(schema.BuiltinOperator))
    sized_types = {
        number: name for name, number in vars(schema.TensorType).items() if name in _BITS
    }
    known_types = set(_numbers(schema.TensorType))
    for code in model.operatorCodes:
        if max(code.builtinCode, code.deprecatedBuiltinCode) not in operators:
            raise ValueError("the code of an operator is unknown")
        _decoded(code.customCode)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            _check_tensor(model, tensor, sized_types, known_types)
        for operator in graph.operators:
            _check_index(operator.opcodeIndex, model.operatorCodes, "the code of an operator")
            for index in (*operator.inputs, *operator.outputs):
                if index != -1:  # -1 stands for an optional input that is absent.
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


def _check_tensor(
    model: Any, tensor: Any, sized_types: dict[int, str], known_types: set[int]
) -> None:
    name = _decoded(tensor.name)
    _check_index(tensor.buffer, model.buffers, f"the buffer of tensor {name!r}")
    if tensor.type not in known_types:
        raise ValueError(f"tensor {name!r} has an unknown type")
    data = model.buffers[tensor.buffer].data
    if (
        data is None
        or not len(data)
        or tensor.type not in sized_types
        or tensor.sparsity is not None
    ):
        return
    shape = () if tensor.shape is None else tensor.shape
    # Python's integers do not overflow, whatever shape a damaged file has.
    count = int(np.prod([int(length) for length in shape], dtype=object))
    expected = -(-count * _BITS[sized_types[tensor.type]] // 8)
    if len(data) != expected:
        raise ValueError(f"tensor {name!r} has {len(data)} bytes, but its shape needs {expected}")


def _check_index(index: int, sequence: Sequence[Any], what: str) -> None:
    if not 0 <= index < len(sequence):
        raise ValueError(f"{what} is missing")


def _decoded(name: bytes | str | None) -> str | None:
    return name.decode() if isinstance(name, bytes) else name


def _numbers(enumeration: type) -> list[int]:
    return [number for number in vars(enumeration).values() if isinstance(number, int)]
