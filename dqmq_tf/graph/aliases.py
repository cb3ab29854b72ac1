"""Tensors that are one tensor at inference, which a file can hold on one grid only.

Four kinds: the output of a layer that acts in training alone (dropout, image augmentation), two
outputs of a layer with the same values (an LSTM's output and its hidden state), what is computed
twice from the same tensors, and uint8 images in floating point.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import keras
import numpy as np

from dqmq_tf.graph.activations import is_relu, relu_ceiling
from dqmq_tf.graph.cloning import runs_custom_code
from dqmq_tf.graph.kernels import PIXELS, is_float, kernel_variables
from dqmq_tf.graph.plain_classes import keras_name, plain_class
from dqmq_tf.graph.trial_runs import call_at_inference, random_inputs

if typing.TYPE_CHECKING:
    from dqmq_tf.graph.graph import Graph, Node

# By class name, as Keras does not export the classes of its operations.
_IDENTITIES = {
    "ActivityRegularization", "AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise",
    "Identity", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "StopGradient",
}  # fmt: skip
# A layer and an operation of one name, which compute the same: layers.Add()([a, b]) and a + b.
_ARITHMETIC = {"Add", "Multiply", "Subtract"}
# Layers of Keras that may act in training alone. Whether they do depends on their arguments and on
# the shape of their input, so it is tried.
_MAYBE_IDENTITIES = {
    "AugMix", "AutoContrast", "CenterCrop", "CutMix", "Equalization", "Lambda",
    "MaxNumBoundingBoxes", "MixUp", "Pipeline", "RandAugment", "Solarization",
}  # fmt: skip


def find_aliases(graph: Graph) -> dict[int, int]:
    """Returns `{tensor: first tensor with the same values at inference}` of an inlined graph.

    Layers of the user's own, and layers that may be the identity, are called once on random inputs.
    """
    aliases: dict[int, int] = {}
    computed: dict[Hashable, tuple[int, ...]] = {}
    for node in graph.nodes:
        key = _computation(node, aliases)
        if key in computed:
            for tensor, other in zip(node.outputs, computed[key]):
                aliases[tensor] = aliases.get(other, other)
            continue
        computed[key] = node.outputs
        for tensor, other in _equal_tensors(graph, node).items():
            aliases[tensor] = aliases.get(other, other)
    return aliases


def with_aliases(graph: Graph, pairs: Iterable[Sequence[int]]) -> Graph:
    """Returns a graph whose aliases are given, instead of found by running layers.

    A saved model is built before its state is loaded, so that its layers may not do yet what they
    did when the model was made.

    Args:
        graph: An inlined graph.
        pairs: `(tensor, alias)` of a graph of the same model, beside the layers that are known to
            change nothing at inference.
    """
    aliases: dict[int, int] = {}
    for node in graph.nodes:
        if _is_known_identity(node.layer):
            source = node.inputs[0]
            aliases[node.outputs[0]] = aliases.get(source, source)
    restored = dataclasses.replace(graph)
    # Where `functools.cached_property` keeps its value.
    vars(restored)["aliases"] = aliases | {tensor: alias for tensor, alias in pairs}
    return restored


def sources_of(graph: Graph, node: Node) -> list[int] | None:
    """Returns the earlier tensors that the outputs of a node are at inference.

    Args:
        graph: An inlined graph.
        node: One of its nodes.

    Returns:
        One tensor for each output: an input of the node if possible, else one that was computed
        before. None if the node computes something new.
    """
    aliases, sources = graph.aliases, []
    for tensor in node.outputs:
        first = aliases.get(tensor, tensor)
        if first >= node.outputs[0]:
            return None
        inputs = [t for t in node.inputs if aliases.get(t, t) == first]
        sources.append(inputs[0] if inputs else first)
    return sources


def may_change_nothing(layer: Any) -> bool:
    """Returns whether a layer may act in training alone, so that it must be tried.

    Args:
        layer: A layer or a function, such as `keras.layers.RandomCrop`.
    """
    kind = keras_name(layer)
    is_candidate = kind.startswith("Random") or kind in _MAYBE_IDENTITIES
    return (is_candidate or runs_custom_code(layer)) and not kernel_variables(layer)


def _computation(node: Node, aliases: dict[int, int]) -> Hashable:
    """Returns a key that is equal for calls that compute the same."""
    layer = node.layer
    try:
        ids = {tensor: _Tensor(aliases.get(tensor, tensor)) for tensor in node.inputs}
        arguments = node.arguments(ids)
        structure = repr(keras.tree.map_structure(lambda leaf: None, arguments))
        key = (structure, *map(_frozen, keras.tree.flatten(arguments)))
        if keras_name(layer) in _ARITHMETIC:
            return (keras_name(layer), *key[1:])
        if is_relu(layer):
            return ("relu", relu_ceiling(layer), *key[1:])
        if getattr(layer, "weights", ()) or runs_custom_code(layer):
            return (id(layer), key)
        config = {name: value for name, value in layer.get_config().items() if name != "name"}
        return (type(layer), repr(config), key)
    except Exception:  # Some arguments and layers cannot be compared.
        return (id(layer), node.call, node.outputs)


def _equal_tensors(graph: Graph, node: Node) -> dict[int, int]:
    """Returns the outputs of a node that are equal to one of its inputs or to an earlier output."""
    layer = node.layer
    if _is_known_identity(layer):
        return {node.outputs[0]: node.inputs[0]}
    is_operation = not isinstance(layer, keras.layers.Layer)
    may_be_identity = may_change_nothing(layer) or is_operation and len(node.inputs) == 1
    pairs = [
        (tensor, other)
        for i, tensor in enumerate(node.outputs)
        for other in (*(dict.fromkeys(node.inputs) if may_be_identity else ()), *node.outputs[:i])
        if graph.shapes[tensor] == graph.shapes[other]
        and is_float(graph.dtypes[tensor])
        and (is_float(graph.dtypes[other]) or graph.dtypes[other] == PIXELS)
    ]
    if not pairs:
        return {}
    try:
        runs = [_run(graph, node, is_wide) for is_wide in (False, True)]
    except Exception:  # A layer of the user's own may not take such inputs.
        return {}
    equal: dict[int, int] = {}
    for tensor, other in pairs:
        if tensor not in equal and all(_same(run[tensor], run[other]) for run in runs):
            equal[tensor] = other
    return equal


def _is_known_identity(layer: Any) -> bool:
    if plain_class(layer) is keras.layers.Activation:
        return layer.activation is keras.activations.linear
    return keras_name(layer) in _IDENTITIES


def _run(graph: Graph, node: Node, is_wide: bool) -> dict[int, np.ndarray]:
    """Returns random inputs of a node and the outputs that it computes from them at inference."""
    values = random_inputs(graph, node, is_wide)
    # A gain or a schedule may start at a value at which the layer changes nothing.
    shift = 0.618034 + is_wide
    variables = getattr(node.layer, "weights", ())
    moved = [(v, v * 1.25 + shift) for v in variables if is_float(v.dtype)]
    with keras.StatelessScope(state_mapping=moved):
        values.update(zip(node.outputs, call_at_inference(node, values)))
    return {tensor: keras.ops.convert_to_numpy(value) for tensor, value in values.items()}


def _same(values: np.ndarray, others: np.ndarray) -> bool:
    """Whether two arrays are equal, and not only because both are constant."""
    if values.shape != others.shape or values.dtype != others.dtype:
        others = others.astype(values.dtype)
    with np.errstate(all="ignore"):
        return bool(np.ptp(values) > 0) and np.array_equal(values, others)


class _Tensor(int):
    """The id of a tensor, which is no number among the arguments of a call."""


def _frozen(leaf: Any) -> Hashable:
    """Returns a hashable form of an argument."""
    if isinstance(leaf, _Tensor):
        return ("tensor", int(leaf))
    if isinstance(leaf, np.ndarray) or keras.ops.is_tensor(leaf):
        array = keras.ops.convert_to_numpy(leaf)
        return (array.dtype.str, array.shape, array.tobytes())
    if isinstance(leaf, Sequence) and not isinstance(leaf, str):
        return tuple(_frozen(item) for item in leaf)
    return repr(leaf)
