"""Decides the scale and zero point of each tensor of the file, and writes them.

`plan` takes them from the lowered model, so nothing is calibrated. `quantize` passes them to
litert-quantizer as ranges, with one rule for each operator to quantize. All other operators stay
in floating point.
"""

import contextlib
import dataclasses
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import ModelT, OperatorT, SubGraphT, TFLiteFile, activation_tensors
from dqmq_tf.lowering import folding
from dqmq_tf.lowering.folding import FoldedWeights
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.lowering.tensor_matching import Match
from dqmq_tf.precision import ActivationPrecision, tflite_zero_point

# The integer kernels of these operators cannot rescale values: their tensors share one scale.
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
        "GATHER",
        "MIRROR_PAD",
    }
)
# Operators whose tensors get the scale of the others if they have none of their own.
_INHERITED_SCALES = _SHARED_SCALES | {"MEAN"}
# An unsigned grid already clips at zero, so the input of a ReLU shares the quantization of its
# output.
_CLIPPING = ("RELU", "RELU6")
# What litert-quantizer calls an operator, if it does not use TFLite's name.
_QUANTIZER_NAMES = {"TRANSPOSE_CONV": "CONV_2D_TRANSPOSE"}
# Operators that litert-quantizer does not know, although runtimes have int8 kernels of them.
_UNSUPPORTED = ("LEAKY_RELU", "RELU6")
_LARGEST_INT32 = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The quantization of a file.

    Attributes:
        activations: `{tensor index: ActivationPrecision}`. A tensor without an entry stays in
            floating point.
        weights: `{operator index: FoldedWeights}`.
        operators: The indices of the operators to quantize.
        merged: The indices of those among them that `integer_kernels.merge_kernels` quantizes,
            because litert-quantizer does not support them.
    """

    activations: dict[int, ActivationPrecision]
    weights: dict[int, FoldedWeights]
    operators: tuple[int, ...]
    merged: tuple[int, ...] = ()


def plan(model: ModelT, match: Match, lowered: LoweredModel) -> Plan:
    """Decides the quantization of every tensor of a float file.

    Args:
        model: The `ModelT` of the float file.
        match: The `Match` of the file and its lowered model.
        lowered: The `LoweredModel`.

    Returns:
        A `Plan`.

    Raises:
        ConversionError: If the quantization of a tensor is unknown, or if tensors that must share
            one have different ones.
    """
    graph = model.subgraphs[0]
    precisions = {
        index: lowered.quantization[key]
        for index, key in match.tensors.items()
        if key in lowered.quantization
    }
    operators = [i for i in range(len(graph.operators)) if i not in match.floating]
    _propagate(model, graph, operators, precisions)
    float_tensors = set(activation_tensors(model, graph))
    for index in operators:
        operator = graph.operators[index]
        for i in (*operator.inputs, *operator.outputs):
            if i in float_tensors and i not in precisions:
                raise ConversionError(
                    f"{_describe(model, graph, i)} has no range: the converter added it inside "
                    f"layer {match.paths.get(index)!r}. Keep that layer in floating point with "
                    "dqmq_tf.LayerRule(pattern=..., quantize=False), and please report the model."
                )
    return Plan(
        activations=precisions,
        weights=match.weights,
        operators=tuple(operators),
        merged=tuple(i for i in operators if _needs_merge(model, graph.operators[i], precisions)),
    )


def require_quantizer() -> tuple[Any, Any]:
    """Returns the modules `qtyping` and `quantizer` of litert-quantizer.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        from litert_quantizer import qtyping, quantizer
    except ImportError as error:
        raise ImportError(
            "Quantizing .tflite files needs litert-quantizer: pip install litert-quantizer"
        ) from error
    return qtyping, quantizer


def quantize(file: TFLiteFile, plan: Plan) -> TFLiteFile:
    """Writes a plan into a float file.

    Args:
        file: The float `TFLiteFile`, whose tensors have unique short names.
        plan: The `Plan`.

    Returns:
        The quantized `TFLiteFile`, or `file` itself if the plan has no operator for
        litert-quantizer.

    Raises:
        ImportError: If `litert-quantizer` is not installed.
        ConversionError: If it does not support an operator, or if LiteRT cannot run one.
    """
    qtyping, quantizer = require_quantizer()
    model, graph = file.model, file.model.subgraphs[0]
    if set(plan.operators) <= set(plan.merged):
        # litert-quantizer raises an error if it gets no rule.
        return file
    writer = quantizer.Quantizer(file.contents)
    for index in plan.operators:
        operator = graph.operators[index]
        name = flatbuffer.operator_name(model, operator)
        if index in plan.merged:
            continue
        scope = ";".join(flatbuffer.text(graph.tensors[i].name) for i in operator.outputs)
        try:
            writer.add_static_config(
                f"^{scope};?$", qtyping.TFLOperationName(_QUANTIZER_NAMES.get(name, name)), 8, 8
            )
        except ValueError as error:
            raise ConversionError(
                f"Operator {name}, which computes tensor {scope!r}, has no int8 form in "
                f"litert-quantizer ({error}). Replace the layer."
            ) from error
    ranges = _ranges(model, graph, plan)
    with _quiet():
        try:
            result = writer.quantize(
                ranges, enable_progress_bar=False, enable_progress_report=False
            )
        except (RuntimeError, ValueError) as error:
            # It runs the file in LiteRT.
            raise ConversionError(
                f"litert-quantizer cannot quantize the file: {error}. Replace the layer that "
                "becomes this operator, or keep it outside the converted model."
            ) from error
    return TFLiteFile(bytes(result.quantized_model))


