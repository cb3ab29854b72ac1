"""`inspect_file`: lists the contents of a `.tflite` file."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from dqmq_tf import flatbuffer, targets
from dqmq_tf.errors import FileFormatError
from dqmq_tf.export import device_checks, file_tensors
from dqmq_tf.flatbuffer import (
    ModelT,
    SignatureDefT,
    SubGraphT,
    TFLiteFile,
    checksum,
    file_size,
    lookup_tables,
    metadata,
)
from dqmq_tf.runtimes import vela
from dqmq_tf.runtimes.vela_report import VelaReport
from dqmq_tf.terminal import Lines, as_json, new_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileContents:
    """The contents of a `.tflite` file.

    Attributes:
        path: The path of the file.
        size_bytes: The bytes of the file.
        download_bytes: The bytes of the file, compressed with deflate.
        min_runtime_version: The oldest version of TensorFlow Lite that runs the file.
        facts: The metadata of the file, as `read_metadata` returns it. None if dqmq_tf did not write
            the file.
        signatures: `{name: {"inputs": {name: tensor}, "outputs": {name: tensor}}}`. A tensor is a
            text with its type, shape, scale and zero point.
        weights: A dictionary for each weight tensor, with the keys `network`, `name`, `bits`,
            `container`, `coding` (`"table"` for indices into a lookup table, `"huffman"` for a
            Huffman code, else None), `shape`, `scales` (the number of scales) and `bytes`. Empty if
            dqmq_tf did not write the file.
        tensors: A dictionary for each tensor, with the keys `network`, `name`, `type`, `shape`,
            `scales` (the number of scales, 0 without quantization), `role` (`"constant"` for values
            that the file holds, `"input"`, `"output"` or `"intermediate"`) and `bytes` (those in
            the file, or those that the values take at run time; None if the shape is not fixed).
        operators: `{network: {operator: count}}`.
        vela: A `VelaReport`. None if Vela is not installed, or if `inspect_file` got no accelerator
            and the file is adaptive, or not for target `ethos_u`.
    """

    path: str
    size_bytes: int
    download_bytes: int
    min_runtime_version: str
    facts: dict[str, Any] | None
    signatures: dict[str, dict[str, dict[str, str]]]
    weights: tuple[dict[str, Any], ...]
    tensors: tuple[dict[str, Any], ...]
    operators: dict[str, dict[str, int]]
    vela: VelaReport | None = None

    def to_json(self) -> str:
        """Returns the contents as a JSON string."""
        return as_json(dataclasses.asdict(self))

    def __rich__(self) -> Any:
        if self.facts is None:
            parts = file_tensors.tables(self.path, self.tensors, not self.signatures)
        else:
            parts = [self._weight_table(self.facts)]
        for name, ends in self.signatures.items():
            for side in ("inputs", "outputs"):
                parts += [f"{name}, {side[:-1]} {n}: {t}" for n, t in ends[side].items()]
        facts = self.facts or {}
        parts += [_feeding(*item) for item in facts.get("inputs", {}).items()]
        if labels := facts.get("labels"):
            parts.append(f"{len(labels)} classes: {', '.join(labels)}")
        for name, counts in self.operators.items():
            parts.append(f"{name}: " + ", ".join(f"{n} {op}" for op, n in counts.items()))
        sizes = f"{self.size_bytes:,} bytes, {self.download_bytes:,} under deflate"
        if any(entry["coding"] for entry in self.weights):
            sizes += "; only TFLite Micro with the operator DECODE runs the file"
        elif self.min_runtime_version:
            sizes += f"; TensorFlow Lite {self.min_runtime_version} or newer"
        parts.append(sizes)
        return Lines([*parts, *([self.vela] if self.vela else [])])

    def _weight_table(self, facts: dict[str, Any]) -> Any:
        table = new_table(
            f"{self.path}: {facts['target']}, dqmq_tf {facts['version']}",
            "network", "weights", "bits", "container", "shape", "scales", "bytes",
            text_columns=2,
        )  # fmt: skip
        for entry in self.weights:
            table.add_row(
                entry["network"], entry["name"], str(entry["bits"]),
                f"{entry['container']}, {entry['coding']}" if entry["coding"] else entry["container"],
                "x".join(map(str, entry["shape"])), str(entry["scales"]), f"{entry['bytes']:,}",
            )  # fmt: skip
        return table


def inspect_file(path: str | os.PathLike[str], accelerator: str | None = None) -> FileContents:
    """Reads the contents of a `.tflite` file. The model is not needed.

    Args:
        path: The path of a `.tflite` file. `dqmq_tf.convert` or any other converter wrote it.
        accelerator: The NPU, one of `dqmq_tf.targets.ACCELERATORS`, that Vela compiles the file for,
            for a report of its cycles. None for that of target `ethos_u` if the file is for this
            target and Vela is installed, and for no report of other files.

    Returns:
        A `FileContents`.

    Raises:
        FileNotFoundError: If the file does not exist.
        FileFormatError: If the file is truncated or corrupt, or is not a `.tflite` file.
        ValueError: If `accelerator` is unknown.
        ConversionError: If Vela rejects the file.
        ImportError: If `accelerator` is given, and Vela is not installed.

    Example:

    >>> rich.print(dqmq_tf.export.inspect_file("model.tflite"))
    """
    file = _load(path)
    model, facts = file.model, file.metadata
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
            entry
            for graph in model.subgraphs
            if facts is not None
            for entry in _weights(model, graph, facts)
        ),
        tensors=tuple(file_tensors.entries(model)),
        operators={
            network: _operators(model, graph)
            for network, graph in file_tensors.networks(model).items()
        },
        vela=_compiled(file, facts or {}, accelerator),
    )


def _compiled(
    file: TFLiteFile, facts: dict[str, Any], accelerator: str | None
) -> VelaReport | None:
    """Returns what Vela estimates, with the paths of the layers that have weights."""
    if accelerator is None:
        is_for_vela = facts.get("target") == "ethos_u" and "profiles" not in facts
        if not is_for_vela or vela.program() is None:
            return None
    elif accelerator not in targets.ACCELERATORS:
        raise ValueError(
            f"accelerator={accelerator!r} is none of those that Vela compiles for: "
            f"{', '.join(targets.ACCELERATORS)}."
        )
    report = vela.compile_file(file, accelerator or targets.DEFAULT_ACCELERATOR)[1]
    return device_checks.with_layer_names(report, file)


def _feeding(name: str, entry: dict[str, Any]) -> str:
    """Returns how an image becomes the values of an input, in one line."""
    mean, std = (", ".join(map(str, entry[key])) for key in ("mean", "std"))
    how = [entry[key] for key in ("color", "resize") if key in entry]
    return " ".join([f"{name} takes (pixel - [{mean}]) / [{std}] of pixels from 0 to 255", *how])


def _load(path: str | os.PathLike[str]) -> TFLiteFile:
    """Reads a file; one that dqmq_tf wrote must match the checksum at its end."""
    contents = pathlib.Path(path).read_bytes()
    if checksum.is_sealed(contents):
        return TFLiteFile.load(path)
    file = TFLiteFile(contents)
    try:
        facts = file.metadata
    except FileFormatError as error:
        raise FileFormatError(f"{path}: {error}") from error
    # A file of dqmq_tf without its checksum was cut off.
    return file if facts is None else TFLiteFile.load(path)


def _tensor(model: ModelT, definition: SignatureDefT, entry: Any) -> str:
    tensor = model.subgraphs[definition.subgraphIndex].tensors[entry.tensorIndex]
    text = f"{flatbuffer.type_name(tensor)} {file_tensors.shape_text(tensor)}"
    quantization = tensor.quantization
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        return text
    zero_points = quantization.zeroPoint
    zero_point = 0 if zero_points is None or not len(zero_points) else int(zero_points[0])
    return f"{text}, scale {quantization.scale[0]:.6g}, zero point {zero_point}"


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
            holder, table = coded.get(f"w{number}", (tensor, None))
            yield {
                "network": network,
                "name": label,
                "bits": bits,
                "container": flatbuffer.type_name(tensor),
                "coding": None if table is None else lookup_tables.coding_of(model, table),
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
