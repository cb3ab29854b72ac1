"""Refuses weights and ranges that a training has made NaN or infinite. They are no integers of any step."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from dqmq_tf.errors import ConversionError
from dqmq_tf.graph.graph import Graph
from dqmq_tf.graph.kernels import kernel_variables


def check_finite_weights(graph: Graph, log_steps: Mapping[str, Any] | None = None) -> None:
    """Raises `ConversionError` if a kernel, a trainable variable or a range holds NaN or infinity.

    Args:
        graph: The graph of the model. Other variables, such as masks, may hold infinity.
        log_steps: `{path of a layer: logarithm of the steps of its output}`.
    """
    for node in graph.nodes:
        for variable in kernel_variables(node.layer).values():
            _check(node.path, variable)
    lost = not_finite(log_steps or {})
    if lost:
        raise ConversionError(
            f"The range of the output of {lost[0]!r} became NaN or infinite. {advice(lost[0])} Then "
            "train again."
        )
    for node in graph.nodes:
        for variable in getattr(node.layer, "trainable_variables", ()):
            _check(node.path, variable)


def not_finite(variables: Mapping[str, Any]) -> list[str]:
    """Returns the names of the variables that hold NaN or infinity."""
    return [name for name, variable in variables.items() if _count(variable)]


def advice(path: str) -> str:
    """Returns what to do about an output whose range became NaN."""
    return (
        "Its gradient is: the layer that reads it may compute a logarithm, a root or a quotient of "
        "values that 8 bits round to 0. Keep it in floating point with "
        f"dqmq_tf.LayerRule(pattern={path!r}, quantize=False)."
    )


def _check(path: str, variable: Any) -> None:
    count = _count(variable)
    if count:
        raise ConversionError(
            f"Layer {path!r}: {count} of the weights in {variable.name!r} are NaN or "
            "infinity, so they have no bits. The training diverged: check labels and loss "
            "for NaN, lower the learning rate, and train again from the float model or a "
            "checkpoint."
        )


def _count(variable: Any) -> int:
    """Returns how many values of a variable are NaN or infinite."""
    return int((~np.isfinite(keras.ops.convert_to_numpy(variable))).sum())
