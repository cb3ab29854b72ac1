"""Merges multiplications and additions of constants, each of which would be an operator of a file.

- Several maps `y = a * x + b` in a row become one `Rescaling`.
- Directly after a layer with a kernel it folds into that kernel.
- A hard sigmoid is a rescaling and a relu that ends at 1, whichever way a model writes it:
  `k * relu(x)` is `relu(k * x)` with another ceiling.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from dqmq_tf.config import DQMQConfig, LayerRule
from dqmq_tf.errors import FloatOnly
from dqmq_tf.graph.activations import is_relu, relu_ceiling
from dqmq_tf.graph.constant_maps import Affine, constant_map, is_constant_map
from dqmq_tf.graph.fold_rules import is_foldable
from dqmq_tf.graph.from_keras import trace_nested
from dqmq_tf.graph.graph import Graph, Node, inline
from dqmq_tf.graph.kernels import is_float
from dqmq_tf.graph.plain_classes import keras_name
from dqmq_tf.graph.rebuild import rebuild
from dqmq_tf.graph.splitting import free_name, has_masks


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Step:
    """A map of constants, or a relu.

    Attributes:
        name: The name of the layer that it becomes.
        affine: The map. None for a relu.
        ceiling: The ceiling of the relu.
    """

    name: str
    affine: Affine | None = None
    ceiling: float = float("inf")


def merge_constants(model: keras.Model, config: DQMQConfig | None = None) -> keras.Model:
    """Returns a model with fewer layers and operations of constants, which computes the same.

    A layer that takes the place of several has the name of the last of them. Models with masks, and
    models for channels first, stay as they are.

    Args:
        model: A Sequential or functional model.
        config: A `DQMQConfig`. Layers for which different rules hold are not merged.

    Returns:
        A functional model with the other layers of `model`, or `model` itself if nothing merges.

    Example:

    >>> inputs = keras.Input((32, 32, 3))
    >>> model = keras.Model(inputs, inputs / 127.5 - 1.0)
    >>> [type(layer).__name__ for layer in merge_constants(model).layers]
    ['InputLayer', 'Rescaling']
    """
    graph = trace_nested(model)
    # Operations of Keras drop a mask, and layers pass it on.
    if keras.config.image_data_format() == "channels_first" or has_masks(inline(graph)):
        return model
    layers = _replacements(graph, config or DQMQConfig())
    if not layers:
        return model

    def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if id(node) not in layers:
            return node.layer(*args, **kwargs)
        (x,) = (
            operand
            for operand in (*args, *kwargs.values())
            if keras.backend.is_keras_tensor(operand)
        )
        for layer in layers[id(node)]:
            x = layer(x)
        return x

    return rebuild(graph, model.name, call)


def _replacements(graph: Graph, config: DQMQConfig) -> dict[int, list[keras.layers.Layer]]:
    """Returns `{id of a node: layers to call in its place}` of a graph and its nested models.

    The last node of a row has all layers of the row, the others have none.
    """
    replacements: dict[int, list[keras.layers.Layer]] = {}
    calls = collections.Counter(id(node.layer) for part in _parts(graph) for node in part.nodes)
    seen: set[int] = set()
    for part in _parts(graph):
        names = {*part.input_names, *(node.layer.name for node in part.nodes)}
        for node in part.nodes:
            row = [] if id(node) in seen else _row(part, node, calls, config)
            seen.update(map(id, row))
            steps = _merged(part, row, names) if row else None
            if steps:
                dtype = part.dtypes[row[-1].outputs[0]]
                replacements |= {id(other): [] for other in row}
                replacements[id(row[-1])] = [_layer(step, dtype) for step in steps]
    return replacements


def _parts(graph: Graph) -> Iterator[Graph]:
    """Yields a graph and the graphs of its nested models, each once."""
    found: dict[int, Graph] = {}
    waiting = [graph]
    while waiting:
        part = waiting.pop()
        yield part
        inner = {id(n.layer): n.subgraph for n in part.nodes if n.subgraph is not None}
        waiting += [g for key, g in inner.items() if key not in found]
        found |= inner


def _row(
    graph: Graph, first: Node, calls: collections.Counter[int], config: DQMQConfig
) -> list[Node]:
    """Returns the nodes from `first` on of which each is the only reader of the one before."""
    row: list[Node] = []
    node: Node | None = first
    rule = _rule_of(config, first)
    while (
        node is not None
        and calls[id(node.layer)] == 1
        and _rule_of(config, node) is rule
        and _is_step(graph, node)
    ):
        row.append(node)
        node = graph.only_reader(node.outputs[0])
    return row


def _rule_of(config: DQMQConfig, node: Node) -> LayerRule | None:
    """Returns the rule of the user that holds for a node. None if there is none."""
    rule = config.rule_for(node.path)
    return next((other for other in config.rules if other is rule), None)


def _is_step(graph: Graph, node: Node) -> bool:
    """Whether a node computes a map of constants or a relu in floating point."""
    if len(node.inputs) != 1 or len(node.outputs) != 1 or node.subgraph is not None:
        return False
    before, after = (graph.dtypes[tensors[0]] for tensors in (node.inputs, node.outputs))
    is_layer = isinstance(node.layer, keras.layers.Layer)
    # A layer may read integers. A sum of integers may overflow, and float16 has another range.
    if not is_float(after) or before != after and (is_float(before) or not is_layer):
        return False
    if is_layer and node.layer.activity_regularizer is not None:
        return False
    if not is_constant_map(node):
        # A subclass may compute something else.
        is_plain = not is_layer or type(node.layer) in (keras.layers.ReLU, keras.layers.Activation)
        return is_plain and (is_relu(node.layer) or _is_hard_sigmoid(node.layer))
    try:
        affine = constant_map(graph, node)
    except FloatOnly:
        return False
    # A normalization that was not adapted has no channels of its own yet, and NaN stays to be found.
    return bool(np.all(np.isfinite([affine.multiplier, affine.offset])))


def _is_hard_sigmoid(layer: Any) -> bool:
    """Whether a layer or operation is `relu6(x + 3) / 6`."""
    if type(layer) is keras.layers.Activation:
        return layer.activation is keras.activations.hard_sigmoid
    return keras_name(layer) == "HardSigmoid"


def _merged(graph: Graph, row: Sequence[Node], names: set[str]) -> list[_Step] | None:
    """Returns the steps that replace a row of nodes. None if they would be no fewer operators."""
    (tensor,) = row[0].inputs
    source = graph.producers.get(tensor) if graph.only_reader(tensor) else None
    folds = source is not None and is_foldable(source.layer)
    steps: list[_Step] = []
    for node in row:
        for step in _steps_of(graph, node, names):
            _append(steps, step, folds)
    # A map in front folds, unless each channel has its own.
    first = steps[0].affine
    has_hard_sigmoid = any(_is_hard_sigmoid(node.layer) for node in row)
    is_new_fold = (
        folds
        and first is not None
        and _single(first) is not None
        and not isinstance(row[0].layer, keras.layers.Rescaling)
    )
    return steps if len(steps) < len(row) or has_hard_sigmoid or is_new_fold else None


def _steps_of(graph: Graph, node: Node, names: set[str]) -> list[_Step]:
    """Returns the steps of one node."""
    name = node.layer.name
    if is_constant_map(node):
        return [_Step(name=name, affine=constant_map(graph, node))]
    if not _is_hard_sigmoid(node.layer):
        return [_Step(name=name, ceiling=relu_ceiling(node.layer))]
    scale_name = free_name(f"{node.layer.name}_scale", [names])
    sixth = Affine(np.full(1, 1 / 6), np.full(1, 0.5))
    return [_Step(name=scale_name, affine=sixth), _Step(name=name, ceiling=1.0)]


def _append(steps: list[_Step], step: _Step, folds: bool) -> None:
    """Appends a step to a row, merged with those before it where that is possible.

    Args:
        steps: The steps so far, changed in place.
        step: The next one.
        folds: Whether a map in front of the row folds into the layer before it.
    """
    last = steps[-1] if steps else None
    if last is None or step.affine is None:
        steps.append(step)
    elif last.affine is not None:
        steps[-1] = _Step(name=step.name, affine=_composed(last.affine, step.affine))
    elif _is_positive(step.affine) and _moves(steps, folds):
        # k * relu(x) = relu(k * x): the map moves to where it merges or folds.
        factor = step.affine.multiplier.flat[0]
        steps.pop()
        _append(steps, _Step(name=last.name, affine=step.affine), folds)
        steps.append(_Step(name=step.name, ceiling=_rounded(float(last.ceiling * factor))))
    else:
        steps.append(step)


def _moves(steps: Sequence[_Step], folds: bool) -> bool:
    """Whether a multiplication moves across the relu at the end of a row.

    The range of a relu with another ceiling than 6 is fixed. It suits a hard sigmoid, which adds a
    constant first. Other values may need only a part of it.
    """
    before = steps[-2].affine if len(steps) > 1 else None
    if np.isinf(steps[-1].ceiling):
        return folds if len(steps) == 1 else before is not None
    return before is not None and bool(np.any(before.offset))


def _composed(first: Affine, second: Affine) -> Affine:
    """Returns the map that applies two maps one after the other."""
    return Affine(
        first.multiplier * second.multiplier, first.offset * second.multiplier + second.offset
    )


def _is_positive(affine: Affine) -> bool:
    """Whether a map is a multiplication of all channels by one positive number."""
    single = _single(affine)
    return single is not None and single[0] > 0 and single[1] == 0


def _single(affine: Affine) -> tuple[float, float] | None:
    """Returns multiplier and offset of a map that is the same for all channels."""
    multipliers, offsets = np.unique(affine.multiplier), np.unique(affine.offset)
    if len(multipliers) > 1 or len(offsets) > 1 or not multipliers[0]:
        return None
    return float(multipliers[0]), float(offsets[0])


def _rounded(ceiling: float) -> float:
    """Returns a ceiling without the error of a division: 6 * (1 / 6) may be next to 1."""
    nearest = np.rint(ceiling)
    return float(nearest) if np.isclose(ceiling, nearest, rtol=1e-6, atol=0.0) else ceiling


def _layer(step: _Step, dtype: str) -> keras.layers.Layer:
    """Returns the layer of a step."""
    if step.affine is None:
        ceiling = None if np.isinf(step.ceiling) else step.ceiling
        return keras.layers.ReLU(max_value=ceiling, name=step.name, dtype=dtype)
    single = _single(step.affine)
    if single is not None:
        return keras.layers.Rescaling(single[0], offset=single[1], name=step.name, dtype=dtype)
    multiplier, offset = (
        values.tolist() for values in (step.affine.multiplier, step.affine.offset)
    )
    return keras.layers.Rescaling(multiplier, offset=offset, name=step.name, dtype=dtype)
