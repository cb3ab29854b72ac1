"""What the package shows on a terminal: the progress of long work, and reports as tables or JSON.

Both displays of progress look alike, write to standard error, appear only on a terminal, and only
after the work has taken two seconds. Reports go wherever their caller prints them.

Rich is imported when it is needed: `import dqmq_tf` does without it.
"""

import contextlib
import contextvars
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import rich.console
    import rich.progress
    import rich.table

_Element = TypeVar("_Element")

# Work that ends sooner shows no progress.
_PATIENCE_SECONDS = 2.0
# The width of tables that go to a file or to another program.
_PIPED_WIDTH = 110
_is_silent = contextvars.ContextVar("is_silent", default=False)


@contextlib.contextmanager
def silence(is_silent: bool = True) -> Iterator[None]:
    """Shows no progress inside the block, as `fit(verbose=0)` asks for.

    Args:
        is_silent: False to change nothing.
    """
    token = _is_silent.set(is_silent or _is_silent.get())
    try:
        yield
    finally:
        _is_silent.reset(token)


def with_progress(
    elements: Iterable[_Element], title: str, count: int | None = None
) -> Iterator[_Element]:
    """Yields from an iterable and shows a progress bar.

    Args:
        elements: The iterable.
        title: What is being done, such as `"Evaluating"`.
        count: The number of elements, or None if it is unknown.
    """
    with _display(has_bar=True) as progress:
        task = progress.add_task(title, total=count)
        for element in elements:
            yield element
            progress.advance(task)


@contextlib.contextmanager
def stages(title: str) -> Iterator[Callable[[str], None]]:
    """Shows the stage that a piece of work is in. Other displays inside it are silent.

    Args:
        title: What is being done, such as `"Converting"`.

    Yields:
        A function to call with the name of each stage when it begins.
    """
    with _display(has_bar=False) as progress, silence():
        task = progress.add_task(title, total=None)
        yield lambda stage: progress.update(task, description=f"{title}: {stage}")


def output_console() -> "rich.console.Console":
    """Returns a console for standard output, which decides whether it may have colors."""
    import rich.console

    # Rich's global console keeps the environment of the moment in which it was made.
    console = rich.console.Console(file=sys.stdout, force_jupyter=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPED_WIDTH
    return console


class Lines:
    """What rich prints one under another: strings and tables.

    Names of layers and classes may look like rich's markup, such as `[unk]`. They are shown as they
    are.

    Args:
        parts: The strings, tables and other parts.
    """

    def __init__(self, parts: Iterable[Any]) -> None:
        self._parts = tuple(parts)

    def __rich_console__(
        self, console: "rich.console.Console", options: "rich.console.ConsoleOptions"
    ) -> "rich.console.RenderResult":
        for part in self._parts:
            if isinstance(part, str):
                yield console.render_str(part, markup=False, emoji=False)
            else:
                yield part


def new_table(title: str, *columns: str, text_columns: int = 1) -> "rich.table.Table":
    """Returns an empty table in the style of the package. Strings in it have no markup, as in `Lines`.

    Args:
        title: The title.
        *columns: The headings of the columns.
        text_columns: The number of leading columns that hold text and are left-aligned. The other
            columns hold numbers and are right-aligned.
    """
    import rich.box
    import rich.table
    import rich.text

    class Table(rich.table.Table):
        def add_row(self, *cells: Any, **options: Any) -> None:
            texts = [rich.text.Text(cell) if isinstance(cell, str) else cell for cell in cells]
            super().add_row(*texts, **options)

    table = Table(
        title=rich.text.Text(title, style="bold"),
        title_justify="left",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for number, column in enumerate(columns):
        is_text = number < text_columns
        table.add_column(column, justify="left" if is_text else "right", overflow="fold")
    return table


def as_json(data: Any) -> str:
    """Returns the data of a report as a JSON string. NaN and infinity, which JSON lacks, become null.

    Args:
        data: Nested dictionaries, lists and tuples of what JSON can hold.
    """
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    """Returns nested dictionaries and sequences with None for each number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _display(has_bar: bool) -> "Iterator[rich.progress.Progress]":
    """Yields a display of progress that appears once the block has taken two seconds.

    Args:
        has_bar: Whether to show how much of the work is done.
    """
    import rich.console
    import rich.progress as rich_progress

    columns = [rich_progress.SpinnerColumn(), rich_progress.TextColumn("{task.description}")]
    if has_bar:
        columns += [rich_progress.BarColumn(), rich_progress.TimeRemainingColumn()]
    console = rich.console.Console(stderr=True)
    progress = rich_progress.Progress(*columns, console=console, transient=True)
    if not console.is_terminal or _is_silent.get():
        yield progress
        return
    timer = threading.Timer(_PATIENCE_SECONDS, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield progress
    finally:
        timer.cancel()
        # The timer may be starting the display right now. Stop the display after that.
        timer.join()
        progress.stop()
