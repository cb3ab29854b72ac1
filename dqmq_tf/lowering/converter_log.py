"""Hides the log of TensorFlow's converter from the user."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# Messages of TensorFlow's C++ log below the level "error", and its notice about CPU instructions.
_LOG = re.compile(
    rb"[IW]\d{4} \d\d:\d\d:|[IW]0000 |\d{4}-\d\d-\d\d \S+: [IW] |INFO: |WARNING: All log messages"
    rb"|To enable the following instructions|Created TensorFlow Lite"
)


@contextlib.contextmanager
def quiet_log() -> Iterator[None]:
    """Removes TensorFlow's log messages below the level "error" from standard error.

    All other output appears, but only when the context ends. The converter logs about ten lines per
    file, and one training run converts several files to measure their size. The log is written in
    C++, so the file descriptor is redirected, not `sys.stderr`. Nothing is removed if
    `TF_CPP_MAX_VLOG_LEVEL` is set.
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
            remaining = [line for line in file if not _LOG.match(line)]
            os.write(descriptor, b"".join(remaining))
