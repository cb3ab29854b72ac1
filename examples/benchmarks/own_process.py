"""Measurements that need a process of their own."""

import json
import pathlib
import subprocess


def json_of(command):
    """Runs a program and returns what its last line says in JSON."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_of_this():
    """Returns the peak memory of this process in MB."""
    # Not getrusage: on Linux a process inherits the peak of its parent.
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024
