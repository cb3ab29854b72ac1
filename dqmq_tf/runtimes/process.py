"""Runs a `.tflite` file on a runtime, in a process of its own.

A runtime trusts its file, and ends the process where that is a mistake. So each run is a process of
its own, which costs a fifth of a second.
"""

import dataclasses
import json
import os
import pathlib
import signal as signals
import subprocess
import tempfile

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.errors import VerificationError
from dqmq_tf.flatbuffer import TFLiteFile
from dqmq_tf.runtimes.registry import (
    BUILTIN_KERNELS,
    DEFAULT_KERNELS,
    MICRO_PACKAGE,
    TFLITE_PACKAGE,
    get,
)

_PROGRAM = pathlib.Path(__file__).with_name("worker.py")


# What a process may take beyond the seconds that are given to its inputs: to load, or to hang.
_PATIENCE_SECONDS = 120.0
_LONG = 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a runtime made of a file.

    Attributes:
        outputs: Float arrays `[samples run, ...]`, one per output; integer outputs are
            dequantized.
        latency_ms: Median time of one input, 1 thread, after a warm-up.
        arena_bytes: Size of the smallest arena in which TFLite Micro sets the file up, on this
            machine; None for other runtimes, and where tensors were read.
        tensors: `{tensor index: array}` of the tensors that were asked for and can be read, in the
            file's own types.
    """

    outputs: list
    latency_ms: float
    arena_bytes: int | None
    tensors: dict

    @property
    def samples(self):
        """Inputs that were run."""
        return len(self.outputs[0])


def run(contents, inputs, *, runtime="litert-xnnpack", signature=None, tensors=(), seconds=None):
    """Runs inputs through a file one by one, in a process of its own, 1 thread.

    Args:
        contents: Contents of a `.tflite` file that takes a batch of one, or a `TFLiteFile`.
        inputs: Arrays `[samples, ...]` of real values, one per input. They are put on the grid of
            an integer input.
        runtime: Name of a runtime.
        signature: Key of the signature to run, in whose order inputs and outputs are; None for the
            first subgraph, in its own order.
        tensors: Indices of tensors of the first subgraph to read after the last input. Delegates,
            which keep theirs to themselves, are then left out.
        seconds: After so many no further input is begun, so `Run.samples` may be less than what was
            handed over; None for all of them, within an hour.

    Returns:
        `Run`.

    Raises:
        ImportError: If the runtime is not installed.
        ValueError: If there is no such runtime or signature.
        FileFormatError: If the contents are not a complete TFLite file.
        VerificationError: If the runtime refuses the file, crashes on it, or does not come back.

    Example:

    >>> from dqmq_tf.export import runtimes
    >>> runtimes.run(path.read_bytes(), [images], runtime="tflite-micro").arena_bytes
    54320
    """
    runtime = get(runtime)
    reason = runtime.missing()
    if reason:
        raise ImportError(f"Runtime {runtime.name!r} is not installed: {reason}")
    file = TFLiteFile.of(contents)
    request = {
        "package": runtime.package,
        "resolver": BUILTIN_KERNELS
        if len(tensors) and runtime.resolver == DEFAULT_KERNELS
        else runtime.resolver,
        "tensors": [int(index) for index in tensors],
        "seconds": _LONG if seconds is None else seconds,
        "arena_limit": _arena_limit(file),
        **_entry(file, runtime, signature),
    }
    with tempfile.TemporaryDirectory(prefix="dqmq_tf_") as name:
        folder = pathlib.Path(name)
        (folder / "model.tflite").write_bytes(file.contents)
        (folder / "request.json").write_text(json.dumps(request))
        np.savez(folder / "inputs.npz", *inputs)
        _call(runtime, folder, request["seconds"] + _PATIENCE_SECONDS)
        result = json.loads((folder / "result.json").read_text())
        with np.load(folder / "outputs.npz") as arrays:
            return Run(
                outputs=[arrays[f"output{i}"] for i in range(len(request["outputs"]))],
                latency_ms=result["latency_ms"],
                arena_bytes=result["arena_bytes"],
                tensors={i: arrays[f"tensor{i}"] for i in tensors if f"tensor{i}" in arrays},
            )


def _entry(file, runtime, signature):
    """What the process needs to know of the inputs and outputs of a signature."""
    graph, chosen = file.model.subgraphs[0], None
    if signature is not None:
        chosen = _definition(file, signature)
        if chosen.subgraphIndex:
            if runtime.package == MICRO_PACKAGE:
                raise VerificationError(
                    f"{runtime.name} runs the first subgraph only, and signature {signature!r} is "
                    f"subgraph {chosen.subgraphIndex}."
                )
            return {
                "signature": signature,
                "inputs": [flatbuffer.text(entry.name) for entry in chosen.inputs],
                "outputs": [flatbuffer.text(entry.name) for entry in chosen.outputs],
            }
    ends = {"signature": None}
    for end in ("inputs", "outputs"):
        indices = wanted = [int(index) for index in getattr(graph, end)]
        if chosen is not None:
            wanted = [int(entry.tensorIndex) for entry in getattr(chosen, end)]
        ends[end] = (
            [indices.index(i) for i in wanted] if runtime.package == MICRO_PACKAGE else wanted
        )
    return ends


def _definition(file, signature):
    definitions = file.signatures
    if signature not in definitions:
        known = ", ".join(map(repr, definitions)) or "none"
        raise ValueError(f"The file has no signature {signature!r}; it has {known}.")
    return definitions[signature]


def _arena_limit(file):
    """Bytes that no file needs: all tensors at once, four times, and its tables as objects."""
    graph = file.model.subgraphs[0]
    elements = sum(int(np.prod(t.shape)) if t.shape is not None else 1 for t in graph.tensors)
    return 2**20 + 2 * len(file.contents) + 16 * elements


def _call(runtime, folder, limit):
    environment = dict(os.environ)
    if runtime.package == TFLITE_PACKAGE:
        # Another environment: what this one is told to import is not for it.
        environment.pop("PYTHONPATH", None)
        environment.pop("PYTHONHOME", None)
    try:
        done = subprocess.run(
            [runtime.python, str(_PROGRAM), str(folder)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise VerificationError(
            f"{runtime.name} did not come back within {limit:.0f} seconds and was ended."
        ) from error
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines()]
    lines = [line for line in lines if line and not line.startswith("INFO:")]
    said = f" It said last: {lines[-1]}" if lines else ""
    reason = folder / "error.txt"
    if done.returncode > 0 and reason.exists():
        raise VerificationError(
            f"{runtime.name} ({runtime.version}) refuses the file: {reason.read_text().rstrip('.')}.{said}"
        )
    how = f"exit code {done.returncode}"
    if done.returncode < 0:
        how = signals.Signals(-done.returncode).name
    raise VerificationError(f"{runtime.name} ({runtime.version}) crashed on the file: {how}.{said}")
