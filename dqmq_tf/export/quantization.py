"""Quantization of the float file: every range is handed over, nothing is calibrated.

`plan` decides the scale and zero point of each tensor of the file; `quantize` has
ai-edge-quantizer write them, with one rule per operator, so that an operator without a rule stays
in floating point by intention and never by accident.
"""

import contextlib
import dataclasses
import io
import logging
import warnings

import numpy as np

from dqmq_tf.export import flatbuffer
from dqmq_tf.export.errors import ConversionError
from dqmq_tf.export.matching import activation_tensors
from dqmq_tf.precision import ActivationPrecision

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
        "BROADCAST_TO",
        "CONCATENATION",
    }
)
_INHERITED_SCALES = _SHARED_SCALES | {"MEAN"}
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_LARGEST_INT32 = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the file shall hold.

    Attributes:
        activations: `{tensor index: ActivationPrecision}`; a tensor without entry stays float.
        weights: `{operator index: FoldedWeights}`.
        operators: Indices of the operators to quantize.
        measured: Tensors whose range was measured on data, because training set none.
    """

    activations: dict
    weights: dict
    operators: tuple
    measured: tuple


def plan(model, match, skeleton, data=None):
    """Decides the quantization of every tensor of a float file.

    Args:
        model: `ModelT` of the float file.
        match: `Match` of the file and its skeleton.
        skeleton: `Skeleton`.
        data: Arrays to measure ranges on that training did not set, or None.

    Returns:
        `Plan`.

    Raises:
        ConversionError: If a tensor has no range, or tensors that must share one do not.
    """
    graph = model.subgraphs[0]
    known = _known(model, graph, match, skeleton)
    measured = []
    while True:
        _share(model, graph, known)
        operators, missing = _quantized_operators(model, graph, match, known)
        if not missing:
            break
        for index in missing:
            keys = match.tensors.get(index, ())
            known[index] = _measure(skeleton, keys, data, _describe(model, graph, index))
            measured.append(keys[0])
    return Plan(
        activations=known, weights=match.weights, operators=operators, measured=tuple(measured)
    )


def require_quantizer():
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


def quantize(model, plan):
    """Writes a plan into a float file.

    Args:
        model: `ModelT` of the float file, with unique short tensor names.
        plan: `Plan`.

    Returns:
        Contents of the quantized file.

    Raises:
        ImportError: If `ai-edge-quantizer` is not installed.
        ConversionError: If an operator is not covered by it.
    """
    qtyping, quantizer = require_quantizer()
    graph = model.subgraphs[0]
    writer = quantizer.Quantizer(flatbuffer.write(model))
    for index in plan.operators:
        operator = graph.operators[index]
        name = flatbuffer.operator_name(model, operator)
        scope = ";".join(flatbuffer.text(graph.tensors[i].name) for i in operator.outputs)
        try:
            writer.add_static_config(f"^{scope};?$", qtyping.TFLOperationName(name), 8, 8)
        except ValueError as error:
            raise ConversionError(
                f"Operator {name} that makes tensor {scope!r} has no int8 form in "
                f"ai-edge-quantizer ({error}). Replace the layer."
            ) from error
    with _quiet():
        result = writer.quantize(
            _ranges(model, graph, plan), enable_progress_bar=False, enable_progress_report=False
        )
    return bytes(result.quantized_model)


def tflite_zero_point(precision):
    """int8 zero point of an 8-bit activation."""
    return precision.zero_point - 128


def _known(model, graph, match, skeleton):
    """Quantization that training set, by tensor index."""
    known, contested = {}, {}
    for index, keys in match.tensors.items():
        found = dict.fromkeys(
            skeleton.quantization[key] for key in keys if key in skeleton.quantization
        )
        if len(found) == 1:
            known[index] = next(iter(found))
        elif found:
            contested.setdefault(tuple(found), []).append(index)
    for found, indices in contested.items():
        # Equal values, different grids: both sides stand in execution order.
        if len(found) != len(indices):
            names = ", ".join(_describe(model, graph, index) for index in indices)
            raise ConversionError(
                f"{len(found)} tensors of the model have the same values as {names}, with "
                "different quantization. Remove the layer that changes nothing."
            )
        known |= zip(indices, found)
    return known


def _share(model, graph, known):
    """Hands quantization on through operators that cannot rescale, both ways."""
    floats = set(activation_tensors(model, graph))
    changed = True
    while changed:
        changed = False
        for operator in graph.operators:
            name = flatbuffer.operator_name(model, operator)
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


def _quantized_operators(model, graph, match, known):
    floats = set(activation_tensors(model, graph))
    operators, missing = [], []
    for index, operator in enumerate(graph.operators):
        tensors = [i for i in (*operator.inputs, *operator.outputs) if i in floats]
        unknown = [i for i in tensors if i not in known]
        weighted = flatbuffer.operator_name(model, operator) in _WEIGHTED
        if weighted and index not in match.weights or len(unknown) == len(tensors) and not weighted:
            continue  # The user's rules leave it in floating point.
        operators.append(index)
        missing.extend(i for i in unknown if i not in missing)
    return tuple(operators), missing


def _measure(skeleton, keys, data, description):
    if not keys:
        raise ConversionError(
            f"{description} matches no tensor of the model: the converter rewrote the layers "
            "around it. Please report the model."
        )
    if data is None:
        raise ConversionError(
            f"{description} needs a range that training did not set. Pass typical inputs as "
            "data=..., or make it a layer of its own before quantize_model."
        )
    values = skeleton.values(data)[keys[0]]
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    step = float(np.float32(max(high - low, 1e-6) / 255))
    return ActivationPrecision(step=step, zero_point=int(np.rint(-low / step)), bit_width=8)


def _ranges(model, graph, plan):
    """QSVs of ai-edge-quantizer: minima and maxima that give back our scales to the bit."""
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
        source = plan.activations[operator.inputs[0]]
        bias_scales = np.float32(source.step) * weights.scales.astype(np.float64)
        if (np.abs(weights.bias / bias_scales) > _LARGEST_INT32).any():
            raise ConversionError(
                f"{weights.site}: the bias does not fit into int32 at the scale of its input."
            )
        tensor = graph.tensors[operator.inputs[1]]
        bound = _bound_shape(weights, len(tensor.shape))
        ranges[flatbuffer.text(tensor.name)] = {"min": -bound, "max": bound}
    return ranges


def _bound_shape(weights, rank):
    shape = [1] * rank
    shape[-1 if weights.kind == "DEPTHWISE_CONV_2D" else 0] = -1
    return weights.scales.astype(np.float64).reshape(shape) * 127


def _describe(model, graph, index):
    shape = tuple(int(n) for n in graph.tensors[index].shape)
    for operator in graph.operators:
        if index in operator.outputs:
            name = flatbuffer.operator_name(model, operator)
            return f"Tensor {index} (shape {shape}, made by {name})"
    return f"Input tensor {index} (shape {shape})"


@contextlib.contextmanager
def _quiet():
    """ai-edge-quantizer prints and logs its progress."""
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
