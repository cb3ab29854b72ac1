"""Splits layers into what an int8 kernel computes, before decision points are found.

An int8 kernel writes one quantized tensor. What lies between two kernels must be rounded in
training as it is on a device, so it must be a tensor of the graph. A convolution with a softmax
after it, a separable convolution and multi-head attention each become several layers.
"""

import collections
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras

from dqmq_tf.config import DQMQConfig, LayerRule
from dqmq_tf.graph.composites import (
    SplitActivation,
    SplitAttention,
    SplitGroups,
    SplitLayer,
    SplitMerge,
    SplitParts,
    SplitSeparable,
    SplitSteps,
    is_depthwise,
    is_same_for_all_steps,
    splits_activation,
)
from dqmq_tf.graph.from_keras import trace_nested
from dqmq_tf.graph.graph import Graph, Node, inline
from dqmq_tf.graph.plain_classes import plain_class
from dqmq_tf.graph.rebuild import copy_model, rebuild

_Splitter = (
    SplitActivation
    | SplitAttention
    | SplitGroups
    | SplitMerge
    | SplitParts
    | SplitSeparable
    | SplitSteps
)
_SPLIT_LAYER_BITS = 8
# Arguments of attention that change what is computed.
_ATTENTION_SWITCHES = (
    "query_mask",
    "value_mask",
    "key_mask",
    "attention_mask",
    "return_attention_scores",
    "use_causal_mask",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One of the layers that a layer was split into.

    Attributes:
        path: Its path in the split model.
        kernels: `{name in the whole layer: name in the part}` of its kernels.
        bit_width: The bit-width of its weights and of its output, whatever the rules say. None if
            the rules decide.
    """

    path: str
    kernels: dict[str, str]
    bit_width: int | None = None


def split_layers(
    model: keras.Model, splits_all: bool = True
) -> tuple[keras.Model, dict[str, tuple[Part, ...]]]:
    """Returns a copy of a model in which layers of several int8 kernels are several layers.

    - An activation other than relu or relu6 of a layer with kernels becomes its own layer,
      `<name>_activation`.
    - A separable convolution becomes `<name>_depthwise` and `<name>_pointwise`.
    - `MultiHeadAttention` without masks, over the one axis of a sequence, becomes its projections
      `<name>_query`, `_key`, `_value` and `_output`, the scale of the query `_scale`, the products
      `_scores` and `_attended` with heads as an axis of the batch, `_softmax`, and `_dropout` if
      it has one. With masks it is not split.
    - A convolution with as many groups as its input has channels becomes a depthwise convolution of
      its name.
    - `TimeDistributed` of a `Dense`, `Activation`, `ReLU`, `Flatten` or `Reshape` layer, without masks,
      becomes such a layer for all steps at once, of its name.
    - `Add` or `Multiply` of more than two tensors becomes `<name>_1` of the first two, and so on. The
      last of these layers keeps the name.
    - `dqmq_tf.layers.Exposure` becomes its parts, all at 8 bits.

    The copy computes what the model computes. Splitting it again changes nothing.

    Args:
        model: A built Sequential or functional model. It is not changed.
        splits_all: Whether sums, products and `TimeDistributed` are split, and convolutions in groups
            made depthwise. They are not in models that were saved by an earlier version.

    Returns:
        The copy, and `{path: (Part, ...)}` of the layers that were split, by their path in
        `model`. A layer that keeps its name, as one whose activation was split off, is not among its
        parts.

    Raises:
        ValueError: If the model is subclassed or not of Keras 3.

    Example:

    >>> body, parts = dqmq_tf.graph.splitting.split_layers(model)
    >>> [part.path for part in parts["separable_conv2d"]]
    ['separable_conv2d_depthwise', 'separable_conv2d_pointwise']
    """
    body = copy_model(model)
    graph = trace_nested(body)
    splitters, parts = _splitters(graph, splits_all), {}
    if not splitters:
        return body, {}
    for node in inline(graph).nodes:
        if id(node.layer) in splitters and splitters[id(node.layer)].kernels:
            prefix = node.path[: len(node.path) - len(node.layer.name)]
            parts[node.path] = tuple(
                Part(path=prefix + name, kernels=kernels, bit_width=_bit_width(node.layer))
                for name, kernels in splitters[id(node.layer)].kernels.items()
            )

    def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return splitters.get(id(node.layer), node.layer)(*args, **kwargs)

    return rebuild(graph, body.name, call), parts


def with_part_rules(config: DQMQConfig, parts: Mapping[str, Sequence[Part]]) -> DQMQConfig:
    """Returns a configuration whose rules for a layer hold for its parts too.

    A rule for a part stands directly before the rule of its layer, so that the first match wins as
    it does for the layer. Rules above that one may name a part.

    Args:
        config: A `DQMQConfig`.
        parts: What `split_layers` returned.

    Raises:
        ValueError: If a rule names a variable that the layer does not have.
    """
    inserted: dict[int, list[LayerRule]] = collections.defaultdict(list)
    unmatched: list[LayerRule] = []
    for path, layer_parts in parts.items():
        rule = config.rule_for(path)
        if any(rule is other for other in config.rules):
            _check_weights(path, rule, layer_parts)
            inserted[id(rule)] += [
                _with_user_quantizers(_rule_of(part, rule), part, layer_parts)
                for part in layer_parts
            ]
        else:
            unmatched += [_rule_of(part, rule) for part in layer_parts if part.bit_width]
    rules: list[LayerRule] = []
    for rule in config.rules:
        rules += [*inserted.pop(id(rule), ()), rule]
    return dataclasses.replace(config, rules=(*rules, *unmatched))


def makes_mask(layer: Any) -> bool:
    """Whether Keras attaches a mask to the output of a layer."""
    return isinstance(layer, keras.layers.Masking) or bool(getattr(layer, "mask_zero", False))


def has_masks(graph: Graph) -> bool:
    """Whether a layer of an inlined graph makes or defines a mask."""
    return any(makes_mask(node.layer) or _has_own_mask(node.layer) for node in graph.nodes)


def _rule_of(part: Part, rule: LayerRule) -> LayerRule:
    """Returns the rule of a layer for one of its parts."""
    weights = rule.weights
    if weights is not None:
        weights = tuple(part.kernels[name] for name in weights if name in part.kernels)
    fixed = None if part.bit_width is None else (part.bit_width,)
    return dataclasses.replace(
        rule,
        pattern=re.escape(part.path),
        weight_bits=(fixed or rule.weight_bits) if part.kernels else None,
        activation_bits=fixed or rule.activation_bits,
        weights=weights if part.kernels else None,
    )


def _with_user_quantizers(rule: LayerRule, part: Part, parts: Sequence[Part]) -> LayerRule:
    """Returns the rule of a part with its share of the quantizers of the user's own.

    The last part with kernels has those for the output of the layer. If the activation was split
    off, it has those that run behind the activation.
    """
    user = rule.user_quantizers
    if user is None:
        return rule
    with_kernels = [other for other in parts if other.kernels]
    is_last = bool(with_kernels) and part is with_kernels[-1]
    # Only a layer whose parts end with kernels and activation, or with the activation alone.
    is_activation = part is parts[-1] and not part.kernels and "_activation" in part.path
    own = user.of_part(part.kernels, is_last=is_last, is_activation=is_activation)
    return dataclasses.replace(rule, user_quantizers=own)


def _check_weights(path: str, rule: LayerRule, parts: Iterable[Part]) -> None:
    """Refuses a rule that names a variable which is a kernel of no part."""
    kernels = [name for part in parts for name in part.kernels]
    missing = [name for name in rule.weights or () if name not in kernels]
    # A layer that keeps its kernels is checked when its decision points are found.
    if kernels and missing:
        raise ValueError(
            f"Layer {path!r} has no kernel {missing[0]!r} to quantize. Choose the rule's weights "
            f"among {kernels}."
        )


def _splitters(graph: Graph, splits_all: bool) -> dict[int, _Splitter]:
    """Returns `{id of a layer: what is called in its place}`."""
    inlined = inline(graph)
    nodes, is_masked = inlined.nodes, has_masks(inlined)
    calls: dict[int, list[Node]] = collections.defaultdict(list)
    for node in nodes:
        calls[id(node.layer)].append(node)
    names, splitters = _names(graph), {}
    for key, layer_calls in calls.items():
        layer = layer_calls[0].layer
        kind = _splitter_of(layer, splits_all)
        if kind is None:
            continue
        if kind is SplitAttention and (is_masked or not all(map(_attends_plainly, layer_calls))):
            continue
        if kind is SplitSteps and (is_masked or not _are_same_steps(inlined, layer_calls)):
            continue
        scopes = [names[n.path[: len(n.path) - len(layer.name)]] for n in layer_calls]
        name_part = functools.partial(_part_name, layer, scopes)
        sizes: list[Any] = []
        if kind is SplitAttention:
            sizes = [_lengths(inlined, layer_calls)]
        elif kind is SplitMerge:
            sizes = [max(len(node.inputs) for node in layer_calls)]
            if sizes[0] <= 2:
                continue
        splitters[key] = kind(layer, name_part, *sizes)
    return splitters


def _splitter_of(layer: Any, splits_all: bool) -> Callable[..., _Splitter] | None:
    """Returns the class that splits a layer. None if the layer stays whole."""
    if isinstance(layer, SplitLayer):
        return SplitParts
    # Subclasses may convolve or attend in another way.
    if plain_class(layer) in (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D):
        return SplitSeparable
    if splits_all and type(layer) in (keras.layers.Add, keras.layers.Multiply):
        return SplitMerge
    if splits_all and is_depthwise(layer):
        return SplitGroups
    if splits_all and is_same_for_all_steps(layer):
        return SplitSteps
    if type(layer) is keras.layers.MultiHeadAttention:
        return SplitAttention
    return SplitActivation if splits_activation(layer) else None


def _bit_width(layer: Any) -> int | None:
    """Returns the one bit-width of all parts of a layer. None if the rules decide.

    The parts of a `SplitLayer` compute a few numbers for each image, on which all later layers
    depend. Fewer bits would save next to nothing.
    """
    return _SPLIT_LAYER_BITS if isinstance(layer, SplitLayer) else None


def _lengths(graph: Graph, nodes: Iterable[Node]) -> list[int | None]:
    """Returns the lengths of query and value, None if the calls of an attention differ."""
    shapes = [
        [graph.shapes[arguments[name]] for name in ("query", "value")]
        for arguments in map(_call_arguments, nodes)
    ]
    lengths = [{shape[1] for shape in of_argument} for of_argument in zip(*shapes)]
    return [sizes.pop() if len(sizes) == 1 else None for sizes in lengths]


def _call_arguments(node: Node) -> dict[str, Any]:
    """Returns `{argument: value}` of a call, with the ids of tensors."""
    args, kwargs = node.arguments({tensor: tensor for tensor in node.inputs})
    return inspect.signature(node.layer.call).bind(*args, **kwargs).arguments


def _are_same_steps(graph: Graph, nodes: Iterable[Node]) -> bool:
    """Whether calls of `TimeDistributed` have no mask, and steps of one known shape."""
    calls = [_call_arguments(node) for node in nodes]
    shapes = {tuple(graph.shapes[call["inputs"]]) for call in calls}
    is_known = len(shapes) == 1 and None not in next(iter(shapes))[2:]
    return is_known and all(call.get("mask") is None for call in calls)


def _attends_plainly(node: Node) -> bool:
    """Whether a call of attention is softmax(query key) value over the axis of a sequence."""
    arguments = _call_arguments(node)
    for name in _ATTENTION_SWITCHES:
        # The id of a tensor may be 0, which is a mask all the same.
        if arguments.get(name) is not None and arguments[name] is not False:
            return False
    config = node.layer.get_config()
    is_special = config.get("use_gate") or config.get("sliding_window")
    return node.layer.attention_axes == (1,) and not is_special


def _has_own_mask(layer: Any) -> bool:
    """Whether a layer of the user's own defines its mask."""
    is_own = not type(layer).__module__.startswith("keras.")
    defaults = (None, keras.layers.Layer.compute_mask, keras.Model.compute_mask)
    return is_own and getattr(type(layer), "compute_mask", None) not in defaults


def _names(graph: Graph, prefix: str = "") -> dict[str, set[str]]:
    """Returns `{prefix of a nested model's paths: names in that model}`."""
    names = {prefix: {*graph.input_names, *(node.layer.name for node in graph.nodes)}}
    for node in graph.nodes:
        if node.subgraph is not None:
            names |= _names(node.subgraph, f"{node.path}/")
    return names


def _part_name(layer: Any, scopes: Iterable[set[str]], part: str) -> str:
    """Returns a free name for a part of a layer."""
    return free_name(f"{layer.name}_{part}", scopes)


def free_name(base: str, scopes: Iterable[set[str]]) -> str:
    """Returns a name, with a number if a layer has it already, and adds it to the names of layers.

    Args:
        base: The name without a number.
        scopes: The names of layers in each model that the new layer is for. The name is added.
    """
    name = base
    number = 0
    while any(name in scope for scope in scopes):
        number += 1
        name = f"{base}_{number}"
    for scope in scopes:
        scope.add(name)
    return name
