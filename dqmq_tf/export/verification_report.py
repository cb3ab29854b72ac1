"""Report of a verification: a row per runtime."""

import dataclasses
import json

_NONE = "-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeReport:
    """Agreement of a file on one runtime with the model it was written from.

    Attributes:
        runtime: Name of the runtime, one of `dqmq_tf.runtimes.RUNTIMES`.
        version: Package and version; None where it is not installed.
        note: Why the runtime did not run the file, such as `"not installed: …"`; None if it did.
            All that follows is None if it did not.
        samples: Inputs compared: fewer than the report's where the runtime is slow.
        top1_agreement: Share of inputs with the same largest entry; 1.0 if no classification.
        clear: Inputs whose largest entry leads by more than an eighth of the output's grid.
        clear_agreement: Share of these with the same largest entry.
        largest_quanta: Largest difference, in steps of the output's grid.
        mean_quanta: Mean difference, in steps of the output's grid.
        latency_ms: Median time of one input, 1 thread, on this machine as busy as it was.
        arena_bytes: Size of the smallest arena in which TFLite Micro sets the file up, on this
            machine: with its pointers of 8 bytes it is larger than a microcontroller's.
    """

    runtime: str
    version: str | None = None
    note: str | None = None
    samples: int | None = None
    top1_agreement: float | None = None
    clear: int | None = None
    clear_agreement: float | None = None
    largest_quanta: float | None = None
    mean_quanta: float | None = None
    latency_ms: float | None = dataclasses.field(default=None, compare=False)
    arena_bytes: int | None = None

    @property
    def ran(self):
        """Whether the runtime ran the file."""
        return self.note is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerificationReport:
    """Agreement of a file with the model it was written from.

    Attributes:
        samples: Inputs that were handed to each runtime.
        classification: Whether outputs were compared by their largest entry too.
        checked_numbers: Integers, scales, zero points and biases compared in the file.
        different_numbers: How many of them differ.
        rows: One `RuntimeReport` per runtime; at least one of them ran.
    """

    samples: int
    classification: bool
    checked_numbers: int
    different_numbers: int
    rows: tuple

    @property
    def primary(self):
        """The row of the first runtime that ran, which is the one that the target is for."""
        return self._ran[0]

    @property
    def top1_agreement(self):
        """The lowest top-1 agreement of those that ran."""
        return min(row.top1_agreement for row in self._ran)

    @property
    def clear_agreement(self):
        """The lowest top-1 agreement on clear inputs of those that ran."""
        return min(row.clear_agreement for row in self._ran)

    @property
    def largest_quanta(self):
        """The largest difference of those that ran, in steps of the output's grid."""
        return max(row.largest_quanta for row in self._ran)

    @property
    def mean_quanta(self):
        """The largest mean difference of those that ran, in steps of the output's grid."""
        return max(row.mean_quanta for row in self._ran)

    @property
    def _ran(self):
        return [row for row in self.rows if row.ran]

    def row(self, runtime):
        """Returns the `RuntimeReport` of a runtime by its name.

        Raises:
            KeyError: If the file was not verified on it.
        """
        for row in self.rows:
            if row.runtime == runtime:
                return row
        raise KeyError(f"The report has no row for {runtime!r}.")

    def to_json(self):
        """The report as a JSON string."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def __rich__(self):
        import rich.box
        import rich.console
        import rich.table
        import rich.text

        differ = f"{self.different_numbers} of {self.checked_numbers:,} numbers in the file differ"
        table = rich.table.Table(
            title=rich.text.Text(f"Verified: {differ}", style="bold"),
            title_justify="left",
            box=rich.box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        for number, name in enumerate(self._head()):
            table.add_column(name, justify="right" if number else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*self._cells(row), style=None if row.ran else "dim")
        versions = ", ".join(dict.fromkeys(row.version for row in self._ran))
        notes = [f"{row.runtime}: {row.note}" for row in self.rows if not row.ran]
        if self.classification:
            notes.append(
                f"clear: {self.primary.clear:,} inputs whose best class leads by over an "
                "eighth of the output's grid"
            )
        return rich.console.Group(table, *map(rich.text.Text, [*notes, versions]))

    def _head(self):
        agreement = ["top-1\n%", "clear\n%"] if self.classification else []
        arena = ["arena\nbytes"] if self._has_arena else []
        return "runtime", "inputs", *agreement, "largest\nquanta", "mean\nquanta", "ms", *arena

    @property
    def _has_arena(self):
        return any(row.arena_bytes is not None for row in self.rows)

    def _cells(self, row):
        if not row.ran:
            return (row.runtime, "not run", *[_NONE] * (len(self._head()) - 2))
        clear = f"{100 * row.clear_agreement:.2f}" if row.clear else _NONE
        agreement = [f"{100 * row.top1_agreement:.2f}", clear]
        arena = _NONE if row.arena_bytes is None else f"{row.arena_bytes:,}"
        return (
            row.runtime,
            f"{row.samples:,}",
            *(agreement if self.classification else []),
            f"{row.largest_quanta:.3g}",
            f"{row.mean_quanta:.3g}",
            f"{row.latency_ms:.3g}",
            *([arena] if self._has_arena else []),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveVerificationReport:
    """Agreement of each profile of an adaptive file with the model.

    Attributes:
        profiles: `VerificationReport` of each.
    """

    profiles: tuple

    def to_json(self):
        """The report as a JSON string."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def __rich__(self):
        import rich.console

        return rich.console.Group(*self.profiles)
