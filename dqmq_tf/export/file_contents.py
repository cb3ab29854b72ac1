"""`inspect_file`: lists the contents of a converted file."""

import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

from dqmq_tf import flatbuffer
from dqmq_tf.errors import FileFormatError
from dqmq_tf.flatbuffer import (
    ModelT,
    SignatureDefT,
    SubGraphT,
    TFLiteFile,
    file_size,
    lookup_tables,
    metadata,
)
from dqmq_tf.terminal import new_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileContents:
    """The contents of a `.tflite` file.

    Attributes:
        path: The path of the file.
        size_bytes: The bytes of the file.
        download_bytes: The bytes of the file, compressed with deflate.
        min_runtime_version: The oldest version of TensorFlow Lite that runs the file.
        facts: The metadata of the file, as `read_metadata` returns it.
        signatures: `{name: {"inputs": {name: tensor}, "outputs": {name: tensor}}}`. A tensor is a
            text with its type, shape, scale and zero point.
        weights: A dictionary for each weight tensor, with the keys `network`, `name`, `bits`,
            `container`, `table` (whether indices into a lookup table are stored), `shape`, `scales`
            (the number of scales) and `bytes`.
        operators: `{network: {operator: count}}`.
    """

    path: str
    size_bytes: int
    download_bytes: int
    min_runtime_version: str
    facts: dict[str, Any]
    signatures: dict[str, dict[str, dict[str, str]]]
    weights: tuple[dict[str, Any], ...]
    operators: dict[str, dict[str, int]]

    def to_json(self) -> str:
        """Returns the contents as a JSON string."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def __rich__(self) -> Any:
        import rich.console

        weights = new_table(
            f"{self.path}: {self.facts['target']}, dqmq_tf {self.facts['version']}",
            "network", "weights", "bits", "container", "shape", "scales", "bytes",
            text_columns=2,
        )  # fmt: skip
        for entry in self.weights:
            weights.add_row(
                entry["network"], entry["name"], str(entry["bits"]),
                f"{entry['container']}, table" if entry["table"] else entry["container"],
                "x".join(map(str, entry["shape"])), str(entry["scales"]), f"{entry['bytes']:,}",
            )  # fmt: skip
        parts: list[Any] = [weights]
        for name, ends in self.signatures.items():
            for side in ("inputs", "outputs"):
                parts += [f"{name}, {side[:-1]} {n}: {t}" for n, t in ends[side].items()]
        parts += [_feeding(*item) for item in self.facts.get("inputs", {}).items()]
        if labels := self.facts.get("labels"):
            parts.append(f"{len(labels)} classes: {', '.join(labels)}")
        for name, counts in self.operators.items():
            parts.append(f"{name}: " + ", ".join(f"{n} {op}" for op, n in counts.items()))
        runtime = f"TensorFlow Lite {self.min_runtime_version} or newer"
        if any(entry["table"] for entry in self.weights):
            runtime = "only TFLite Micro with the operator DECODE runs the file"
        parts.append(f"{self.size_bytes:,} bytes, {self.download_bytes:,} under deflate; {runtime}")
        return rich.console.Group(*parts)


def inspect_file(path: str | os.PathLike[str]) -> FileContents:
    """Reads the contents of a converted file. The model is not needed.

    Args:
        path: The path of a `.tflite` file that `dqmq_tf.convert` wrote.

    Returns:
        A `FileContents`.

    Raises:
        FileNotFoundError: If the file does not exist.
        FileFormatError: If the file is truncated or corrupt, or if dqmq_tf did not write it.

    Example:

    >>> rich.print(dqmq_tf.export.inspect_file("model.tflite"))
    """
    file = TFLiteFile.load(path)
    model, facts = file.model, file.metadata
    if facts is None:
        raise FileFormatError(
            f"{path} holds no dqmq_tf metadata. Pass a file that `dqmq_tf.convert` wrote."
        )
    return FileContents(
        path=str(path),
        size_bytes=len(file.contents),
        download_bytes=file_size.deflated_bytes(file.contents),
        min_runtime_version=metadata.min_runtime_version_of(model),
        facts=facts,
        signatures={
            key: {
                side: {flatbuffer.text(e.name): _tensor(model, definition, e) for e in entries}
                for side, entries in (
                    ("inputs", definition.inputs),
                    ("outputs", definition.outputs),
                )
            }
            for key, definition in file.signatures.items()
        },
        weights=tuple(
            entry for graph in model.subgraphs for entry in _weights(model, graph, facts)
        ),
        operators={
            flatbuffer.text(graph.name): _operators(model, graph) for graph in model.subgraphs
        },
    )


def _feeding(name: str, entry: dict[str, Any]) -> str:
    """Returns how an image becomes the values of an input, in one line."""
    mean, std = (", ".join(map(str, entry[key])) for key in ("mean", "std"))
    how = [entry[key] for key in ("color", "resize") if key in entry]
    return " ".join([f"{name} takes (pixel - [{mean}]) / [{std}] of pixels from 0 to 255", *how])


def _tensor(model: ModelT, definition: SignatureDefT, entry: Any) -> str:
    tensor = model.subgraphs[definition.subgraphIndex].tensors[entry.tensorIndex]
    shape = "x".join(str(int(n)) for n in tensor.shape)
    text = f"{flatbuffer.type_name(tensor)} {shape}"
    found = tensor.quantization
    if found is None or found.scale is None or not len(found.scale):
        return text
    return f"{text}, scale {found.scale[0]:.6g}, zero point {int(found.zeroPoint[0])}"


def _weights(model: ModelT, graph: SubGraphT, facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields an entry for each quantized weight tensor.

    The tensors are named `w0`, `w1` and so on, in the order of the bits in the metadata.
    """
    network = flatbuffer.text(graph.name)
    if "profiles" in facts:
        if not network.startswith("profile_"):
            return
        facts = facts["profiles"][int(network.removeprefix("profile_"))]
    tensors = {flatbuffer.text(tensor.name): tensor for tensor in graph.tensors}
    coded = lookup_tables.coded_tensors(model, graph)
    for number, (label, bits) in enumerate(facts["bits"].items()):
        tensor = tensors.get(f"w{number}")
        if tensor is not None:
            # Decoded weights have no data of their own.
            holder = coded[f"w{number}"][0] if f"w{number}" in coded else tensor
            yield {
                "network": network,
                "name": label,
                "bits": bits,
                "container": flatbuffer.type_name(tensor),
                "table": holder is not tensor,
                "shape": [int(n) for n in tensor.shape],
                "scales": len(tensor.quantization.scale),
                "bytes": len(model.buffers[holder.buffer].data),
            }


def _operators(model: ModelT, graph: SubGraphT) -> dict[str, int]:
    counts: dict[str, int] = {}
    for operator in graph.operators:
        custom = model.operatorCodes[operator.opcodeIndex].customCode
        name = flatbuffer.text(custom) or flatbuffer.operator_name(model, operator)
        counts[name] = counts.get(name, 0) + 1
    return counts
