"""Quantizes the float file with given ranges; nothing is calibrated.

`plan` decides the scale and zero point of each tensor of the file; `quantize` has
ai-edge-quantizer write them, with one rule per operator, so that an operator without a rule stays
in floating point by intention and never by accident.
"""

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import ModelT, TFLiteFile, activation_tensors
from dqmq_tf.flatbuffer.serialization import OperatorT, SubGraphT
from dqmq_tf.lowering import folding
from dqmq_tf.lowering.folding import FoldedWeights
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.lowering.tensor_matching import Match
from dqmq_tf.precision import tflite_zero_point

# Their kernels move values and cannot rescale them.
_SHARED_SCALES = frozenset(
    {
        "AVERAGE_POOL_2D",
        "MAX_POOL_2D",
        "RESHAPE",
        "TRANSPOSE",
        "PAD",
        "STRIDED_SLICE",
        "SLICE",
        "RESIZE_NEAREST_NEIGHBOR",
        "RESIZE_BILINEAR",
        "SQUEEZE",
        "EXPAND_DIMS",
        "BROADCAST_TO",
        "CONCATENATION",
    }
)
_INHERITED_SCALES = _SHARED_SCALES | {"MEAN"}
# An unsigned grid already clips at zero, so the input of a ReLU shares the quantization of its
# output.
_CLIPPING = ("RELU", "RELU6")
_NAMES = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}
_LARGEST_INT32 = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The quantization of a file.

    Attributes:
        activations: `{tensor index: ActivationPrecision}`; a tensor without entry stays float.
        weights: `{operator index: FoldedWeights}`.
        operators: Indices of the operators to quantize.
        own_kernels: Those of them that need an integer form that ai-edge-quantizer lacks; see
            `integer_kernels.merge_kernels`.
    """

    activations: dict
    weights: dict
    operators: tuple
    own_kernels: tuple = ()


def plan(model: ModelT, match: Match, lowered: LoweredModel) -> Plan:
    """Decides the quantization of every tensor of a float file.

    Args:
        model: `ModelT` of the float file.
        match: `Match` of the file and its lowered model.
        lowered: `LoweredModel`.

    Returns:
        `Plan`.

    Raises:
        ConversionError: If a tensor has no range, or tensors that must share one do not.
    """
    graph = model.subgraphs[0]
    known = {
        index: lowered.quantization[key]
        for index, key in match.tensors.items()
        if key in lowered.quantization
    }
    integer = [i for i in range(len(graph.operators)) if i not in match.floating]
    _share(model, graph, integer, known)
    floats = set(activation_tensors(model, graph))
    for index in integer:
        operator = graph.operators[index]
        for i in (*operator.inputs, *operator.outputs):
            if i in floats and i not in known:
                raise ConversionError(
                    f"{_describe(model, graph, i)} has no range: the converter made it inside "
                    f"layer {match.paths.get(index)!r}. Leave that in floating point by "
                    "dqmq_tf.LayerRule(pattern=..., quantize=False), and please report the model."
                )
    return Plan(
        activations=known,
        weights=match.weights,
        operators=tuple(integer),
        own_kernels=tuple(
            index for index in integer if _is_by_us(model, graph.operators[index], known)
        ),
    )


def require_quantizer() -> tuple[Any, Any]:
    """Modules `qtyping` and `quantizer` of ai-edge-quantizer.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        from ai_edge_quantizer import qtyping, quantizer
    except ImportError as error:
        raise ImportError(
            "Quantizing .tflite files needs ai-edge-quantizer: pip install ai-edge-quantizer"
        ) from error
    return qtyping, quantizer


def quantize(file: TFLiteFile, plan: Plan) -> TFLiteFile:
    """Writes a plan into a float file.

    Args:
        file: `TFLiteFile` with unique short tensor names.
        plan: `Plan`.

    Returns:
        `TFLiteFile`, quantized; the given one where ai-edge-quantizer has nothing to do.

    Raises:
        ImportError: If `ai-edge-quantizer` is not installed.
        ConversionError: If an operator is not covered by it.
    """
    qtyping, quantizer = require_quantizer()
    model, graph = file.model, file.model.subgraphs[0]
    if set(plan.operators) <= set(plan.own_kernels):
        return file  # ai-edge-quantizer refuses to work without a rule.
    writer = quantizer.Quantizer(file.contents)
    for index in plan.operators:
        operator = graph.operators[index]
        name = flatbuffer.operator_name(model, operator)
        if index in plan.own_kernels:
            continue
        scope = ";".join(flatbuffer.text(graph.tensors[i].name) for i in operator.outputs)
        try:
            writer.add_static_config(
                f"^{scope};?$", qtyping.TFLOperationName(_NAMES.get(name, name)), 8, 8
            )
        except ValueError as error:
            raise ConversionError(
                f"Operator {name} that makes tensor {scope!r} has no int8 form in "
                f"ai-edge-quantizer ({error}). Replace the layer."
            ) from error
    with _quiet():
        result = writer.quantize(
            _ranges(model, graph, plan), enable_progress_bar=False, enable_progress_report=False
        )
    return TFLiteFile(bytes(result.quantized_model))


