"""A line that says what is going on, for work that takes more than a few seconds."""

import contextlib
import threading

_PATIENCE_SECONDS = 2.0


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
