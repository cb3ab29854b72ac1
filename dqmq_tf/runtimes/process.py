"""Runs a `.tflite` file on a runtime, in a process of its own.

A runtime trusts its file, and a damaged one may crash the process. So each run has its own
process, which costs a fifth of a second.
"""

import dataclasses
import json
import os
import pathlib
import signal as signals
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.errors import VerificationError
from dqmq_tf.flatbuffer import SignatureDefT, TFLiteFile
from dqmq_tf.runtimes.registry import (
    BUILTIN_KERNELS,
    DEFAULT_KERNELS,
    MICRO_PACKAGE,
    TFLITE_PACKAGE,
    Runtime,
    get,
)

_PROGRAM = pathlib.Path(__file__).with_name("worker.py")
# Time that a process may take in addition to the seconds for its inputs, before it counts as hung.
_PATIENCE_SECONDS = 120.0
_MAX_SECONDS = 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What a runtime computed from a file.

    Attributes:
        outputs: Float arrays of shape `[samples run, ...]`, one per output. Integer outputs are
            dequantized.
        latency_ms: Median time of one input on one thread, after a warm-up.
        arena_bytes: Size of the smallest arena in which TFLite Micro can set the file up on this
            machine. None for other runtimes, and if tensors were read.
        tensors: `{tensor index: array}` of the requested tensors that can be read, in the types of
            the file.
    """

    outputs: list[np.ndarray]
    latency_ms: float
    arena_bytes: int | None
    tensors: dict[int, np.ndarray]

    @property
    def samples(self) -> int:
        """Number of inputs that ran."""
        return len(self.outputs[0])


def run(
    contents: bytes | TFLiteFile,
    inputs: Sequence[np.ndarray],
    *,
    runtime: str = "litert-xnnpack",
    signature: str | None = None,
    tensors: Sequence[int] = (),
    seconds: float | None = None,
) -> Run:
    """Runs inputs through a file one by one, in a process of its own, on one thread.

    Args:
        contents: Contents of a `.tflite` file that takes a batch of one, or a `TFLiteFile`.
        inputs: Arrays of real values, one per input, shape `[samples, ...]`. Integer inputs are
            quantized.
        runtime: Name of a runtime.
        signature: Name of the signature to run, whose order of inputs and outputs applies. None for
            the first subgraph, in its own order.
        tensors: Indices of tensors of the first subgraph to read after the last input. LiteRT then
            runs without delegates, whose tensors cannot be read.
        seconds: Time limit after which no further input is started, so `Run.samples` may be less
            than the number of inputs. None runs all inputs, for at most an hour.

    Returns:
        A `Run`.

    Raises:
        ImportError: If the runtime is not installed.
        ValueError: If there is no such runtime or signature, or not one array for each input, with at
            least one sample.
        FileFormatError: If the contents are not a complete TFLite file.
        VerificationError: If the runtime refuses the file, crashes on it, or hangs.

    Example:

    >>> run = dqmq_tf.runtimes.run(path.read_bytes(), [images], runtime="tflite-micro")
    >>> run.arena_bytes
    54320
    """
    chosen = get(runtime)
    reason = chosen.missing()
    if reason:
        raise ImportError(f"Runtime {chosen.name!r} is not installed: {reason}")
    file = TFLiteFile.of(contents)
    reads_tensors = len(tensors) > 0
    request = {
        "package": chosen.package,
        "resolver": BUILTIN_KERNELS
        if reads_tensors and chosen.resolver == DEFAULT_KERNELS
        else chosen.resolver,
        "tensors": [int(index) for index in tensors],
        "seconds": _MAX_SECONDS if seconds is None else seconds,
        "arena_limit": _arena_limit(file),
        **_inputs_and_outputs(file, chosen, signature),
    }
    check_inputs(inputs, len(request["inputs"]))
    with tempfile.TemporaryDirectory(prefix="dqmq_tf_") as name:
        folder = pathlib.Path(name)
        (folder / "model.tflite").write_bytes(file.contents)
        (folder / "request.json").write_text(json.dumps(request))
        np.savez(folder / "inputs.npz", *inputs)
        _call(chosen, folder, request["seconds"] + _PATIENCE_SECONDS)
        result = json.loads((folder / "result.json").read_text())
        with np.load(folder / "outputs.npz") as arrays:
            return Run(
                outputs=[arrays[f"output{i}"] for i in range(len(request["outputs"]))],
                latency_ms=result["latency_ms"],
                arena_bytes=result["arena_bytes"],
                tensors={i: arrays[f"tensor{i}"] for i in tensors if f"tensor{i}" in arrays},
            )


def check_inputs(arrays: Sequence[np.ndarray], count: int) -> None:
    """Checks that there is an array for each input of a file, all with as many samples.

    Args:
        arrays: The arrays, `[samples, ...]` each.
        count: The number of inputs of the file.

    Raises:
        ValueError: If there are others, or no samples.
    """
    shapes = [np.shape(array) for array in arrays]
    if len(arrays) != count or len({shape[:1] for shape in shapes}) > 1:
        raise ValueError(
            f"The file takes {count} input{'s' * (count != 1)}, but there are {len(arrays)} arrays of "
            f"the shapes {shapes[:8]}. Give one array [N, ...] for each input, with the same N."
        )
    if not all(len(array) for array in arrays):
        raise ValueError("There are no inputs: pass at least one.")


def _inputs_and_outputs(
    file: TFLiteFile, runtime: Runtime, signature: str | None
) -> dict[str, Any]:
    """Returns the keys `signature`, `inputs` and `outputs` of a worker's request."""
    graph = file.model.subgraphs[0]
    definition = None if signature is None else _definition(file, signature)
    is_micro = runtime.package == MICRO_PACKAGE
    if definition is not None and definition.subgraphIndex:
        if is_micro:
            raise VerificationError(
                f"{runtime.name} runs the first subgraph only, and signature {signature!r} is "
                f"subgraph {definition.subgraphIndex}."
            )
        return {
            "signature": signature,
            "inputs": [flatbuffer.text(entry.name) for entry in definition.inputs],
            "outputs": [flatbuffer.text(entry.name) for entry in definition.outputs],
        }
    request: dict[str, Any] = {"signature": None}
    for side in ("inputs", "outputs"):
        indices = wanted = [int(index) for index in getattr(graph, side)]
        if definition is not None:
            wanted = [int(entry.tensorIndex) for entry in getattr(definition, side)]
        # TFLite Micro knows inputs and outputs by their position, LiteRT by their tensor.
        request[side] = [indices.index(i) for i in wanted] if is_micro else wanted
    return request


