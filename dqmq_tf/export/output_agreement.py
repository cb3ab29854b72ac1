"""How far the outputs of a file are from those of its model, in steps of the output's grid."""

import dataclasses

import numpy as np

from dqmq_tf import flatbuffer

# An input is clear if its largest output leads by more than an eighth of the grid.
_CLEAR_QUANTA = 32.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Figures of a comparison, as `RuntimeReport` describes them."""

    samples: int
    top1_agreement: float
    clear: int
    clear_agreement: float
    largest_quanta: float
    mean_quanta: float


def is_classification(expected):
    """Whether any output is compared by its largest entry too."""
    return any(_has_classes(reference) for reference in expected)


def compare(found, expected, steps):
    """Compares outputs.

    Args:
        found: Arrays `[samples, ...]`, one per output.
        expected: Arrays of the same shapes, of the model.
        steps: Step of each output's grid.

    Returns:
        `Agreement`.
    """
    samples = len(found[0])
    quanta, agrees, clear = [], np.ones(samples, bool), np.ones(samples, bool)
    for values, reference, step in zip(found, expected, steps):
        quanta.append((np.abs(values.astype(np.float64) - reference) / step).ravel())
        if _has_classes(reference):
            agrees &= values.argmax(-1) == reference.argmax(-1)
            ranked = np.sort(reference, axis=-1)
            clear &= (ranked[:, -1] - ranked[:, -2]) / step > _CLEAR_QUANTA
    quanta = np.concatenate(quanta)
    return Agreement(
        samples=samples,
        top1_agreement=float(agrees.mean()),
        clear=int(clear.sum()),
        clear_agreement=float(agrees[clear].mean()) if clear.any() else 1.0,
        largest_quanta=float(quanta.max()),
        mean_quanta=float(quanta.mean()),
    )


def allowed(agreement, clear):
    """Disagreements that are no evidence against a share of agreement: three deviations."""
    expected = (1 - agreement) * clear
    return max(1, int(expected + 3 * np.sqrt(expected * agreement)))


def output_steps(model, expected):
    """Step of each output's grid; that of 8 bits over its range where it is in floating point.

    Args:
        model: `ModelT`.
        expected: What the model puts out, one array per output of the first signature.
    """
    indices = [entry.tensorIndex for entry in model.signatureDefs[0].outputs]
    return [_step(model, index, reference) for index, reference in zip(indices, expected)]


def _step(model, index, reference):
    graph = model.subgraphs[0]
    for operator in graph.operators:
        name = flatbuffer.operator_name(model, operator)
        if index in operator.outputs and name == "DEQUANTIZE" and len(operator.inputs):
            index = operator.inputs[0]
    quantization = graph.tensors[index].quantization
    if quantization is not None and quantization.scale is not None and len(quantization.scale):
        return float(quantization.scale[0])
    return max(float(np.ptp(reference)), 1e-6) / 255


def _has_classes(reference):
    return reference.ndim == 2 and reference.shape[1] > 1
