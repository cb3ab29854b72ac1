"""An environment for tflite-runtime, which needs an older NumPy than this package."""

import fcntl
import subprocess
import sys

import pytest

# The last release, which has no wheels for a later Python.
_REQUIREMENTS = ("tflite-runtime==2.14.0", "numpy<2")
_VERSION = (3, 11)


def python(folder):
    """Path of the environment's Python, made once for all processes.

    Args:
        folder: Folder to make it in, common to the processes that share it.
    """
    if sys.version_info[:2] != _VERSION:
        pytest.skip(f"{_REQUIREMENTS[0]} needs Python {_VERSION[0]}.{_VERSION[1]}")
    environment, done = folder / "tflite_runtime", folder / "tflite_runtime.done"
    with open(folder / "tflite_runtime.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            _make(environment)
            done.touch()
    return str(environment / "bin" / "python")


def _make(folder):
    subprocess.run(
        [sys.executable, "-m", "venv", "--clear", folder], check=True, capture_output=True
    )
    pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--retries=1"]
    run = subprocess.run([*pip, *_REQUIREMENTS], capture_output=True, text=True)
    if run.returncode and "connection broken" in run.stderr:
        pytest.skip(f"pip reaches no registry to install {_REQUIREMENTS[0]} from")
    assert run.returncode == 0, run.stderr