def _propagate(
    model: ModelT,
    graph: SubGraphT,
    operators: Sequence[int],
    precisions: dict[int, ActivationPrecision],
) -> None:
    """Propagates quantization in both directions through operators whose tensors share it.

    Args:
        model: The `ModelT` of the float file.
        graph: Its subgraph.
        operators: The indices of the operators to quantize.
        precisions: `{tensor index: ActivationPrecision}`. Tensors without an entry get one.

    Raises:
        ConversionError: If the tensors of an operator that cannot rescale have different ones.
    """
    float_tensors = set(activation_tensors(model, graph))
    has_changed = True
    while has_changed:
        has_changed = False
        for operator in (graph.operators[index] for index in operators):
            name = flatbuffer.operator_name(model, operator)
            source, result = int(operator.inputs[0]), int(operator.outputs[0])
            if name in _CLIPPING and result in precisions and source not in precisions:
                precisions[source], has_changed = precisions[result], True
            if name not in _INHERITED_SCALES:
                continue
            group = [i for i in (*operator.outputs, *operator.inputs) if i in float_tensors]
            known = [precisions[i] for i in group if i in precisions]
            if not known:
                continue
            if name in _SHARED_SCALES - {"CONCATENATION"} and len(set(known)) > 1:
                raise ConversionError(
                    f"{name} cannot rescale, but its tensors have different quantization: {known}. "
                    f"Its output: {_describe(model, graph, operator.outputs[0])}. Please report "
                    "the model."
                )
            for index in group:
                if index not in precisions:
                    precisions[index], has_changed = known[0], True


def _needs_merge(
    model: ModelT, operator: OperatorT, precisions: Mapping[int, ActivationPrecision]
) -> bool:
    """Returns whether litert-quantizer cannot quantize an operator as planned.

    It does not support LEAKY_RELU, nor a RELU6 that is not fused, as behind a TRANSPOSE_CONV without
    a bias. It gives all tensors of an operator the same bit-width, and
    computes its own scales of 16 bits (see `int16_kernels`). It quantizes all inputs of a
    CONCATENATION to the grid of the output, although a kernel that computes one of them may support
    only one grid, such as that of a sigmoid.
    """
    name = flatbuffer.operator_name(model, operator)
    tensors = [int(i) for i in (*operator.inputs, *operator.outputs)]
    grids = {precisions[i] for i in tensors if i in precisions}
    is_int16 = any(grid.is_int16 for grid in grids)
    return is_int16 or name in _UNSUPPORTED or name == "CONCATENATION" and len(grids) > 1


def _ranges(model: ModelT, graph: SubGraphT, plan: Plan) -> dict[str, dict[str, np.ndarray]]:
    """Returns the ranges from which litert-quantizer computes exactly the planned scales.

    Returns:
        `{tensor name: {"min": array, "max": array}}`.
    """
    ranges = {}
    for index, precision in plan.activations.items():
        if precision.is_int16:
            continue
        step = np.float64(np.float32(precision.step))
        zero_point = tflite_zero_point(precision)
        shape = (1,) * len(graph.tensors[index].shape)
        ranges[flatbuffer.text(graph.tensors[index].name)] = {
            "min": np.full(shape, step * (-128 - zero_point)),
            "max": np.full(shape, step * (127 - zero_point)),
        }
    for index, weights in plan.weights.items():
        if index in plan.merged:
            continue
        operator = graph.operators[index]
        source = plan.activations[operator.inputs[folding.data_operand(weights.kind)]]
        bias_scales = np.float32(source.step) * weights.scales.astype(np.float64)
        if (np.abs(weights.bias / bias_scales) > _LARGEST_INT32).any():
            raise ConversionError(
                f"{weights.path}: the bias does not fit into int32 in units of the input's step "
                f"({source.step}) times the weights' scale. Keep the layer in floating point with "
                "dqmq_tf.LayerRule(pattern=..., quantize=False)."
            )
        tensor = graph.tensors[operator.inputs[folding.OPERANDS[weights.kind][0]]]
        bound_shape = [1] * len(tensor.shape)
        bound_shape[weights.channel_axis] = -1
        bound = weights.scales.astype(np.float64).reshape(bound_shape) * 127
        ranges[flatbuffer.text(tensor.name)] = {"min": -bound, "max": bound}
    return ranges


def _describe(model: ModelT, graph: SubGraphT, index: int) -> str:
    """Returns a description of a tensor for error messages."""
    shape = tuple(int(n) for n in graph.tensors[index].shape)
    for operator in graph.operators:
        if index in operator.outputs:
            name = flatbuffer.operator_name(model, operator)
            return f"Tensor {index} (shape {shape}, computed by {name})"
    return f"Input tensor {index} (shape {shape})"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what litert-quantizer prints, logs and warns about."""
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
