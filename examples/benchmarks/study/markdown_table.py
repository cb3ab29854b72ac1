"""A table for the terminal and for Markdown, and the format of its figures."""

import dataclasses

import rich.table
import rich.text

MISSING = "-"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: Title above the table.
        columns: Names of the columns.
        rows: Rows, each a tuple of cells.
        words: Number of leading columns that contain words; the other columns contain figures.
        notes: Paragraphs below the table.
    """

    title: str
    columns: tuple
    rows: tuple
    words: int
    notes: tuple = ()

    def rich(self):
        """Returns a `rich.table.Table`."""
        table = rich.table.Table(title=self.title, title_justify="left", title_style="bold")
        for number, name in enumerate(self.columns):
            table.add_column(name, justify="left" if number < self.words else "right", no_wrap=True)
        for row in self.rows:
            table.add_row(*map(rich.text.Text, row))
        return table

    def markdown(self):
        """Returns a section of Markdown."""
        rules = [":--" if n < self.words else "--:" for n in range(len(self.columns))]
        lines = ["| " + " | ".join(row) + " |" for row in (self.columns, rules, *self.rows)]
        notes = [line for note in self.notes for line in ("", note)]
        return "\n".join([f"## {self.title}", "", *lines, *notes, ""])


def figure(estimate, digits=2, signed=False):
    """Returns a mean with its standard error as text."""
    if estimate is None:
        return MISSING
    mean = f"{estimate.mean:{'+' if signed else ''},.{digits}f}"
    if estimate.error is None:
        return f"{mean} (1 seed)"
    return f"{mean} ± {estimate.error:,.{digits}f}"


def seeds(estimate):
    """Returns the number of seeds as text."""
    return MISSING if estimate is None else str(estimate.count)
