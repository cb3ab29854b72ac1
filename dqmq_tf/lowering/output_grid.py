"""Raises the output steps of a frozen model that are too fine for the kernels of its file.

An integer kernel scales its accumulator, whose unit is `input_step * weight_step`, to steps of its
output. XNNPACK refuses a file in which one unit is 256 steps or more. There is no other bound: units
may be small, and an operator without weights whose steps XNNPACK does not take runs outside of it.

A layer comes there if its outputs are small beside the terms that they are sums of: a relu that
hardly ever fires, or terms that cancel. The whole range of 255 steps is then less than one unit, so
the outputs are almost constant whatever the step is. The step rises where bits are frozen, as biases
are rounded there (see `bias_grid`), so that the Keras model computes what the file will compute.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from keras import ops

from dqmq_tf.errors import ConversionError
from dqmq_tf.graph import Graph, Node
from dqmq_tf.graph.fusion import fused_tensors, operator_tensors
from dqmq_tf.graph.kernels import is_linear
from dqmq_tf.lowering.bias_grid import bias_unit
from dqmq_tf.lowering.folding import layer_affine
from dqmq_tf.precision import Precision

# The most output steps in a unit of the accumulator: a kernel takes less than `LIMIT`. Rounding the
# step to float32 must not bring a raised one back to it.
_LIMIT, _RAISED_TO = 256.0, 255.0
# The runtime whose kernels have this limit.
_RUNTIME = "litert-xnnpack"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FineStep:
    """An output step that a kernel cannot compute.

    Attributes:
        path: The path of the layer.
        point: The index of the activation point of its output.
        bit_width: The bit-width of its output.
        unit: The largest unit of its accumulator.
        ratio: The output steps in that unit.
    """

    path: str
    point: int
    bit_width: int
    unit: float
    ratio: float


def raise_fine_steps(parts: Any, precisions: Callable[[], Sequence[Precision]]) -> None:
    """Raises the output steps that kernels cannot compute, with a warning for each.

    Steps that cannot rise stay: those of fixed ranges and of quantizers of the user's own.

    Args:
        parts: The `ModelParts` of the model, whose quantizers change.
        precisions: A function that returns the `Precision` of each profile to deploy.
    """
    # A raised step makes the units of the layers that read it larger, in each profile.
    for _ in parts.graph.nodes:
        found = {
            (fine.point, fine.bit_width): fine
            for precision in precisions()
            for fine in _fine_steps(parts, precision)
            if not _is_fixed(parts, fine)
        }
        for fine in found.values():
            quantizer = parts.quantizers[fine.point]
            log_step = ops.convert_to_numpy(quantizer.log_step).copy()
            log_step[quantizer.bit_widths.index(fine.bit_width)] = np.log(fine.unit / _RAISED_TO)
            quantizer.log_step.assign(log_step)
            warnings.warn(
                f"{_described(fine)}, so these were raised: {_limit_and_cure(fine.path)}",
                stacklevel=5,
            )
        if not found:
            return


def check_steps(parts: Any, precision: Precision) -> None:
    """Raises `ConversionError` for a layer whose output steps the kernels of a file cannot compute.

    Args:
        parts: The `ModelParts` of the model.
        precision: The `Precision` of the file.
    """
    for fine in _fine_steps(parts, precision):
        kind = "whose range is fixed" if _is_fixed(parts, fine) else "which cannot rise"
        raise ConversionError(f"{_described(fine)}, {kind}: {_limit_and_cure(fine.path)}")


def _fine_steps(parts: Any, precision: Precision) -> Iterator[_FineStep]:
    """Yields the output steps that are too fine, in execution order."""
    if _RUNTIME not in parts.target.runtimes:
        return
    graph, activations = parts.graph, precision.activations
    fused = fused_tensors(graph)
    points = {t: i for i, point in enumerate(parts.costs.activations) for t in point.tensors}
    for node in graph.nodes:
        if not is_linear(node.layer) or len(precision.weights.get(node.path, ())) != 1:
            continue
        source, result = node.inputs[0], operator_tensors(graph, node, fused)[-1]
        if source not in activations or result not in activations:
            continue
        grid = activations[result]
        unit = _largest_unit(graph, node, activations[source].step, precision)
        if unit / grid.step >= _LIMIT and not grid.is_int16:
            yield _FineStep(
                path=node.path,
                point=points[result],
                bit_width=grid.bit_width,
                unit=unit,
                ratio=unit / grid.step,
            )


def _is_fixed(parts: Any, fine: _FineStep) -> bool:
    """Whether a step cannot rise."""
    is_users = bool(parts.costs.activations[fine.point].user_quantizers)
    return parts.quantizers[fine.point].range != "affine" or is_users


def _described(fine: _FineStep) -> str:
    """Returns the beginning of a message about a layer with a large unit."""
    return (
        f"Layer {fine.path!r}: a unit of its accumulator (input step times weight step) is "
        f"{fine.ratio:,.0f} output steps"
    )


def _limit_and_cure(path: str) -> str:
    """Returns the end of a message about a layer with a large unit: what the limit is, and a cure.

    Args:
        path: The path of the layer.
    """
    return (
        f"XNNPACK takes less than {_LIMIT:.0f}. The outputs are almost constant, such as those of a "
        "relu that hardly ever fires, or of terms that cancel. If they matter, keep the layer in "
        f"floating point with dqmq_tf.LayerRule(pattern={path!r}, quantize=False)."
    )


def _largest_unit(graph: Graph, node: Node, input_step: float, precision: Precision) -> float:
    """Returns the largest unit of a layer's accumulator, with what is folded into the layer."""
    (weight,) = precision.weights[node.path].values()
    unit = bias_unit(node.layer, input_step, weight.step)
    if unit is None:
        unit = np.float64(input_step) * weight.step.astype("float64").max(keepdims=True)
    paths = [norm for norm, linear in graph.folds.items() if linear == node.path]
    layers = [other.layer for other in graph.nodes if other.path in paths]
    if layers:
        channels = graph.shapes[node.outputs[0]][-1]
        assert channels is not None  # Every layer with a kernel knows its channels.
        unit = unit * np.abs(layer_affine(layers[0], channels).multiplier)
    return float(np.max(unit))
