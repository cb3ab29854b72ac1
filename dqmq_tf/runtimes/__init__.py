"""Programs that take a `.tflite` file: LiteRT, TFLite Micro, Vela."""

from dqmq_tf.runtimes.process import Run, run
from dqmq_tf.runtimes.registry import PYTHON_VARIABLE, RUNTIMES, Runtime, claimed, get

__all__ = [
    "PYTHON_VARIABLE",
    "RUNTIMES",
    "Run",
    "Runtime",
    "claimed",
    "get",
    "run",
]
