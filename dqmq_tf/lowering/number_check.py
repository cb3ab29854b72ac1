"""Compares every number in a file with the lowered model."""

from typing import Any

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.flatbuffer import ModelT, TensorT
from dqmq_tf.lowering import folding
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.lowering.stored_weights import StoredWeights
from dqmq_tf.precision import ActivationPrecision, tflite_zero_point


def differences(
    model: ModelT, lowered: LoweredModel, activations: dict[str, ActivationPrecision] | None = None
) -> tuple[dict[str, int], list[str]]:
    """Compares a finished file with its lowered model.

    Args:
        model: The `ModelT` of the file.
        lowered: The `LoweredModel`.
        activations: `{key: ActivationPrecision}` of further tensors to compare. It takes precedence
            over the quantization of the lowered model.

    Returns:
        `(counts, messages)`. The counts are those of the compared `"integers"`, `"scales"`,
        `"zero_points"` and `"biases"`, and of the `"different"` numbers among them. There is one
        message for each tensor and kind of number with differences.
    """
    graph = model.subgraphs[0]
    tensors = {flatbuffer.text(tensor.name): tensor for tensor in graph.tensors}
    counts = dict(integers=0, scales=0, zero_points=0, biases=0, different=0)
    messages = []

    def compare(kind: str, label: str, actual: Any, expected: Any) -> None:
        actual, expected = np.asarray(actual).ravel(), np.asarray(expected).ravel()
        counts[kind] += expected.size
        has_same_size = actual.size == expected.size
        different = int((actual != expected).sum()) if has_same_size else expected.size
        if different:
            counts["different"] += different
            messages.append(f"{label}: {different} of {expected.size} {kind} differ")

    for key, precision in (lowered.quantization | (activations or {})).items():
        if key in tensors and not _stays_float(key, tensors[key], lowered):
            quantization, path = tensors[key].quantization, lowered.paths.get(key)
            label = f"the output of {path!r}" if path else f"input tensor {key}"
            compare("scales", label, quantization.scale, np.float32(precision.step))
            compare("zero_points", label, quantization.zeroPoint, tflite_zero_point(precision))
    for number, weights in enumerate(lowered.weights):
        tensor = tensors.get(f"w{number}")
        if tensor is None:
            counts["different"] += weights.integers.size
            messages.append(f"{weights.path}: its weights are not in the file")
            continue
        constant = flatbuffer.constant(model, tensor)
        integers, scales = weights.integers, weights.scales
        if isinstance(weights, StoredWeights):
            integers, scales = _nearest_layout(weights, constant)
        compare("integers", weights.path, constant, integers)
        scale_count = len(tensor.quantization.scale)
        if scale_count == 1 and not np.ptp(scales):
            scales = scales[:1]
        compare("scales", weights.path, tensor.quantization.scale, scales)
        compare("zero_points", weights.path, tensor.quantization.zeroPoint, np.zeros(scale_count))
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
            # An operator without a bias adds zeros.
            actual = np.zeros_like(expected)
            if len(inputs) > bias and inputs[bias] >= 0:
                actual = flatbuffer.constant(model, graph.tensors[inputs[bias]])
            compare("biases", weights.path, actual, expected)
    return counts, messages


def _stays_float(key: str, tensor: TensorT, lowered: LoweredModel) -> bool:
    """Returns whether a tensor connects two floating-point layers and is not quantized."""
    return key in lowered.floating and flatbuffer.type_name(tensor) == "FLOAT32"


def _nearest_layout(weights: StoredWeights, constant: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the integers and scales in the layout that differs least from a constant."""
    layouts = list(weights.layouts(constant.shape)) or [(weights.integers, weights.scales, 0)]

    def difference(layout: tuple[np.ndarray, np.ndarray, int]) -> int:
        integers = layout[0]
        if integers.size != constant.size:
            return constant.size
        return int((integers != constant).sum())

    integers, scales, _ = min(layouts, key=difference)
    return integers, scales
