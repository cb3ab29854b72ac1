"""Several networks in one file: each has a subgraph, and equal buffers are stored once."""

import copy
from collections.abc import Mapping

import numpy as np

from dqmq_tf.errors import FileFormatError
from dqmq_tf.flatbuffer import editing, serialization
from dqmq_tf.flatbuffer.serialization import ModelT, SignatureDefT, SubGraphT

DEFAULT_SIGNATURE = "serving_default"


def merge(parts: Mapping[str, ModelT]) -> ModelT:
    """Puts the first subgraphs of several files side by side.

    Args:
        parts: `{name: ModelT}` in the order of the subgraphs. The subgraphs and their signatures
            get these names. The models stay unchanged.

    Returns:
        A `ModelT` with all subgraphs, a signature for each, and no metadata.
    """
    result = serialization.schema().ModelT()
    result.version = 3
    result.description = b"dqmq_tf"
    result.operatorCodes, result.subgraphs, result.buffers = [], [], []
    result.signatureDefs, result.metadata = [], []
    for name, part in parts.items():
        graph, definition = copy.deepcopy((part.subgraphs[0], part.signatureDefs[0]))
        for operator in graph.operators:
            operator.opcodeIndex += len(result.operatorCodes)
        for tensor in graph.tensors:
            tensor.buffer += len(result.buffers)
        graph.name = definition.signatureKey = name.encode()
        definition.subgraphIndex = len(result.subgraphs)
        result.operatorCodes += part.operatorCodes
        result.buffers += part.buffers
        result.subgraphs.append(graph)
        result.signatureDefs.append(definition)
    editing.share_buffers(result)
    return result


def extract(model: ModelT, name: str) -> ModelT:
    """Takes one network out of a merged file.

    Args:
        model: The `ModelT` of an adaptive file, which stays unchanged.
        name: Name of the network's subgraph, such as `"profile_0"`.

    Returns:
        A `ModelT` with that subgraph alone, under the signature `"serving_default"`.

    Raises:
        FileFormatError: If the file has no such subgraph.
    """
    names = [serialization.text(graph.name) for graph in model.subgraphs]
    if name not in names:
        raise FileFormatError(f"The file has no network {name!r}, only {', '.join(names)}.")
    graph = copy.deepcopy(model.subgraphs[names.index(name)])
    result = serialization.schema().ModelT()
    result.version, result.description = model.version, model.description
    result.operatorCodes, result.buffers = model.operatorCodes, list(model.buffers)
    result.subgraphs, result.metadata = [graph], []
    result.signatureDefs = [_signature(model, names.index(name), graph)]
    editing.share_buffers(result)
    return result


def _signature(model: ModelT, index: int, graph: SubGraphT) -> SignatureDefT:
    """Returns a signature for a subgraph: its own, or that of the graph that routes to it.

    Args:
        model: The `ModelT` of an adaptive file.
        index: Index of the subgraph.
        graph: A copy of the subgraph, whose additional inputs for routing are removed.
    """
    definitions = {definition.subgraphIndex: definition for definition in model.signatureDefs}
    definition: SignatureDefT = copy.deepcopy(definitions.get(index, definitions.get(0)))
    if index not in definitions:
        router = model.subgraphs[0]
        # Every network gets the conditions of the inner branches as inputs, but does not use them.
        graph.inputs = graph.inputs[: len(router.inputs)]
        for entries, outer, inner in (
            (definition.inputs, router.inputs, graph.inputs),
            (definition.outputs, router.outputs, graph.outputs),
        ):
            places = {int(tensor): place for place, tensor in enumerate(outer)}
            for entry in [e for e in entries if places[e.tensorIndex] >= len(inner)]:
                entries.remove(entry)  # The number of the profile, which only the router outputs.
            for entry in entries:
                entry.tensorIndex = int(inner[places[entry.tensorIndex]])
    definition.signatureKey, definition.subgraphIndex = DEFAULT_SIGNATURE.encode(), 0
    return definition


def strip_input_quantization(model: ModelT) -> None:
    """Replaces the float input of a model by the int8 tensor that is made from it.

    Args:
        model: A `ModelT` whose first subgraph quantizes one of its inputs; changed in place.
    """
    graph = model.subgraphs[0]
    (operator,) = [
        o
        for o in graph.operators
        if serialization.operator_name(model, o) == "QUANTIZE" and o.inputs[0] in graph.inputs
    ]
    outer, inner = int(operator.inputs[0]), int(operator.outputs[0])
    graph.operators = [o for o in graph.operators if o is not operator]
    graph.inputs = np.array([inner if i == outer else i for i in graph.inputs], np.int32)
    for entry in model.signatureDefs[0].inputs:
        if entry.tensorIndex == outer:
            entry.tensorIndex = inner
