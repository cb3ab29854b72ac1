"""Layers taken apart into what an int8 kernel computes, before decision points are found.

An int8 kernel writes one quantized tensor. What lies between two kernels must be rounded in
training as it is on a device, so it must be a tensor of the graph: a convolution with a softmax
behind it, a separable convolution and multi-head attention each become several layers.
"""

import collections
import dataclasses
import functools
import inspect
import re

import keras

from dqmq_tf.graph import from_keras
from dqmq_tf.graph import graph as graphs
from dqmq_tf.graph.composites import (
    SplitActivation,
    SplitAttention,
    SplitSeparable,
    splits_activation,
)
from dqmq_tf.graph.rebuild import copy_model, rebuild

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
    """A layer that a whole layer was split into.

    Attributes:
        path: Its path in the split model.
        kernels: `{name in the whole layer: name in the part}` of its kernels.
    """

    path: str
    kernels: dict


def split_layers(model):
    """Returns a copy of a model in which layers of several int8 kernels are several layers.

    - An activation other than relu or relu6 of a layer with kernels is a layer of its own,
      `<name>_activation`.
    - A separable convolution is `<name>_depthwise` and `<name>_pointwise`.
    - `MultiHeadAttention` without masks, over the one axis of a sequence, is its projections
      `<name>_query`, `_key`, `_value` and `_output`, the scale of the query `_scale`, the products
      `_scores` and `_attended` with heads as an axis of the batch, `_softmax`, and `_dropout` where
      it has one. With masks it stays whole.

    The copy computes what the model does. Split again, it is the same.

    Args:
        model: A built Sequential or functional model. It is not changed.

    Returns:
        The copy, and `{path: (Part, …)}` of the layers that were split, by their path in `model`. A
        layer whose activation was split off keeps its name and is not among its parts.

    Raises:
        ValueError: If the model is subclassed or not of Keras 3.

    Example:

    >>> body, parts = dqmq_tf.graph.splitting.split_layers(model)
    >>> [part.path for part in parts["separable_conv2d"]]
    ['separable_conv2d_depthwise', 'separable_conv2d_pointwise']
    """
    # A model that cannot be traced is refused before it is copied.
    from_keras.trace_nested(model)
    body = copy_model(model)
    graph = from_keras.trace_nested(body)
    splitters, parts = _splitters(graph), {}
    if not splitters:
        return body, parts
    for node in graphs.inline(graph).nodes:
        if id(node.layer) in splitters:
            prefix = node.path[: len(node.path) - len(node.layer.name)]
            parts[node.path] = tuple(
                Part(path=prefix + name, kernels=kernels)
                for name, kernels in splitters[id(node.layer)].kernels.items()
            )

    def call(node, args, kwargs):
        return splitters.get(id(node.layer), node.layer)(*args, **kwargs)

    return rebuild(graph, body.name, call), parts


def with_part_rules(config, parts):
    """Returns a configuration whose rules for a layer hold for its parts too.

    A rule for a part stands right before the rule of its layer, so that the first match wins as it
    does for the layer: rules above that one may name a part by itself.

    Args:
        config: A `DQMQConfig`.
        parts: What `split_layers` returned.

    Raises:
        ValueError: If a rule names a variable that the layer does not have.
    """
    before = collections.defaultdict(list)
    for path, made in parts.items():
        rule = config.rule_for(path)
        if any(rule is other for other in config.rules):
            _check_weights(path, rule, made)
            before[id(rule)] += [_rule_of(part, rule) for part in made]
    rules = []
    for rule in config.rules:
        rules += [*before.pop(id(rule), ()), rule]
    return dataclasses.replace(config, rules=rules)


def makes_mask(layer):
    """Whether Keras carries a mask beside what a layer makes."""
    return isinstance(layer, keras.layers.Masking) or bool(getattr(layer, "mask_zero", False))


