"""The runtimes that run a `.tflite` file: which exist, and which are installed here."""

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping

from dqmq_tf import flatbuffer
from dqmq_tf.flatbuffer import ModelT, OperatorT, SubGraphT
from dqmq_tf.targets import Target

# Environment variable with the path of a Python that has tflite-runtime.
PYTHON_VARIABLE = "DQMQ_TFLITE_RUNTIME_PYTHON"
# Largest mean difference between a runtime and the model, in steps of the output's grid. No two
# runtimes round alike, and deep networks carry each rounding on: on an untrained MobileNetV2 two
# backends of LiteRT differ by 4 quanta on average. A wrong scale costs tens of quanta.
MEAN_QUANTA = 8.0

_LITERT, TFLITE_PACKAGE, MICRO_PACKAGE = "ai_edge_litert", "tflite_runtime", "tflite_micro"
# Names of LiteRT's op resolvers.
DEFAULT_KERNELS, BUILTIN_KERNELS, _REFERENCE = (
    "AUTO",
    "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "BUILTIN_REF",
)
_MICRO_PREFIX = "TFLM_"
_INT4_DEPTHWISE_VERSION = 7
# Builtin operators that a runtime has no kernel for, found by asking each runtime for each one.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runtime:
    """A way to run a file.

    Attributes:
        name: Key in `RUNTIMES`.
        description: One line for people.
        package: Module that it is imported from.
        resolver: LiteRT's choice of kernels.
        lacks: Operators that it has no kernel for.
        largest_ranks: The largest rank of the first input of operators that have such a limit.
        one_scale: Operators that silently use the first of several scales of their weights.
        agreement: Smallest share of clear inputs whose largest output entry is the model's, see
            `dqmq_tf.verify`.
    """

    name: str
    description: str
    package: str
    resolver: str | None = None
    lacks: frozenset[str] = frozenset()
    largest_ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    one_scale: frozenset[str] = frozenset()
    agreement: float

    def missing(self) -> str | None:
        """Returns how to install the runtime, or None if it is installed."""
        if self.package == TFLITE_PACKAGE:
            return _missing_in(os.environ.get(PYTHON_VARIABLE))
        if importlib.util.find_spec(self.package) is None:
            pre = "--pre " if self.package == MICRO_PACKAGE else ""
            return f"pip install {pre}{self.package.replace('_', '-')}"
        return None

    @property
    def version(self) -> str:
        """Name and version of the package, such as `"ai-edge-litert 2.3.0"`."""
        if self.package == TFLITE_PACKAGE:
            return f"tflite-runtime {_query_python(os.environ[PYTHON_VARIABLE])[1]}"
        name = self.package.replace("_", "-")
        return f"{name} {installed_version(name)}"

    @property
    def python(self) -> str:
        """Path of the Python that has the runtime."""
        return os.environ[PYTHON_VARIABLE] if self.package == TFLITE_PACKAGE else sys.executable

    def refuses(self, model: ModelT) -> str | None:
        """Returns why the runtime cannot run a file, or None if it can.

        Args:
            model: The `ModelT` of the file.
        """
        for code in model.operatorCodes:
            name = flatbuffer.text(code.customCode)
            if name.startswith(_MICRO_PREFIX) and self.package != MICRO_PACKAGE:
                return f"the file has {name}, an operator of TFLite Micro alone"
            builtin = flatbuffer.builtin_name(code)
            if builtin in self.lacks:
                return f"it has no kernel for {builtin}"
            is_int4 = code.version >= _INT4_DEPTHWISE_VERSION
            if self.resolver == _REFERENCE and builtin == "DEPTHWISE_CONV_2D" and is_int4:
                return "it has no kernel for the file's INT4 depthwise convolution"
        for graph in model.subgraphs:
            for operator in graph.operators:
                name = flatbuffer.operator_name(model, operator)
                if name in self.one_scale and _most_scales(graph, operator) > 1:
                    return f"its {name} silently uses the first of several scales"
        return None


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            name="litert-xnnpack",
            description="LiteRT as an app runs it: XNNPACK takes what it can",
            package=_LITERT,
            resolver=DEFAULT_KERNELS,
            agreement=0.99,
        ),
        Runtime(
            name="litert-builtin",
            description="LiteRT's own optimized kernels, without delegates",
            package=_LITERT,
            resolver=BUILTIN_KERNELS,
            agreement=0.98,
        ),
        Runtime(
            name="litert-reference",
            description="LiteRT's reference kernels, which round twice",
            package=_LITERT,
            resolver=_REFERENCE,
            lacks=_REFERENCE_LACKS,
            agreement=0.98,
        ),
        Runtime(
            name="tflite-runtime",
            description="TensorFlow Lite 2.14, LiteRT's predecessor, from another environment",
            package=TFLITE_PACKAGE,
            resolver=DEFAULT_KERNELS,
            one_scale=frozenset({"EMBEDDING_LOOKUP"}),
            agreement=0.98,
        ),
        Runtime(
            name="tflite-micro",
            description="TFLite Micro's reference kernels",
            package=MICRO_PACKAGE,
            lacks=_MICRO_LACKS,
            largest_ranks={"STRIDED_SLICE": 4, "TRANSPOSE": 5},
            one_scale=frozenset({"DEQUANTIZE", "EMBEDDING_LOOKUP"}),
            agreement=0.98,
        ),
    )
}


def get(name: str) -> Runtime:
    """Returns a `Runtime` by name.

    Raises:
        ValueError: If no runtime has that name.
    """
    if name not in RUNTIMES:
        raise ValueError(f"Unknown runtime {name!r}: choose one of {', '.join(RUNTIMES)}.")
    return RUNTIMES[name]


def claimed(target: Target) -> list[Runtime]:
    """Returns the runtimes that run a target's files, installed or not, the intended one first."""
    return [get(name) for name in target.runtimes]


def installed_version(package: str) -> str:
    """Returns the version of an installed package.

    Args:
        package: The name of the package, such as `"tensorflow"`. What is installed may have another
            name, such as tensorflow-cpu, and bring the same module.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        module = importlib.import_module(package.replace("-", "_"))
        return str(getattr(module, "__version__", "unknown"))


def _most_scales(graph: SubGraphT, operator: OperatorT) -> int:
    """Returns the largest number of scales that an input of an operator has."""
    grids = [graph.tensors[i].quantization for i in operator.inputs if i >= 0]
    return max(0 if g is None or g.scale is None else len(g.scale) for g in grids)


def _missing_in(python: str | None) -> str | None:
    """Returns why a Python cannot run tflite-runtime, or None if it can."""
    if not python:
        return f"set {PYTHON_VARIABLE} to the Python of an environment that has tflite-runtime"
    works, answer = _query_python(python)
    return None if works else f"{PYTHON_VARIABLE}={python} does not import it: {answer}"


@functools.cache
def _query_python(python: str) -> tuple[bool, str]:
    """Asks a Python for its tflite-runtime.

    Returns:
        `(True, version)`, or `(False, why it cannot be imported)`.
    """
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
