"""The table of deployment targets: what each can run, how it stores weights, what it refuses."""

import dataclasses

from dqmq_tf.targets import OP_KINDS, TARGETS, Target
from dqmq_tf.terminal import Lines, as_json, new_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetRow:
    """A deployment target.

    Attributes:
        name: The name to pass to `quantize_model`.
        description: What the target is.
        deployable: Whether any runtime runs its files.
        weight_bits: The bit-widths of weights.
        activation_bits: The bit-widths of activations.
        optional_activation_bits: Further ones, for activations of which a rule allows them.
        containers: The formats that a file may store weights in, with the kinds of operators that
            support each.
        io_dtype: The default type of a file's inputs and outputs.
        runtimes: The names of the runtimes that run the file. The target is for the first of them.
        compiler: The program that compiles the file for the device, or None.
        refusals: The reason for each feature that is not supported.
    """

    name: str
    description: str
    deployable: bool
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    optional_activation_bits: tuple[int, ...]
    containers: dict[str, tuple[str, ...]]
    io_dtype: str
    runtimes: tuple[str, ...]
    compiler: str | None
    refusals: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetTable:
    """All deployment targets. Rich prints it as a table.

    Attributes:
        targets: A `TargetRow` for each target.
    """

    targets: tuple[TargetRow, ...]

    def to_json(self) -> str:
        """Returns the table as JSON."""
        return as_json(dataclasses.asdict(self))

    def __rich__(self) -> Lines:
        features = new_table(
            "Deployment targets",
            "target", "weight\nbits", "activation\nbits", "containers of weights",
            "inputs,\noutputs", "runtimes",
            text_columns=6,
        )  # fmt: skip
        features.columns[-1].no_wrap = True
        reasons = new_table("Not supported", "target", "feature", "reason", text_columns=3)
        descriptions = []
        for row in self.targets:
            runtimes = list(row.runtimes) or ["none"]
            if row.compiler is not None:
                runtimes.append(f"{row.compiler} (compiler)")
            optional = [f"{bits} by a rule" for bits in row.optional_activation_bits]
            features.add_row(
                row.name,
                _bit_range(row.weight_bits),
                ", ".join([_bit_range(row.activation_bits), *optional]),
                "\n".join(_container_lines(row)),
                row.io_dtype,
                "\n".join(runtimes),
            )
            features.add_section()
            descriptions.append(f"{row.name}: {row.description}")
            for feature, reason in row.refusals.items():
                reasons.add_row(row.name, feature, reason)
            reasons.add_section()
        return Lines([features, *descriptions, "", reasons])


def target_table() -> TargetTable:
    """Returns the table of all deployment targets."""
    return TargetTable(targets=tuple(_row(target) for target in TARGETS.values()))


def _row(target: Target) -> TargetRow:
    operators = {
        "INT8": frozenset(OP_KINDS),
        "INT4": target.int4_ops,
        "INT2": target.int2_ops,
        "lookup table": target.table_ops,
        "Huffman code": target.table_ops if "huffman" in target.codings else frozenset(),
    }
    return TargetRow(
        name=target.name,
        description=target.description,
        deployable=target.deployable,
        weight_bits=target.weight_bits,
        activation_bits=target.activation_bits,
        optional_activation_bits=target.optional_activation_bits,
        containers={
            container: tuple(kind for kind in OP_KINDS if kind in kinds)
            for container, kinds in operators.items()
            if kinds
        },
        io_dtype=target.io_dtype,
        runtimes=target.runtimes,
        compiler=target.compiler,
        refusals=dict(target.refusals),
    )


def _bit_range(bit_widths: tuple[int, ...]) -> str:
    first, last = bit_widths[0], bit_widths[-1]
    return str(first) if first == last else f"{first}-{last}"


def _container_lines(row: TargetRow) -> list[str]:
    """Returns a line for each container, with its operators unless it supports all of them."""
    return [
        container if set(kinds) == set(OP_KINDS) else f"{container}: {', '.join(kinds)}"
        for container, kinds in row.containers.items()
    ]
