"""Finds the first tensor of a file that departs from the simulation."""

from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from dqmq_tf import flatbuffer, runtimes
from dqmq_tf.errors import VerificationError
from dqmq_tf.export.output_agreement import inherited_rounding
from dqmq_tf.flatbuffer import SubGraphT, TFLiteFile
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.runtimes.random_inputs import INT8_ENDS, INT16_ENDS

_DEPARTURE_QUANTA = 4.0


def first_divergence(
    file: TFLiteFile, inputs: Sequence[np.ndarray], simulated: LoweredModel, runtime: str
) -> str:
    """Returns a sentence that names the first tensor that departs from the simulation.

    Args:
        file: The file to run.
        inputs: Arrays with a batch dimension, in the model's order. Only the first sample is run.
        simulated: The model, with simulated activations.
        runtime: The name of the runtime.
    """
    few = [array[:1] for array in inputs]
    expected, model = simulated.values(few), file.model
    tensors = {
        index: (flatbuffer.text(tensor.name), tensor.quantization)
        for index, tensor in enumerate(model.subgraphs[0].tensors)
        if flatbuffer.text(tensor.name) in expected and _on_a_grid(tensor)
    }
    try:
        key = flatbuffer.text(file.signature.signatureKey)
        run = runtimes.run(file, few, runtime=runtime, signature=key, tensors=list(tensors))
    except VerificationError:
        return f"The first tensor to depart is unknown, because {runtime} shows only outputs."
    where = " (seen without XNNPACK)" if runtime == "litert-xnnpack" else ""
    for index in _in_order(model.subgraphs[0], tensors):
        key, quantization = tensors[index]
        if index not in run.tensors or run.tensors[index].shape != expected[key].shape:
            continue
        is_int16 = flatbuffer.type_name(model.subgraphs[0].tensors[index]) == "INT16"
        ends = INT16_ENDS if is_int16 else INT8_ENDS
        quanta = _quanta(run.tensors[index], expected[key], quantization, ends)
        quanta /= inherited_rounding(model, index)
        if quanta > _DEPARTURE_QUANTA:
            path = simulated.paths[key] or "the input"
            return (
                f"The first tensor to depart{where} is {key!r}, made by {path!r}, by "
                f"{quanta:.3g} quanta on average."
            )
    return f"No single tensor departs by much{where}: small differences add up."


def _on_a_grid(tensor: Any) -> bool:
    scales = None if tensor.quantization is None else tensor.quantization.scale
    return scales is not None and len(scales) == 1


def _in_order(graph: SubGraphT, tensors: Container[int]) -> list[int]:
    """Returns the indices of tensors in the order in which they are computed."""
    made = [*graph.inputs, *(index for operator in graph.operators for index in operator.outputs)]
    return [int(index) for index in made if index in tensors]


def _quanta(
    found: np.ndarray, expected: np.ndarray, quantization: Any, ends: tuple[int, int]
) -> float:
    """Returns the mean difference in steps of the tensor's grid.

    The expected values are clipped to the range of the grid.
    """
    step, zero_point = float(quantization.scale[0]), int(quantization.zeroPoint[0])
    limits = step * (np.array(ends) - zero_point)
    values = step * (found.astype(np.int64) - zero_point)
    return float(np.abs(values - np.clip(expected, *limits)).mean() / step)
