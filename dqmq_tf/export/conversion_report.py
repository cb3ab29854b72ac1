"""The report of a conversion, with a row for each layer's weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dqmq_tf import flatbuffer
from dqmq_tf.export.verification_report import AdaptiveVerificationReport, VerificationReport
from dqmq_tf.flatbuffer import ModelT, file_size, lookup_tables, metadata
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.lowering.write_file import WrittenFile
from dqmq_tf.runtimes.vela_report import VelaReport
from dqmq_tf.terminal import Lines, as_json, new_table


def tensor_reports(networks: Sequence[WrittenFile]) -> tuple["TensorReport", ...]:
    """Returns a `TensorReport` for each quantized variable in the file of each profile."""
    reports: list[TensorReport] = []
    for profile, network in enumerate(networks):
        label = f"profile {profile}: " if len(networks) > 1 else ""
        reports += [
            dataclasses.replace(report, name=label + report.name)
            for report in _reports_of(network.file.model, network.lowered)
        ]
    return tuple(reports)


def _reports_of(model: ModelT, lowered: LoweredModel) -> list["TensorReport"]:
    graph, reports = model.subgraphs[0], []
    tensors = {flatbuffer.text(t.name): t for t in graph.tensors}
    coded = lookup_tables.coded_tensors(model, graph)
    for number, weights in enumerate(lowered.weights):
        tensor = tensors[f"w{number}"]
        holder, table = coded.get(f"w{number}", (tensor, None))
        data = model.buffers[holder.buffer].data.tobytes()
        reports.append(
            TensorReport(
                name=metadata.weights_label(weights),
                operator=weights.kind,
                count=weights.integers.size,
                bit_width=weights.bit_width,
                container=flatbuffer.type_name(tensor),
                coding=None if table is None else lookup_tables.coding_of(model, table),
                stored_bytes=len(data),
                download_bytes=file_size.deflated_bytes(data),
            )
        )
    return reports


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorReport:
    """The weights of one layer in the file.

    Attributes:
        name: The path of the layer, followed by the name of the variable if it is not the kernel.
        operator: The TFLite operator, such as `"CONV_2D"`.
        count: The number of weights.
        bit_width: The bit-width that the weights were trained for.
        container: The TFLite type that the kernel of the operator reads.
        coding: How the file codes the weights for TFLite Micro's decoder: `"table"` for indices into
            a lookup table, `"huffman"` for a Huffman code. None if it stores the container itself.
        stored_bytes: The bytes of the weights in the file.
        download_bytes: The bytes of only these weights, compressed with deflate.
    """

    name: str
    operator: str
    count: int
    bit_width: int
    container: str
    coding: str | None
    stored_bytes: int
    download_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveReport:
    """The contents of an adaptive file and how it routes.

    Attributes:
        routing: `"signatures"` or `"graph"`.
        profile_bytes: The bytes of a separate file for each profile.
        router_bytes: The bytes of a separate file for the router.
        router_ms: The median time of the router on LiteRT with XNNPACK and one thread, in
            milliseconds.
        profile_ms: The median time of each profile, measured in the same way.
        router_agreement: The share of inputs for which router and policy choose the same profile.
        shares: `{kind of degradation: share of its inputs per profile}`. `"all"` is for all inputs.
    """

    routing: str
    profile_bytes: tuple[int, ...]
    router_bytes: int
    router_ms: float
    profile_ms: tuple[float, ...]
    router_agreement: float
    shares: dict[str, tuple[float, ...]]

    def __rich__(self) -> Any:
        names = [f"profile {number}" for number in range(len(self.profile_bytes))]
        table = new_table(f"Adaptive, routing by {self.routing}", "", "router", *names)
        sizes = [f"{n:,}" for n in (self.router_bytes, *self.profile_bytes)]
        table.add_row("bytes of its own", *sizes)
        table.add_row("ms", *(f"{t:.3f}" for t in (self.router_ms, *self.profile_ms)))
        table.add_section()
        for quality, shares in self.shares.items():
            table.add_row(f"inputs, {quality}", "", *(f"{100 * share:.1f} %" for share in shares))
        table.caption = f"Router and policy agree on {100 * self.router_agreement:.1f} %"
        return table


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """The result of `convert`. `rich.print` shows it as tables.

    Attributes:
        path: The path of the file.
        artifacts: The paths of the files that were written beside it.
        target: The name of the deployment target.
        profile: The index of the precision profile. None for an adaptive file.
        io_dtype: The type of inputs and outputs.
        size_bytes: The bytes of the file, without artifacts.
        decoder_bytes: The bytes of firmware of TFLite Micro's operator DECODE, which decodes weights.
            0 if the file does not use it. A budget `size_bytes` includes them.
        download_bytes: The bytes of the file, compressed with deflate (zlib, level 9).
        described_bytes: The bytes of the file that hold the labels and the preprocessing that were
            given to `convert`. A budget does not count them.
        arena_bytes: The bytes of the tensor arena that the file needs in TFLite Micro's reference
            kernels on this machine. None if the target has no arena, or if TFLite Micro is not
            installed.
        vela: A `VelaReport` with cycles, SRAM and flash of each layer and in sum. None if Vela was
            not run.
        weights: A `TensorReport` for each quantized variable.
        float_layers: `{layer that computes in floating point: reason}`.
        min_runtime_version: The oldest version of TensorFlow Lite that runs the file.
        package_versions: The versions of the packages that produced the file.
        verification: A `VerificationReport` or an `AdaptiveVerificationReport`. None if the file was
            not verified.
        adaptive: An `AdaptiveReport`. None for a file of one profile.
        seconds: The duration of the conversion in seconds.
    """

    path: str
    artifacts: tuple[str, ...]
    target: str
    profile: int | None
    io_dtype: str
    size_bytes: int
    decoder_bytes: int
    download_bytes: int
    described_bytes: int
    arena_bytes: int | None
    vela: VelaReport | None
    weights: tuple[TensorReport, ...]
    float_layers: dict[str, str]
    min_runtime_version: str
    package_versions: dict[str, str]
    verification: VerificationReport | AdaptiveVerificationReport | None
    adaptive: AdaptiveReport | None
    seconds: float

    @property
    def firmware_bytes(self) -> int:
        """The bytes of flash: the file, and the decoder if the file uses it."""
        return self.size_bytes + self.decoder_bytes

    def to_json(self) -> str:
        """Returns the report as a JSON string."""
        return as_json(dataclasses.asdict(self))

    def __rich__(self) -> Any:
        table = new_table(
            f"{self.path}: {self.target}, "
            + ("adaptive" if self.adaptive else f"profile {self.profile}"),
            "layer",
            "operator",
            "weights",
            "bits",
            "container",
            "bytes",
            "deflated",
            text_columns=2,
        )
        for entry in self.weights:
            table.add_row(
                entry.name,
                entry.operator,
                f"{entry.count:,}",
                str(entry.bit_width),
                f"{entry.container}, {entry.coding}" if entry.coding else entry.container,
                f"{entry.stored_bytes:,}",
                f"{entry.download_bytes:,}",
            )
        table.add_section()
        table.add_row(
            "whole file", "", "", "", "", f"{self.size_bytes:,}", f"{self.download_bytes:,}"
        )
        parts: list[Any] = [table, f"Oldest TensorFlow Lite runtime: {self.min_runtime_version}"]
        if any(entry.coding for entry in self.weights):
            parts[1] = "Coded weights: only TFLite Micro with the operator DECODE runs the file"
        if self.decoder_bytes:
            parts.append(
                f"Flash: {self.firmware_bytes:,} bytes, the file of {self.size_bytes:,} and the "
                f"decoder of {self.decoder_bytes:,}"
            )
        if self.described_bytes:
            parts.append(
                f"Labels and preprocessing: {self.described_bytes:,} bytes, outside the budget"
            )
        if self.arena_bytes is not None:
            parts.append(f"Tensor arena, reference kernels: {self.arena_bytes:,} bytes")
        if self.vela is not None:
            parts.append(self.vela)
        if self.float_layers:
            parts.append("In floating point:")
            parts += [f"  {layer}: {reason}" for layer, reason in self.float_layers.items()]
        if self.adaptive:
            parts.append(self.adaptive)
        parts.append(self.verification or "Not verified")
        return Lines(parts)
