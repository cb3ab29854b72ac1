"""The report of a conversion."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from dqmq_tf import flatbuffer
from dqmq_tf.export.verification_report import AdaptiveVerificationReport, VerificationReport
from dqmq_tf.flatbuffer import ModelT, file_size, lookup_tables, metadata
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.lowering.write_file import WrittenFile
from dqmq_tf.runtimes.vela import VelaReport
from dqmq_tf.terminal import new_table


def tensor_reports(networks: Sequence[WrittenFile]) -> tuple["TensorReport", ...]:
    """Returns a `TensorReport` per quantized variable of each profile's file."""
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
        holder = coded[f"w{number}"][0] if f"w{number}" in coded else tensor
        data = model.buffers[holder.buffer].data.tobytes()
        reports.append(
            TensorReport(
                name=metadata.weights_label(weights),
                operator=weights.kind,
                count=weights.integers.size,
                bit_width=weights.bit_width,
                container=flatbuffer.type_name(tensor),
                table=holder is not tensor,
                stored_bytes=len(data),
                download_bytes=file_size.deflated_bytes(data),
            )
        )
    return reports


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorReport:
    """The weights of one layer in the file.

    Attributes:
        name: Layer, and variable where it is not the kernel.
        operator: TFLite operator, such as `"CONV_2D"`.
        count: Number of weights.
        bit_width: Bits that the weights were trained for.
        container: TFLite type that the kernel reads.
        table: Whether the file holds indices into a lookup table, which TFLite Micro decodes.
        stored_bytes: Bytes in the file.
        download_bytes: Bytes of these weights alone under deflate.
    """

    name: str
    operator: str
    count: int
    bit_width: int
    container: str
    table: bool
    stored_bytes: int
    download_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveReport:
    """The contents of an adaptive file and how it routes.

    Attributes:
        routing: `"signatures"` or `"graph"`.
        profile_bytes: Size of each profile's own file.
        router_bytes: Size of the router's own file.
        router_ms: Median time of the router on LiteRT with XNNPACK, one thread.
        profile_ms: The same of each profile.
        router_agreement: Share of inputs for which the router chooses the policy's profile.
        shares: `{quality: share of its inputs per profile}`; `"all"` is over all inputs.
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
    """What a conversion wrote.

    Attributes:
        path: The file.
        artifacts: Paths of the files that were written beside it.
        target: Name of the deployment target.
        profile: Index of the precision profile; None for an adaptive file.
        io_dtype: Type of inputs and outputs.
        size_bytes: Size of the file; artifacts do not count.
        download_bytes: Size of the file under deflate (zlib, level 9).
        arena_bytes: Tensor arena that TFLite Micro's reference kernels need for it on this
            machine; None where the target has no arena, or TFLite Micro is not installed.
        vela: Results of Vela; None where it was not run.
        weights: One `TensorReport` per quantized layer.
        float_layers: `{layer that computes in floating point: why}`.
        min_runtime_version: Oldest TensorFlow Lite that runs the file.
        package_versions: Versions of the packages that made it.
        verification: `VerificationReport`, `AdaptiveVerificationReport`, or None if it was not
            asked for.
        adaptive: `AdaptiveReport`, or None for a file of one profile.
        seconds: Time that the conversion took.
    """

    path: str
    artifacts: tuple[str, ...]
    target: str
    profile: int | None
    io_dtype: str
    size_bytes: int
    download_bytes: int
    arena_bytes: int | None
    vela: VelaReport | None
    weights: tuple[TensorReport, ...]
    float_layers: dict[str, str]
    min_runtime_version: str
    package_versions: dict[str, str]
    verification: VerificationReport | AdaptiveVerificationReport | None
    adaptive: AdaptiveReport | None
    seconds: float

    def to_json(self) -> str:
        """Returns the report as a JSON string."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def __rich__(self) -> Any:
        import rich.console

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
                f"{entry.container}, table" if entry.table else entry.container,
                f"{entry.stored_bytes:,}",
                f"{entry.download_bytes:,}",
            )
        table.add_section()
        table.add_row(
            "whole file", "", "", "", "", f"{self.size_bytes:,}", f"{self.download_bytes:,}"
        )
        parts: list[Any] = [table, f"Oldest TensorFlow Lite runtime: {self.min_runtime_version}"]
        if any(entry.table for entry in self.weights):
            parts[1] = "Lookup tables: only TFLite Micro with the operator DECODE runs the file"
        if self.arena_bytes is not None:
            parts.append(f"Tensor arena, reference kernels: {self.arena_bytes:,} bytes")
        if self.vela is not None:
            parts.append(
                f"Compiled by Vela {self.vela.version} for {self.vela.accelerator}: "
                f"{self.vela.size_bytes:,} bytes, {self.vela.cpu_operators} operators on the CPU"
            )
        if self.float_layers:
            parts.append("In floating point:")
            parts += [f"  {layer}: {reason}" for layer, reason in self.float_layers.items()]
        if self.adaptive:
            parts.append(self.adaptive)
        parts.append(self.verification or "Not verified")
        return rich.console.Group(*parts)
