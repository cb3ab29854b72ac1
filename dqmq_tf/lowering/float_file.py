"""Exports the lowered model as a float LiteRT file whose tensor names are known."""

import copy
import os
import tempfile
from typing import Any

import keras

from dqmq_tf.flatbuffer import ModelT, TFLiteFile, editing
from dqmq_tf.flatbuffer.serialization import SubGraphT
from dqmq_tf.lowering import folding
from dqmq_tf.lowering.converter_log import quiet_log
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.lowering.tensor_matching import Match


def export_float(model: keras.Model) -> TFLiteFile:
    """Converts a Keras model to a float `.tflite` file with a batch of one.

    Args:
        model: Functional model.

    Returns:
        `TFLiteFile`.
    """
    # With an unknown batch size the file would contain SHAPE, STRIDED_SLICE and PACK operators.
    signature = [keras.InputSpec(shape=(1, *t.shape[1:]), dtype=t.dtype) for t in model.inputs]
    with tempfile.TemporaryDirectory() as folder, quiet_log():
        path = os.path.join(folder, "float.tflite")
        model.export(
            path,
            format="litert",
            verbose=False,
            input_signature=signature if len(signature) == 1 else [signature],
        )
        with open(path, "rb") as file:
            return TFLiteFile(file.read())


def name_tensors(model: ModelT, match: Match, lowered: LoweredModel) -> None:
    """Gives every tensor a short unique name, and every operator its own weights and bias.

    Activations are named by their key in the lowered model (`"a7"`), weights by position
    (`"w0"`), biases by that of their operator (`"b0"`), other constants `"c0"` and so on.

    Args:
        model: `ModelT` of the float file; changed in place.
        match: `Match` of the file and its lowered model.
        lowered: `LoweredModel`.
    """
    graph = model.subgraphs[0]
    names: dict[int, str] = {}
    owners: dict[int, dict[int, int]] = {}
    places = {id(weights): place for place, weights in enumerate(lowered.weights)}
    names |= match.tensors
    for number, (index, weights) in enumerate(match.weights.items()):
        inputs = list(graph.operators[index].inputs)
        kernel, bias = folding.OPERANDS[weights.kind]
        inputs[kernel] = _own(model, graph, inputs[kernel], owners, weights)
        names[inputs[kernel]] = f"w{places[id(weights)]}"
        if len(inputs) > bias and inputs[bias] >= 0:
            inputs[bias] = _own(model, graph, inputs[bias], owners, index)
            names[inputs[bias]] = f"b{number}"
        graph.operators[index].inputs = inputs
    for index, weights in match.stored.items():
        names[index] = f"w{places[id(weights)]}"
    taken = set()
    for index, tensor in enumerate(graph.tensors):
        name = names.get(index, f"c{index}")
        while name in taken:
            name += "_"
        taken.add(name)
        tensor.name = name.encode()


def _own(
    model: ModelT, graph: SubGraphT, index: int, owners: dict[int, dict[int, int]], owner: Any
) -> int:
    """The tensor itself for its first owner, a copy with a buffer of its own for the next."""
    owner = id(owner) if not isinstance(owner, int) else owner
    copies = owners.setdefault(index, {})
    if not copies:
        copies[owner] = index
    if owner not in copies:
        tensor = copy.copy(graph.tensors[index])
        data = model.buffers[tensor.buffer].data
        tensor.buffer = editing.add_buffer(model, b"" if data is None else bytes(data))
        copies[owner] = editing.add_tensor(graph, tensor)
    return copies[owner]
