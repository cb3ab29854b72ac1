"""Runtimes that run a `.tflite` file: which there are, which are installed here, and `run`.

A runtime trusts its file, and ends the process where that is a mistake. So each run is a process of
its own, which costs a fifth of a second.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import signal as signals
import subprocess
import sys
import tempfile

import numpy as np

from dqmq_tf.export import flatbuffer
from dqmq_tf.export.errors import VerificationError

PYTHON_VARIABLE = "DQMQ_TFLITE_RUNTIME_PYTHON"
_PROGRAM = pathlib.Path(__file__).with_name("runner.py")
_LITERT, _TFLITE, _MICRO = "ai_edge_litert", "tflite_runtime", "tflite_micro"
_DEFAULT, _BUILTIN, _REFERENCE = "AUTO", "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "BUILTIN_REF"
_MICRO_ONLY = "TFLM_"
_INT4_DEPTHWISE = 7
# Operators of LiteRT that a runtime has no kernel for, found by asking each for each.
_REFERENCE_LACKS = frozenset({"CEIL", "ELU", "ROUND"})
_MICRO_LACKS = frozenset(
    """
    ATAN2 BIDIRECTIONAL_SEQUENCE_LSTM BIDIRECTIONAL_SEQUENCE_RNN BITCAST BITWISE_XOR BUCKETIZE
    CALL COMPLEX_ABS CONCAT_EMBEDDINGS CONV_3D CONV_3D_TRANSPOSE DENSIFY DILATE
    EMBEDDING_LOOKUP_SPARSE FAKE_QUANT GELU HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT
    HASHTABLE_LOOKUP HASHTABLE_SIZE IMAG LOCAL_RESPONSE_NORMALIZATION LSH_PROJECTION LSTM
    MATRIX_DIAG MATRIX_SET_DIAG MULTINOMIAL NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5
    ONE_HOT POW RANDOM_STANDARD_NORMAL RANDOM_UNIFORM RANGE RANK REAL REDUCE_ANY REDUCE_PROD
    REDUCE_WINDOW RELU_0_TO_1 RELU_N1_TO_1 REVERSE_SEQUENCE RFFT2D RIGHT_SHIFT RNN SCATTER_ND
    SEGMENT_SUM SELECT SIGN SKIP_GRAM SPARSE_TO_DENSE TILE TOPK_V2 UNIDIRECTIONAL_SEQUENCE_RNN
    UNIQUE UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_MIN UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_SUM
    WHERE
    """.split()
)
# What a process may take beyond the seconds that are given to its inputs: to load, or to hang.
_PATIENCE_SECONDS = 120.0
_LONG = 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runtime:
    """A way to run a file.

    Attributes:
        name: Key in `RUNTIMES`.
        description: One line for people.
        package: Module that it is imported from.
        resolver: Which of its kernels LiteRT takes.
        lacks: Operators that it has no kernel for.
        one_scale: Operators that silently take the first of several scales of their weights.
        agreement: Least share of decided inputs with the model's largest output entry.
        mean_quanta: Largest mean difference from the model, in steps of the output's grid.
    """

    name: str
    description: str
    package: str
    resolver: str | None = None
    lacks: frozenset = frozenset()
    one_scale: frozenset = frozenset()
    agreement: float
    mean_quanta: float

    def missing(self):
        """Returns why the runtime cannot be had here, or None if it can."""
        if self.package == _TFLITE:
            return _missing_in(os.environ.get(PYTHON_VARIABLE))
        if importlib.util.find_spec(self.package) is None:
            pre = "--pre " if self.package == _MICRO else ""
            return f"pip install {pre}{self.package.replace('_', '-')}"
        return None

    @property
    def version(self):
        """Name and version of the package, such as `"ai-edge-litert 2.3.0"`."""
        if self.package == _TFLITE:
            return f"tflite-runtime {_answer(os.environ[PYTHON_VARIABLE])[1]}"
        name = self.package.replace("_", "-")
        return f"{name} {importlib.metadata.version(name)}"

    @property
    def python(self):
        """Path of the Python that has it."""
        return os.environ[PYTHON_VARIABLE] if self.package == _TFLITE else sys.executable

    def refuses(self, model):
        """Returns why a file cannot be for this runtime, or None if it can.

        Args:
            model: `ModelT`.
        """
        for code in model.operatorCodes:
            name = flatbuffer.text(code.customCode)
            if name.startswith(_MICRO_ONLY) and self.package != _MICRO:
                return f"the file has {name}, an operator of TFLite Micro alone"
            if flatbuffer.builtin_name(code) in self.lacks:
                return f"it has no kernel for {flatbuffer.builtin_name(code)}"
            depthwise = code.builtinCode == flatbuffer.schema().BuiltinOperator.DEPTHWISE_CONV_2D
            if self.resolver == _REFERENCE and depthwise and code.version >= _INT4_DEPTHWISE:
                return "it has no kernel for the file's INT4 depthwise convolution"
        for graph in model.subgraphs:
            for operator in graph.operators:
                name = flatbuffer.operator_name(model, operator)
                if name in self.one_scale and _most_scales(graph, operator) > 1:
                    return f"its {name} silently takes the first of several scales"
        return None


# No two runtimes round alike. Deep networks carry each rounding on: on an untrained MobileNetV2 two
# backends of LiteRT differ from each other by 4 quanta on average. A wrong scale costs tens.
RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            name="litert-xnnpack",
            description="LiteRT as an app runs it: XNNPACK takes what it can",
            package=_LITERT,
            resolver=_DEFAULT,
            agreement=0.99,
            mean_quanta=8.0,
        ),
        Runtime(
            name="litert-builtin",
            description="LiteRT's own optimized kernels, without delegates",
            package=_LITERT,
            resolver=_BUILTIN,
            agreement=0.98,
            mean_quanta=8.0,
        ),
        Runtime(
            name="litert-reference",
            description="LiteRT's reference kernels, which round twice",
            package=_LITERT,
            resolver=_REFERENCE,
            lacks=_REFERENCE_LACKS,
            agreement=0.98,
            mean_quanta=8.0,
        ),
        Runtime(
            name="tflite-runtime",
            description="TensorFlow Lite 2.14, LiteRT's predecessor, from another environment",
            package=_TFLITE,
            resolver=_DEFAULT,
            one_scale=frozenset({"EMBEDDING_LOOKUP"}),
            agreement=0.98,
            mean_quanta=8.0,
        ),
        Runtime(
            name="tflite-micro",
            description="TFLite Micro's reference kernels",
            package=_MICRO,
            lacks=_MICRO_LACKS,
            one_scale=frozenset({"DEQUANTIZE", "EMBEDDING_LOOKUP"}),
            agreement=0.98,
            mean_quanta=8.0,
        ),
    )
}


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


def get(name):
    """Returns a `Runtime` by name.

    Raises:
        ValueError: If no runtime has that name.
    """
    if name not in RUNTIMES:
        raise ValueError(f"Unknown runtime {name!r}: choose among {', '.join(RUNTIMES)}.")
    return RUNTIMES[name]


def run(contents, inputs, *, runtime="litert-xnnpack", signature=None, tensors=(), seconds=None):
    """Runs inputs through a file one by one, in a process of its own, 1 thread.

    Args:
        contents: Contents of a `.tflite` file that takes a batch of one.
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
        ConversionError: If the contents are not a complete TFLite file.
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
    model = flatbuffer.read(contents)
    request = {
        "package": runtime.package,
        "resolver": _BUILTIN if len(tensors) and runtime.resolver == _DEFAULT else runtime.resolver,
        "tensors": [int(index) for index in tensors],
        "seconds": _LONG if seconds is None else seconds,
        "arena_limit": _arena_limit(model, contents),
        **_entry(model, runtime, signature),
    }
    with tempfile.TemporaryDirectory(prefix="dqmq_tf_") as name:
        folder = pathlib.Path(name)
        (folder / "model.tflite").write_bytes(contents)
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


