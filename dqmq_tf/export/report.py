"""Report of a conversion."""

import dataclasses
import json

from dqmq_tf.export.verification_report import VerificationReport


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorReport:
    """Weights of one layer in the file.

    Attributes:
        name: Layer, and variable where it is not the kernel.
        operator: TFLite operator, such as `"CONV_2D"`.
        count: Number of weights.
        bit_width: Bits that the weights were trained for.
        container: TFLite type that holds them.
        stored_bytes: Bytes in the file.
        deflated_bytes: Bytes of these weights alone under deflate.
    """

    name: str
    operator: str
    count: int
    bit_width: int
    container: str
    stored_bytes: int
    deflated_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What a conversion wrote.

    Attributes:
        path: The file.
        target: Name of the deployment target.
        profile: Index of the precision profile.
        total_bytes: Size of the file.
        deflated_bytes: Size of the file under deflate (zlib, level 9).
        weights: One `TensorReport` per quantized layer.
        float_sites: Layers with weights that the rules left in floating point.
        measured: Tensors whose range was measured on data.
        min_runtime_version: Oldest TensorFlow Lite that runs the file.
        package_versions: Versions of the packages that made it.
        verification: `VerificationReport`, or None if it was not asked for.
        seconds: Time that the conversion took.
    """

    path: str
    target: str
    profile: int
    total_bytes: int
    deflated_bytes: int
    weights: tuple
    float_sites: tuple
    measured: tuple
    min_runtime_version: str
    package_versions: dict
    verification: VerificationReport | None
    seconds: float

    def to_json(self):
        """The report as a JSON string."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def __rich__(self):
        import rich.console

        table = _table(
            f"{self.path}: {self.target}, profile {self.profile}",
            "layer",
            "operator",
            "weights",
            "bits",
            "container",
            "bytes",
            "deflated",
        )
        for entry in self.weights:
            table.add_row(
                entry.name,
                entry.operator,
                f"{entry.count:,}",
                str(entry.bit_width),
                entry.container,
                f"{entry.stored_bytes:,}",
                f"{entry.deflated_bytes:,}",
            )
        table.add_section()
        table.add_row(
            "whole file", "", "", "", "", f"{self.total_bytes:,}", f"{self.deflated_bytes:,}"
        )
        parts = [table, f"Oldest TensorFlow Lite runtime: {self.min_runtime_version}"]
        if self.float_sites:
            parts.append(f"In floating point: {', '.join(self.float_sites)}")
        if self.measured:
            parts.append(f"Ranges measured on data: {', '.join(self.measured)}")
        parts.append(self.verification or "Not verified")
        return rich.console.Group(*parts)


def _table(title, *columns):
    import rich.table

    table = rich.table.Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 and len(columns) > 2 else "right")
    return table