def _definition(file: TFLiteFile, signature: str) -> SignatureDefT:
    definitions = file.signatures
    if signature not in definitions:
        known = ", ".join(map(repr, definitions)) or "none"
        raise ValueError(f"The file has no signature {signature!r}; it has {known}.")
    return definitions[signature]


def _arena_limit(file: TFLiteFile) -> int:
    """Returns more bytes than any arena needs.

    That is four times all tensors at four bytes per element, and room for the file's structures.
    """
    graph = file.model.subgraphs[0]
    elements = sum(int(np.prod(t.shape)) if t.shape is not None else 1 for t in graph.tensors)
    return 2**20 + 2 * len(file.contents) + 16 * elements


def _call(runtime: Runtime, folder: pathlib.Path, limit: float) -> None:
    """Runs the worker on a folder with its request.

    Raises:
        VerificationError: If the worker fails, crashes, or takes longer than `limit` seconds.
    """
    environment = dict(os.environ)
    if runtime.package == TFLITE_PACKAGE:
        # The Python of another environment must not import the packages of this one.
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
            f"{runtime.name} did not finish within {limit:.0f} seconds and was stopped."
        ) from error
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines()]
    lines = [line for line in lines if line and not line.startswith("INFO:")]
    last_line = f" Its last message: {lines[-1]}" if lines else ""
    reason = folder / "error.txt"
    if done.returncode > 0 and reason.exists():
        raise VerificationError(
            f"{runtime.name} ({runtime.version}) refuses the file: "
            f"{reason.read_text().rstrip('.')}.{last_line}"
        )
    how = f"exit code {done.returncode}"
    if done.returncode < 0:
        how = signals.Signals(-done.returncode).name
    raise VerificationError(
        f"{runtime.name} ({runtime.version}) crashed on the file: {how}.{last_line}"
    )