def _share(model: ModelT, graph: SubGraphT, operators: list[int], known: dict[int, Any]) -> None:
    """Propagates quantization in both directions through operators that cannot rescale."""
    floats = set(activation_tensors(model, graph))
    changed = True
    while changed:
        changed = False
        for operator in (graph.operators[index] for index in operators):
            name = flatbuffer.operator_name(model, operator)
            made, read = int(operator.outputs[0]), int(operator.inputs[0])
            if name in _CLIPPING and made in known and read not in known:
                known[read], changed = known[made], True
            if name not in _INHERITED_SCALES:
                continue
            group = [i for i in (*operator.outputs, *operator.inputs) if i in floats]
            found = [known[i] for i in group if i in known]
            if not found:
                continue
            if name in _SHARED_SCALES - {"CONCATENATION"} and len(set(found)) > 1:
                raise ConversionError(
                    f"{name} that makes {_describe(model, graph, operator.outputs[0])} cannot "
                    f"rescale, but its tensors have different quantization: {found}."
                )
            for index in group:
                if index not in known:
                    known[index], changed = found[0], True


def _is_by_us(model: ModelT, operator: OperatorT, known: dict[int, Any]) -> bool:
    name = flatbuffer.operator_name(model, operator)
    # Of tensors on several grids, ai-edge-quantizer has all written on that of the result, though
    # the kernel of a sigmoid, say, writes on one grid only.
    grids = {known[int(i)] for i in (*operator.inputs, *operator.outputs) if int(i) in known}
    return name == "LEAKY_RELU" or name == "CONCATENATION" and len(grids) > 1


def _ranges(model: ModelT, graph: SubGraphT, plan: Plan) -> dict[str, dict[str, np.ndarray]]:
    """QSVs of ai-edge-quantizer: minima and maxima that reproduce our scales exactly."""
    ranges = {}
    for index, precision in plan.activations.items():
        step = np.float64(np.float32(precision.step))
        zero_point = tflite_zero_point(precision)
        shape = (1,) * len(graph.tensors[index].shape)
        ranges[flatbuffer.text(graph.tensors[index].name)] = {
            "min": np.full(shape, step * (-128 - zero_point)),
            "max": np.full(shape, step * (127 - zero_point)),
        }
    for index, weights in plan.weights.items():
        operator = graph.operators[index]
        source = plan.activations[operator.inputs[folding.data_operand(weights.kind)]]
        bias_scales = np.float32(source.step) * weights.scales.astype(np.float64)
        if (np.abs(weights.bias / bias_scales) > _LARGEST_INT32).any():
            raise ConversionError(
                f"{weights.path}: the bias does not fit into int32 at the scale of its input."
            )
        tensor = graph.tensors[operator.inputs[folding.OPERANDS[weights.kind][0]]]
        bound = _bound_shape(weights, len(tensor.shape))
        ranges[flatbuffer.text(tensor.name)] = {"min": -bound, "max": bound}
    return ranges


def _bound_shape(weights: FoldedWeights, rank: int) -> np.ndarray:
    shape = [1] * rank
    shape[weights.channel_axis] = -1
    return weights.scales.astype(np.float64).reshape(shape) * 127


def _describe(model: ModelT, graph: SubGraphT, index: int) -> str:
    shape = tuple(int(n) for n in graph.tensors[index].shape)
    for operator in graph.operators:
        if index in operator.outputs:
            name = flatbuffer.operator_name(model, operator)
            return f"Tensor {index} (shape {shape}, made by {name})"
    return f"Input tensor {index} (shape {shape})"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences ai-edge-quantizer, which prints and logs its progress."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
