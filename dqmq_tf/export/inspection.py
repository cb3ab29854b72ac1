"""Comparison of what stands in a file with what the model holds, number by number."""

import numpy as np

from dqmq_tf.export import flatbuffer
from dqmq_tf.export.quantization import tflite_zero_point


def differences(model, skeleton, activations=None):
    """Compares a finished file with its skeleton.

    Args:
        model: `ModelT` of the file.
        skeleton: `Skeleton`.
        activations: `{key: ActivationPrecision}` to expect beyond those of the skeleton.

    Returns:
        `(figures, messages)`: counts of compared and different numbers, and one message per
        tensor that differs.
    """
    graph = model.subgraphs[0]
    tensors = {flatbuffer.text(tensor.name): tensor for tensor in graph.tensors}
    figures = dict(integers=0, scales=0, zero_points=0, biases=0, different=0)
    messages = []

    def compare(kind, label, found, expected):
        found, expected = np.asarray(found).ravel(), np.asarray(expected).ravel()
        figures[kind] += expected.size
        count = expected.size if found.size != expected.size else int((found != expected).sum())
        if count:
            figures["different"] += count
            messages.append(f"{label}: {count} of {expected.size} {kind} differ")

    for key, precision in (skeleton.quantization | (activations or {})).items():
        if key in tensors:
            found = tensors[key].quantization
            compare("scales", key, found.scale, np.float32(precision.step))
            compare("zero_points", key, found.zeroPoint, tflite_zero_point(precision))
    for number, weights in enumerate(skeleton.weights):
        tensor = tensors.get(f"w{number}")
        if tensor is None:
            figures["different"] += weights.integers.size
            messages.append(f"{weights.site}: its weights are not in the file")
            continue
        compare("integers", weights.site, flatbuffer.constant(model, tensor), weights.integers)
        compare("scales", weights.site, tensor.quantization.scale, weights.scales)
        compare(
            "zero_points",
            weights.site,
            tensor.quantization.zeroPoint,
            np.zeros(len(weights.scales)),
        )
        for operator in graph.operators:
            inputs = list(operator.inputs)
            if len(inputs) > 1 and inputs[1] >= 0 and graph.tensors[inputs[1]] is tensor:
                step = graph.tensors[inputs[0]].quantization.scale[0]
                expected = weights.bias_integers(step)
                if len(inputs) > 2 and inputs[2] >= 0:
                    found = flatbuffer.constant(model, graph.tensors[inputs[2]])
                else:
                    found = np.zeros_like(expected)
                compare("biases", weights.site, found, expected)
    return figures, messages
