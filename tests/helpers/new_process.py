"""Code that runs in a Python process of its own, on the package as it stands."""

import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


def in_new_process(code, *arguments, timeout=600):
    """Returns what code prints; a status other than 0 fails the test with what it said of it.

    The process is forked from one that has imported the package and done nothing else, which takes
    a few milliseconds instead of seconds.
    """
    status, output, errors = finished(started(_execute, code, arguments), timeout)
    assert status == 0, errors[-4000:]
    return output


def in_bare_process(code, timeout=600):
    """As `in_new_process`, in a process that has imported nothing yet."""
    prelude = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    result = subprocess.run(
        [sys.executable, "-c", prelude + code], capture_output=True, text=True, timeout=timeout
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def started(function, *arguments):
    """Starts a function in a process that has imported the package, and returns `(process, folder)`.

    What it prints goes to files in the folder.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dqmq_tf"])
    folder = tempfile.TemporaryDirectory()
    process = context.Process(target=_redirected, args=(folder.name, function, arguments))
    process.start()
    return process, folder


def finished(started_process, timeout=600):
    """Waits for a process that `started` began; returns its status, its output and its errors."""
    process, folder = started_process
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
    with folder:
        printed = [
            (pathlib.Path(folder.name) / name).read_text(errors="replace") for name in ("1", "2")
        ]
    return process.exitcode, *printed


def _redirected(folder, function, arguments):
    for descriptor in (1, 2):
        file = os.open(pathlib.Path(folder) / str(descriptor), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
    import dqmq_tf

    assert pathlib.Path(dqmq_tf.__file__).parents[1] == ROOT, "the package of another folder"
    # Not the streams of the process that this one was forked from.
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
    function(*arguments)


def _execute(code, arguments):
    sys.argv = ["-c", *map(str, arguments)]
    exec(compile(code, "<code of a test>", "exec"), {"__name__": "__main__", "sys": sys})
