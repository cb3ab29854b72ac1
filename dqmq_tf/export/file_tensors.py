"""Lists the tensors of any `.tflite` file, whoever wrote it."""

import collections
import math
from collections.abc import Iterator, Sequence
from typing import Any

from dqmq_tf import flatbuffer
from dqmq_tf.flatbuffer import ModelT, SubGraphT, TensorT
from dqmq_tf.terminal import new_table

_BITS = {"BOOL": 8, "BFLOAT16": 16, "COMPLEX64": 64, "COMPLEX128": 128}


def networks(model: ModelT) -> dict[str, SubGraphT]:
    """Returns the networks of a file by name. Those without a name, or with one twice, get a number.

    Args:
        model: A `ModelT`.
    """
    names = [flatbuffer.text(graph.name) for graph in model.subgraphs]
    return {
        name if name and names.count(name) == 1 else f"{name or 'network'}_{number}": graph
        for number, (name, graph) in enumerate(zip(names, model.subgraphs))
    }


def entries(model: ModelT) -> Iterator[dict[str, Any]]:
    """Yields an entry of `FileContents.tensors` for each tensor of a file.

    Args:
        model: A `ModelT`.
    """
    for network, graph in networks(model).items():
        for number, tensor in enumerate(graph.tensors):
            role = _role(model, graph, number)
            quantization = tensor.quantization
            has_scales = quantization is not None and quantization.scale is not None
            yield {
                "network": network,
                "name": flatbuffer.text(tensor.name),
                "type": flatbuffer.type_name(tensor),
                "shape": _shape(tensor),
                "scales": len(quantization.scale) if has_scales else 0,
                "role": role,
                "bytes": (
                    len(model.buffers[tensor.buffer].data)
                    if role == "constant"
                    else _value_bytes(tensor)
                ),
            }


def tables(path: str, tensors: Sequence[dict[str, Any]], lists_ends: bool) -> list[Any]:
    """Returns what to print: a row for each constant, and a row for each type of tensor.

    Args:
        path: The path of the file.
        tensors: What `entries` yielded.
        lists_ends: Whether to list inputs and outputs, which a file without a signature leaves out.
    """
    constants = new_table(
        f"{path}: not written by dqmq_tf",
        "network", "constant", "type", "shape", "scales", "bytes",
        text_columns=3,
    )  # fmt: skip
    types = new_table(
        "Tensors by type",
        "network", "type", "constants", "bytes", "others", "bytes of\nthe largest",
        text_columns=2,
    )  # fmt: skip
    ends = []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = collections.defaultdict(list)
    for entry in tensors:
        groups[entry["network"], entry["type"]].append(entry)
        size = "x".join(map(str, entry["shape"])) or "scalar"
        if entry["role"] == "constant":
            constants.add_row(
                entry["network"], entry["name"], entry["type"], size,
                str(entry["scales"] or "-"), f"{entry['bytes']:,}",
            )  # fmt: skip
        elif entry["role"] != "intermediate" and lists_ends:
            ends.append(
                f"{entry['network']}, {entry['role']} {entry['name']}: {entry['type']} {size}"
            )
    for (network, kind), group in groups.items():
        stored = [entry["bytes"] for entry in group if entry["role"] == "constant"]
        others = [entry["bytes"] for entry in group if entry["role"] != "constant"]
        largest = max((size for size in others if size is not None), default=None)
        types.add_row(
            network, kind, str(len(stored)), f"{sum(stored):,}", str(len(others)),
            "-" if largest is None else f"{largest:,}",
        )  # fmt: skip
    return [constants, types, *ends]


def shape_text(tensor: TensorT) -> str:
    """Returns the shape of a tensor, such as `"1x8x8x3"`."""
    return "x".join(map(str, _shape(tensor))) or "scalar"


def _role(model: ModelT, graph: SubGraphT, number: int) -> str:
    """Returns the role of the tensor with a number."""
    if flatbuffer.is_constant(model, graph.tensors[number]):
        return "constant"
    if number in graph.inputs:
        return "input"
    return "output" if number in graph.outputs else "intermediate"


def _shape(tensor: TensorT) -> list[int]:
    """Returns the shape, with -1 for sizes that are known only at run time."""
    signature = tensor.shapeSignature
    shape = signature if signature is not None and len(signature) else tensor.shape
    return [] if shape is None else [int(size) for size in shape]


def _value_bytes(tensor: TensorT) -> int | None:
    """Returns the bytes that the values of a tensor take, or None if this is not fixed."""
    name = flatbuffer.type_name(tensor)
    digits = name.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    bits = _BITS.get(name, int(digits) if digits.isdigit() else None)
    shape = _shape(tensor)
    if bits is None or min(shape, default=0) < 0:
        return None
    return -(-math.prod(shape) * bits // 8)
