"""Keeps the log of TensorFlow's converter off the standard error of the user."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# Lines of TensorFlow's C++ log below an error, and their notice of instruction sets.
_LOG = re.compile(
    rb"[IW]\d{4} \d\d:\d\d:|[IW]0000 |\d{4}-\d\d-\d\d \S+: [IW] |INFO: |WARNING: All log messages"
    rb"|To enable the following instructions|Created TensorFlow Lite"
)


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Drops what TensorFlow logs below an error from standard error; everything else passes.

    The converter writes some ten lines for each file, and a file is written several times in a
    training to learn its size. The log comes from C++, so the file descriptor itself is redirected.
    `TF_CPP_MAX_VLOG_LEVEL` leaves it alone.
    """
    try:
        descriptor = sys.__stderr__.fileno() if sys.__stderr__ else -1
    except (OSError, ValueError):
        descriptor = -1
    if descriptor < 0 or os.environ.get("TF_CPP_MAX_VLOG_LEVEL"):
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        saved = os.dup(descriptor)
        os.dup2(file.fileno(), descriptor)
        try:
            yield
        finally:
            os.dup2(saved, descriptor)
            os.close(saved)
            file.seek(0)
            kept = [line for line in file if not _LOG.match(line)]
            os.write(descriptor, b"".join(kept))