def _rule_of(part, rule):
    weights = rule.weights
    if weights is not None:
        weights = tuple(part.kernels[name] for name in weights if name in part.kernels)
    return dataclasses.replace(
        rule,
        pattern=re.escape(part.path),
        weight_bits=rule.weight_bits if part.kernels else None,
        weights=weights if part.kernels else None,
    )


def _check_weights(path, rule, parts):
    kernels = [name for part in parts for name in part.kernels]
    missing = [name for name in rule.weights or () if name not in kernels]
    # A layer that keeps its kernels is checked when its decision points are found.
    if kernels and missing:
        raise ValueError(
            f"Layer {path!r} has no kernel {missing[0]!r} to quantize; it has {kernels}."
        )


def _splitters(graph):
    """`{id of a layer: what is called in its stead}`."""
    inlined = graphs.inline(graph)
    nodes = inlined.nodes
    masked = any(makes_mask(node.layer) or _has_own_mask(node.layer) for node in nodes)
    calls = collections.defaultdict(list)
    for node in nodes:
        calls[id(node.layer)].append(node)
    taken, splitters = _names(graph), {}
    for key, found in calls.items():
        layer = found[0].layer
        kind = _splitter_of(layer)
        if kind is None:
            continue
        if kind is SplitAttention and (masked or not all(map(_attends_plainly, found))):
            continue
        scopes = [taken[n.path[: len(n.path) - len(layer.name)]] for n in found]
        more = [_lengths(inlined, found)] if kind is SplitAttention else []
        splitters[key] = kind(layer, functools.partial(_free, layer, scopes), *more)
    return splitters


def _splitter_of(layer):
    if isinstance(layer, (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)):
        return SplitSeparable
    # A subclass may attend in a way of its own.
    if type(layer) is keras.layers.MultiHeadAttention:
        return SplitAttention
    return SplitActivation if splits_activation(layer) else None


def _lengths(graph, nodes):
    """Lengths of the query and of the value that calls of attention have in common, else None."""
    shapes = [
        [graph.shapes[call[name]] for name in ("query", "value")] for call in map(_given, nodes)
    ]
    found = [{shape[1] for shape in of_argument} for of_argument in zip(*shapes)]
    return [sizes.pop() if len(sizes) == 1 else None for sizes in found]


def _given(node):
    """`{argument: value}` of a call, with the ids of tensors."""
    args, kwargs = node.arguments({tensor: tensor for tensor in node.inputs})
    return inspect.signature(node.layer.call).bind(*args, **kwargs).arguments


def _attends_plainly(node):
    """Whether a call of attention is softmax(query key) value over the axis of a sequence."""
    given = _given(node)
    # A tensor's id may be 0.
    if any(given.get(n) is not None and given[n] is not False for n in _ATTENTION_SWITCHES):
        return False
    config = node.layer.get_config()
    special = config.get("use_gate") or config.get("sliding_window")
    return node.layer.attention_axes == (1,) and not special


def _has_own_mask(layer):
    """Whether a layer of the user's own says what its mask is."""
    own = not type(layer).__module__.startswith("keras.")
    plain = (None, keras.layers.Layer.compute_mask, keras.Model.compute_mask)
    return own and getattr(type(layer), "compute_mask", None) not in plain


def _names(graph, prefix="", found=None):
    """`{prefix of a nested model's paths: names in that model}`."""
    found = {} if found is None else found
    found[prefix] = {*graph.input_names, *(node.layer.name for node in graph.nodes)}
    for node in graph.nodes:
        if node.subgraph is not None:
            _names(node.subgraph, f"{node.path}/", found)
    return found


def _free(layer, scopes, part):
    """Returns `<name>_<part>`, numbered where a model has a layer of that name already."""
    base = name = f"{layer.name}_{part}"
    number = 0
    while any(name in scope for scope in scopes):
        number += 1
        name = f"{base}_{number}"
    for scope in scopes:
        scope.add(name)
    return name
