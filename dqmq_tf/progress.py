"""A line that says what is going on, for work that takes more than a few seconds."""

import contextlib
import threading
import time

_PATIENCE_SECONDS = 2.0


def with_progress(data):
    """Yields from a dataset; a bar appears on a terminal once that has lasted two seconds."""
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    bar = rich.progress.Progress(console=console, transient=True, disable=not console.is_terminal)
    count = int(data.cardinality())
    task = bar.add_task("Evaluating", total=count if count > 0 else None)
    begin, shown = time.monotonic(), False
    try:
        for element in data:
            yield element
            bar.advance(task)
            if not shown and time.monotonic() - begin > _PATIENCE_SECONDS:
                bar.start()
                shown = True
    finally:
        bar.stop()


@contextlib.contextmanager
def stages(title):
    """Shows a spinner on a terminal once the work has lasted for two seconds.

    Args:
        title: What is being done, such as `"Converting"`.

    Yields:
        Function that takes the name of the stage which begins.
    """
    import rich.console

    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: None
        return
    status = console.status(title)
    timer = threading.Timer(_PATIENCE_SECONDS, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda stage: status.update(f"{title}: {stage}")
    finally:
        timer.cancel()
        status.stop()
