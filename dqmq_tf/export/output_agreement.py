"""Compares the outputs of a file with those of its model, in steps of the output's grid."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.flatbuffer import ModelT

# An input is clear if its largest output leads by more than an eighth of the grid.
_CLEAR_QUANTA = 32.0
# An output that varies by a smaller share of its largest value is all but constant.
_LEAST_SPREAD = 1 / 8
_TINY = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """The result of a comparison. `RuntimeReport` describes the attributes."""

    samples: int
    top1_agreement: float
    clear: int
    clear_agreement: float
    largest_quanta: float
    mean_quanta: float


def is_classification(expected: Sequence[np.ndarray]) -> bool:
    """Returns whether the largest entry of any output is compared as well."""
    return any(_has_classes(reference) for reference in expected)


def compare(
    found: Sequence[np.ndarray], expected: Sequence[np.ndarray], steps: Sequence[float]
) -> Agreement:
    """Compares the outputs of a file with those of its model.

    Args:
        found: The outputs of the file, one array `[samples, ...]` per output.
        expected: The outputs of the model, with the same shapes.
        steps: The step of each output's grid.
    """
    samples = len(found[0])
    differences: list[np.ndarray] = []
    agrees, clear = np.ones(samples, bool), np.ones(samples, bool)
    for values, reference, step in zip(found, expected, steps):
        differences.append(np.abs(values.astype(np.float64) - reference) / step)
        if _has_classes(reference):
            agrees &= values.argmax(-1) == reference.argmax(-1)
            ranked = np.sort(reference, axis=-1)
            clear &= (ranked[:, -1] - ranked[:, -2]) / step > _CLEAR_QUANTA
    return Agreement(
        samples=samples,
        top1_agreement=float(agrees.mean()),
        clear=int(clear.sum()),
        clear_agreement=float(agrees[clear].mean()) if clear.any() else 1.0,
        largest_quanta=float(max(quanta.max() for quanta in differences)),
        mean_quanta=float(max(quanta.mean() for quanta in differences)),
    )


def allowed(agreement: float, clear: int) -> int:
    """Returns the number of inputs that may disagree: the expected one plus three deviations.

    Args:
        agreement: The required share of inputs that agree.
        clear: The number of inputs that are compared.
    """
    expected = (1 - agreement) * clear
    return max(1, int(expected + 3 * np.sqrt(expected * agreement)))


def output_steps(model: ModelT, expected: Sequence[np.ndarray]) -> list[float]:
    """Returns the step of each output's grid.

    For an output in floating point, it is the step of an 8-bit grid over the range of the output. If
    the output is all but constant, a share of its largest value takes the place of the range: the
    rounding of the tensors before it does not become small because the output does not vary.

    An output of 16 bits counts as one of 8 if the file has other tensors of 8 bits: where runtimes
    round one of these differently, the output differs by the same amount.

    Args:
        model: The file.
        expected: The outputs of the model, one array per output of the first signature.
    """
    indices = [entry.tensorIndex for entry in model.signatureDefs[0].outputs]
    return [_step(model, index, reference) for index, reference in zip(indices, expected)]


def _step(model: ModelT, index: int, reference: np.ndarray) -> float:
    graph = model.subgraphs[0]
    for operator in graph.operators:
        name = flatbuffer.operator_name(model, operator)
        if index in operator.outputs and name == "DEQUANTIZE" and len(operator.inputs):
            index = operator.inputs[0]
    quantization = graph.tensors[index].quantization
    if quantization is not None and quantization.scale is not None and len(quantization.scale):
        return float(quantization.scale[0]) * inherited_rounding(model, index)
    return max(_spreads(reference)) / 255


def all_but_constant(expected: Sequence[np.ndarray]) -> list[int]:
    """Returns the positions of the outputs that are all but constant, whose steps say little.

    Args:
        expected: The outputs of the model.
    """
    spreads = map(_spreads, expected)
    return [i for i, (spread, least) in enumerate(spreads) if spread < least]


def _spreads(reference: np.ndarray) -> tuple[float, float]:
    """Returns the spread of an output, and the one below which it is all but constant."""
    values = reference.astype(np.float64)
    return float(np.ptp(values)), max(_LEAST_SPREAD * float(np.abs(values).max()), _TINY)


def inherited_rounding(model: ModelT, index: int) -> float:
    """Returns in how many of its own steps a tensor differs where a tensor of 8 bits differs by one.

    Args:
        model: The file.
        index: The index of a quantized tensor of the first subgraph.

    Returns:
        256 for a tensor of 16 bits in a file that has activations of 8 bits as well, else 1.
    """
    graph = model.subgraphs[0]
    types = {
        flatbuffer.type_name(tensor)
        for tensor in graph.tensors
        if not flatbuffer.is_constant(model, tensor)
    }
    is_int16 = flatbuffer.type_name(graph.tensors[index]) == "INT16"
    return 256.0 if is_int16 and "INT8" in types else 1.0


def _has_classes(reference: np.ndarray) -> bool:
    return reference.ndim == 2 and reference.shape[1] > 1
