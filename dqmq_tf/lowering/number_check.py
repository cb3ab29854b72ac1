"""Compares every number in a file with the lowered model."""

from typing import Any

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.flatbuffer import ModelT
from dqmq_tf.lowering import folding
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.lowering.stored_weights import StoredWeights
from dqmq_tf.precision import ActivationPrecision, tflite_zero_point


def differences(
    model: ModelT, lowered: LoweredModel, activations: dict[str, ActivationPrecision] | None = None
) -> tuple[dict[str, int], list[str]]:
    """Compares a finished file with its lowered model.

    Args:
        model: `ModelT` of the file.
        lowered: `LoweredModel`.
        activations: `{key: ActivationPrecision}` to expect besides the lowered model's.

    Returns:
        `(figures, messages)`: counts of compared and different numbers, and one message per
        tensor that differs.
    """
    graph = model.subgraphs[0]
    tensors = {flatbuffer.text(tensor.name): tensor for tensor in graph.tensors}
    figures = dict(integers=0, scales=0, zero_points=0, biases=0, different=0)
    messages = []

    def compare(kind: str, label: str, found: Any, expected: Any) -> None:
        found, expected = np.asarray(found).ravel(), np.asarray(expected).ravel()
        figures[kind] += expected.size
        count = expected.size if found.size != expected.size else int((found != expected).sum())
        if count:
            figures["different"] += count
            messages.append(f"{label}: {count} of {expected.size} {kind} differ")

    for key, precision in (lowered.quantization | (activations or {})).items():
        if key in tensors and not _stays_float(key, tensors[key], lowered):
            found = tensors[key].quantization
            compare("scales", key, found.scale, np.float32(precision.step))
            compare("zero_points", key, found.zeroPoint, tflite_zero_point(precision))
    for number, weights in enumerate(lowered.weights):
        tensor = tensors.get(f"w{number}")
        if tensor is None:
            figures["different"] += weights.integers.size
            messages.append(f"{weights.path}: its weights are not in the file")
            continue
        found = flatbuffer.constant(model, tensor)
        integers, scales = weights.integers, weights.scales
        if isinstance(weights, StoredWeights):
            integers, scales = _nearest_layout(weights, found)
        compare("integers", weights.path, found, integers)
        count = len(tensor.quantization.scale)
        if count == 1 and not np.ptp(scales):
            scales = scales[:1]
        compare("scales", weights.path, tensor.quantization.scale, scales)
        compare("zero_points", weights.path, tensor.quantization.zeroPoint, np.zeros(count))
        if isinstance(weights, StoredWeights):
            continue
        kernel, bias = folding.OPERANDS[weights.kind]
        for operator in graph.operators:
            inputs = list(operator.inputs)
            if len(inputs) <= kernel or inputs[kernel] < 0:
                continue
            if graph.tensors[inputs[kernel]] is not tensor:
                continue
            source = graph.tensors[inputs[folding.data_operand(weights.kind)]]
            expected = weights.bias_integers(source.quantization.scale[0])
            found = np.zeros_like(expected)
            if len(inputs) > bias and inputs[bias] >= 0:
                found = flatbuffer.constant(model, graph.tensors[inputs[bias]])
            compare("biases", weights.path, found, expected)
    return figures, messages


def _stays_float(key: str, tensor: Any, lowered: LoweredModel) -> bool:
    """Returns whether a tensor connects two floating-point layers and is not quantized."""
    return key in lowered.floating and flatbuffer.type_name(tensor) == "FLOAT32"


def _nearest_layout(weights: StoredWeights, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the integers and scales in the layout that differs least from the file."""
    layouts = list(weights.layouts(found.shape)) or [(weights.integers, weights.scales, 0)]
    integers, scales, _ = min(
        layouts,
        key=lambda layout: (
            found.size if layout[0].size != found.size else (layout[0] != found).sum()
        ),
    )
    return integers, scales
