"""The report of a verification, with a row for each runtime."""

import dataclasses
import itertools
from typing import Any

from dqmq_tf.runtimes.vela_report import VelaReport
from dqmq_tf.terminal import Lines, as_json, new_table

_NONE = "-"


def _number(value: float | None) -> float:
    """Returns a figure of a runtime that ran the file. Such a figure is never None."""
    assert value is not None
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class RuntimeReport:
    """The agreement between a file on one runtime and the model that it was written from.

    Attributes:
        runtime: The name of the runtime, one of `dqmq_tf.runtimes.RUNTIMES`.
        version: The package and its version. None if it is not installed.
        note: Why the runtime did not run the file, such as `"not installed: …"`. In this case, the
            attributes below are None. None if the runtime ran the file.
        samples: The number of inputs that were compared. On a slow runtime, there are fewer than
            `VerificationReport.samples`.
        top1_agreement: The share of inputs with the same largest output entry. 1.0 if the task is not
            a classification.
        clear: The number of inputs whose largest entry leads by more than an eighth of the output's
            grid.
        clear_agreement: The share of these inputs with the same largest entry.
        largest_quanta: The largest difference, in steps of the output's grid.
        mean_quanta: The mean difference of the output where it is largest, in steps of its grid.
        latency_ms: The median time of one input with one thread, in milliseconds. Other work on this
            machine affects it.
        arena_bytes: The bytes of the smallest arena in which TFLite Micro can set up the file on this
            machine. A microcontroller needs less, because its pointers are smaller.
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
    def ran(self) -> bool:
        """Whether the runtime ran the file."""
        return self.note is None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerificationReport:
    """The agreement between a file and the model that it was written from.

    Attributes:
        samples: The number of inputs for each runtime.
        classification: Whether the largest output entries were compared as well.
        checked_numbers: The number of integers, scales, zero points and biases that were compared.
        different_numbers: The number of them that differ.
        rows: A `RuntimeReport` for each runtime. At least one runtime ran the file.
        vela: A `VelaReport`, if `dqmq_tf.verify` ran on a target that Vela compiles for, and Vela is
            installed. Otherwise None.
    """

    samples: int
    classification: bool
    checked_numbers: int
    different_numbers: int
    rows: tuple[RuntimeReport, ...]
    vela: VelaReport | None = None

    @property
    def primary(self) -> RuntimeReport:
        """The row of the first runtime that ran the file."""
        return self._ran[0]

    @property
    def top1_agreement(self) -> float:
        """The lowest top-1 agreement of all runtimes that ran the file."""
        return min(_number(row.top1_agreement) for row in self._ran)

    @property
    def clear_agreement(self) -> float:
        """The lowest top-1 agreement on clear inputs of all runtimes that ran the file."""
        return min(_number(row.clear_agreement) for row in self._ran)

    @property
    def largest_quanta(self) -> float:
        """The largest difference of all runtimes that ran the file, in steps of the output's grid."""
        return max(_number(row.largest_quanta) for row in self._ran)

    @property
    def mean_quanta(self) -> float:
        """The largest mean difference of all these runtimes, in steps of the output's grid."""
        return max(_number(row.mean_quanta) for row in self._ran)

    @property
    def _ran(self) -> list[RuntimeReport]:
        return [row for row in self.rows if row.ran]

    def row(self, runtime: str) -> RuntimeReport:
        """Returns the `RuntimeReport` of a runtime.

        Args:
            runtime: The name of the runtime.

        Raises:
            KeyError: If the report has no row for the runtime.
        """
        for row in self.rows:
            if row.runtime == runtime:
                return row
        raise KeyError(f"The report has no row for {runtime!r}.")

    def to_json(self) -> str:
        """Returns the report as a JSON string."""
        return as_json(dataclasses.asdict(self))

    def __rich__(self) -> Any:
        differ = f"{self.different_numbers} of {self.checked_numbers:,} numbers in the file differ"
        table = new_table(f"Verified: {differ}", *self._head())
        for row in self.rows:
            table.add_row(*self._cells(row), style=None if row.ran else "dim")
        versions = ", ".join(dict.fromkeys(str(row.version) for row in self._ran))
        notes = [f"{row.runtime}: {row.note}" for row in self.rows if not row.ran]
        if self.classification:
            notes.append(
                f"clear: {self.primary.clear:,} inputs whose best class leads by more than an "
                "eighth of the output's grid"
            )
        return Lines([table, *notes, versions, *([self.vela] if self.vela else [])])

    def _head(self) -> tuple[str, ...]:
        agreement = ["top-1\n%", "clear\n%"] if self.classification else []
        arena = ["arena\nbytes"] if self._has_arena else []
        return "runtime", "inputs", *agreement, "largest\nquanta", "mean\nquanta", "ms", *arena

    @property
    def _has_arena(self) -> bool:
        return any(row.arena_bytes is not None for row in self.rows)

    def _cells(self, row: RuntimeReport) -> tuple[str, ...]:
        if not row.ran:
            return (row.runtime, "not run", *[_NONE] * (len(self._head()) - 2))
        clear = f"{100 * _number(row.clear_agreement):.2f}" if row.clear else _NONE
        agreement = [f"{100 * _number(row.top1_agreement):.2f}", clear]
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
    """The agreement between each profile of an adaptive file and the model.

    Attributes:
        profiles: The `VerificationReport` of each profile.
    """

    profiles: tuple[VerificationReport, ...]

    def to_json(self) -> str:
        """Returns the report as a JSON string."""
        return as_json(dataclasses.asdict(self))

    def __rich__(self) -> Any:
        names = [f"Precision profile {n}" for n in range(len(self.profiles))]
        return Lines(itertools.chain(*zip(names, self.profiles)))