def _most_scales(graph, operator):
    grids = [graph.tensors[i].quantization for i in operator.inputs if i >= 0]
    return max(0 if g is None or g.scale is None else len(g.scale) for g in grids)


def _entry(model, runtime, signature):
    """What the process needs to know of the inputs and outputs of a signature."""
    graph, chosen = model.subgraphs[0], None
    if signature is not None:
        chosen = _definition(model, signature)
        if chosen.subgraphIndex:
            if runtime.package == _MICRO:
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
        ends[end] = [indices.index(i) for i in wanted] if runtime.package == _MICRO else wanted
    return ends


def _definition(model, signature):
    definitions = {flatbuffer.text(d.signatureKey): d for d in model.signatureDefs or ()}
    if signature not in definitions:
        known = ", ".join(map(repr, definitions)) or "none"
        raise ValueError(f"The file has no signature {signature!r}; it has {known}.")
    return definitions[signature]


def _arena_limit(model, contents):
    """Bytes that no file needs: all tensors at once, four times, and its tables as objects."""
    graph = model.subgraphs[0]
    elements = sum(int(np.prod(t.shape)) if t.shape is not None else 1 for t in graph.tensors)
    return 2**20 + 2 * len(contents) + 16 * elements


def _call(runtime, folder, limit):
    environment = dict(os.environ)
    if runtime.package == _TFLITE:
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


def _missing_in(python):
    if not python:
        return f"set {PYTHON_VARIABLE} to the Python of an environment that has tflite-runtime"
    works, answer = _answer(python)
    return None if works else f"{PYTHON_VARIABLE}={python} does not import it: {answer}"


@functools.cache
def _answer(python):
    """`(True, version)` of the tflite-runtime that a Python has, or `(False, why it has none)`."""
    program = (
        "import importlib.metadata, tflite_runtime.interpreter;"
        "print(importlib.metadata.version('tflite-runtime'))"
    )
    try:
        done = subprocess.run(
            [python, "-I", "-c", program], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    if done.returncode:
        return False, (done.stderr.strip().splitlines() or ["it failed"])[-1]
    return True, done.stdout.strip()
