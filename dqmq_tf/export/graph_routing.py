"""Adaptive files that choose the precision profile of each input in their graph.

The first subgraph contains the quality router and the first of the IF operators, one for each
threshold. The branches are the subgraphs of the profiles. An app runs the file like any other file.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.flatbuffer import ModelT, SignatureDefT, SubGraphT, editing, merging


def routed(profiles: Sequence[ModelT], router: ModelT, thresholds: int) -> ModelT:
    """Builds the file that routes in its graph.

    Args:
        profiles: The model of each profile's file, from the lowest score to the highest.
        router: The router. Its first outputs are the profile and the score. One more output per
            threshold says whether the score is above it.
        thresholds: The number of thresholds.

    Returns:
        The model of the file. Its last output is the number of the chosen profile.
    """
    names = [f"profile_{number}" for number in range(len(profiles))]
    model = merging.merge({"router": router, **dict(zip(names, profiles))})
    main, network = model.subgraphs[0], model.subgraphs[1]
    profile, _, *above = _in_signature_order(model.signatureDefs[0].outputs)
    assert len(above) == thresholds == len(profiles) - 1
    _share_inputs(model, main, network)
    inputs = list(main.inputs)
    outputs = [_like(main, network.tensors[i]) for i in network.outputs]
    later = _later_conditions(model, main, above)
    branch = _nested(model, inputs, names)
    _add_if(model, main, above[0], [*inputs, *later], outputs, branch, 1)
    main.outputs = np.array([*outputs, profile], np.int32)
    main.name = b"main"
    _sign(model, main, profile, model.signatureDefs[1])
    return model


def _in_signature_order(entries: Sequence[Any]) -> list[int]:
    return [int(e.tensorIndex) for e in sorted(entries, key=lambda e: (len(e.name), e.name))]


def _share_inputs(model: ModelT, main: SubGraphT, network: SubGraphT) -> None:
    """Gives the routing graph all inputs of a network, in its order. The router reads one of them."""
    first = int(main.inputs[0])
    definition = model.signatureDefs[1]
    read = definition.inputs[0]
    main.inputs = np.array(
        [
            first if i == read.tensorIndex else _like(main, network.tensors[i])
            for i in network.inputs
        ],
        np.int32,
    )


def _like(graph: SubGraphT, tensor: Any) -> int:
    """Adds a tensor of the same shape, type and quantization to a graph and returns its index."""
    new = copy.deepcopy(tensor)
    new.buffer = 0
    return editing.add_tensor(graph, new)


def _later_conditions(model: ModelT, main: SubGraphT, above: list[int]) -> list[int]:
    """Adds the conditions of the inner branches as inputs to every subgraph.

    Both branches of an IF take the same list of inputs.
    """
    for graph in model.subgraphs[1:]:
        for condition in above[1:]:
            graph.inputs = np.append(graph.inputs, _like(graph, main.tensors[condition]))
            graph.inputs = graph.inputs.astype(np.int32)
    return above[1:]


def _nested(model: ModelT, inputs: Sequence[int], names: Sequence[str]) -> int:
    """Returns the index of the subgraph for scores above the first threshold.

    With more than two profiles, it is a new subgraph that contains another IF.
    """
    if len(names) == 2:
        return 2
    schema = flatbuffer.schema()
    first, count = len(model.subgraphs), len(names) - 2
    for level in range(1, count + 1):
        network = model.subgraphs[1]
        graph = schema.SubGraphT()
        graph.name = f"above_{level}".encode()
        graph.tensors, graph.operators = [], []
        graph.inputs = np.array([_like(graph, network.tensors[i]) for i in network.inputs])
        outputs = [_like(graph, network.tensors[i]) for i in network.outputs]
        graph.inputs, graph.outputs = graph.inputs.astype(np.int32), np.array(outputs, np.int32)
        model.subgraphs.append(graph)
        above = first + level if level < count else len(names)
        condition = int(graph.inputs[len(inputs) + level - 1])
        _add_if(model, graph, condition, list(graph.inputs), outputs, above, 1 + level)
    return first


def _add_if(
    model: ModelT,
    graph: SubGraphT,
    condition: int,
    inputs: Sequence[int],
    outputs: Sequence[int],
    then: int,
    otherwise: int,
) -> None:
    schema = flatbuffer.schema()
    operator = editing.new_operator(model, "IF", [condition, *inputs], outputs)
    operator.builtinOptionsType = schema.BuiltinOptions.IfOptions
    operator.builtinOptions = schema.IfOptionsT()
    operator.builtinOptions.thenSubgraphIndex = then
    operator.builtinOptions.elseSubgraphIndex = otherwise
    graph.operators.append(operator)


def _sign(model: ModelT, main: SubGraphT, profile: int, network: SignatureDefT) -> None:
    """Replaces the signatures by one, with the network's inputs and outputs and the profile.

    The signature of a network has the order of its subgraph.
    """
    for entries, ends in ((network.inputs, main.inputs), (network.outputs, main.outputs)):
        for entry, tensor in zip(entries, ends):
            entry.tensorIndex = int(tensor)
    entry = flatbuffer.schema().TensorMapT()
    entry.name, entry.tensorIndex = b"profile", profile
    network.outputs = [*network.outputs, entry]
    network.signatureKey, network.subgraphIndex = merging.DEFAULT_SIGNATURE.encode(), 0
    model.signatureDefs = [network]
