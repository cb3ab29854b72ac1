"""Layers taken apart into what an int8 kernel computes, before decision points are found.

An int8 kernel writes one quantized tensor. What lies between two kernels must be rounded in
training as it is on a device, so it must be a tensor of the graph: a convolution with a softmax
behind it, a separable convolution and multi-head attention each become several layers.
"""

import collections
import dataclasses
import inspect
import math
import re

import keras

from dqmq_tf import graph as graphs
from dqmq_tf.config import LayerRule
from dqmq_tf.rebuild import rebuild

_FUSED_ACTIVATIONS = (
    keras.activations.linear,
    keras.activations.relu,
    keras.activations.relu6,
)
_WITH_ACTIVATION = (
    keras.layers.Conv1D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Dense,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.EinsumDense,
)
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
        site: Its path in the split model.
        kernels: `{name in the whole layer: name in the part}` of its kernels.
    """

    site: str
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
        The copy, and `{site: (Part, …)}` of the layers that were split, by their path in `model`. A
        layer whose activation was split off keeps its name and is not among its parts.

    Raises:
        ValueError: If the model is subclassed or not of Keras 3.

    Example:

    >>> body, parts = dqmq_tf.split.split_layers(model)
    >>> [part.site for part in parts["separable_conv2d"]]
    ['separable_conv2d_depthwise', 'separable_conv2d_pointwise']
    """
    # A model that cannot be traced is refused before it is copied.
    graphs.trace_nested(model)
    body = graphs.copy_model(model)
    graph = graphs.trace_nested(body)
    splitters, parts = _splitters(graph), {}
    if not splitters:
        return body, parts
    for node in graphs.inline(graph).nodes:
        if id(node.layer) in splitters:
            prefix = node.site[: len(node.site) - len(node.layer.name)]
            parts[node.site] = tuple(
                Part(site=prefix + name, kernels=kernels)
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
    for site, made in parts.items():
        rule = config.rule_for(site)
        if any(rule is other for other in config.rules):
            _check_weights(site, rule, made)
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
        pattern=re.escape(part.site),
        weight_bits=rule.weight_bits if part.kernels else None,
        weights=weights if part.kernels else None,
    )


def _check_weights(site, rule: LayerRule, parts):
    kernels = [name for part in parts for name in part.kernels]
    missing = [name for name in rule.weights or () if name not in kernels]
    # A layer that keeps its kernels is checked when its decision points are found.
    if kernels and missing:
        raise ValueError(
            f"Layer {site!r} has no kernel {missing[0]!r} to quantize; it has {kernels}."
        )


def _splitters(graph):
    """`{id of a layer: what is called in its stead}`."""
    nodes = graphs.inline(graph).nodes
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
        if kind is _SplitAttention and (masked or not all(map(_attends_plainly, found))):
            continue
        scopes = [taken[n.site[: len(n.site) - len(layer.name)]] for n in found]
        splitters[key] = kind(layer, lambda part, of=layer, scopes=scopes: _free(of, part, scopes))
    return splitters


def _splitter_of(layer):
    if isinstance(layer, (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)):
        return _SplitSeparable
    # A subclass may attend in a way of its own.
    if type(layer) is keras.layers.MultiHeadAttention:
        return _SplitAttention
    return _SplitActivation if _splits_activation(layer) else None


def _splits_activation(layer):
    return isinstance(layer, _WITH_ACTIVATION) and layer.activation not in _FUSED_ACTIVATIONS


def _attends_plainly(node):
    """Whether a call of attention is softmax(query key) value over the axis of a sequence."""
    args, kwargs = node.arguments({tensor: tensor for tensor in node.inputs})
    given = inspect.signature(node.layer.call).bind(*args, **kwargs).arguments
    if any(given.get(name) not in (None, False) for name in _ATTENTION_SWITCHES):
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
            _names(node.subgraph, f"{node.site}/", found)
    return found


def _free(layer, part, scopes):
    """Returns `<name>_<part>`, numbered where a model has a layer of that name already."""
    base = name = f"{layer.name}_{part}"
    number = 0
    while any(name in scope for scope in scopes):
        number += 1
        name = f"{base}_{number}"
    for scope in scopes:
        scope.add(name)
    return name


class _SplitActivation:
    """A layer with kernels, and its activation as a layer.

    Args:
        layer: Of the copied model; its activation is taken away.
        named: `named(part)` gives the name of a part.

    Attributes:
        kernels: `{name of a part: {name in the whole layer: name in the part}}`.
    """

    def __init__(self, layer, named):
        self.layer = layer
        activation = layer.activation
        name = named("activation")
        common = {"name": name, "dtype": layer.dtype_policy}
        self._weights = None
        if isinstance(activation, keras.layers.Layer):
            self._weights = activation
            self.activation = type(activation).from_config({**activation.get_config(), **common})
        else:
            self.activation = keras.layers.Activation(activation, **common)
        # A penalty on what a layer makes is one on what its activation makes.
        self.activation.activity_regularizer = layer.activity_regularizer
        self.kernels = {name: {}}

    def __call__(self, *args, **kwargs):
        self.layer.activation = keras.activations.linear
        self.layer.activity_regularizer = None
        outputs = self.activation(self.layer(*args, **kwargs))
        if self._weights is not None:
            self.activation.set_weights(self._weights.get_weights())
            self._weights = None
        return outputs


class _SplitSeparable:
    """A separable convolution as a depthwise one and one over single positions.

    Args, attributes: As of `_SplitActivation`.
    """

    def __init__(self, layer, named):
        self.whole = layer
        one_axis = isinstance(layer, keras.layers.SeparableConv1D)
        depthwise = keras.layers.DepthwiseConv1D if one_axis else keras.layers.DepthwiseConv2D
        pointwise = keras.layers.Conv1D if one_axis else keras.layers.Conv2D
        common = {
            "data_format": layer.data_format,
            "dtype": layer.dtype_policy,
            "trainable": layer.trainable,
        }
        self.depthwise = depthwise(
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            depth_multiplier=layer.depth_multiplier,
            dilation_rate=layer.dilation_rate,
            use_bias=False,
            depthwise_initializer=layer.depthwise_initializer,
            depthwise_regularizer=layer.depthwise_regularizer,
            depthwise_constraint=layer.depthwise_constraint,
            name=named("depthwise"),
            **common,
        )
        self.pointwise = pointwise(
            layer.filters,
            1,
            activation=layer.activation,
            use_bias=layer.use_bias,
            kernel_initializer=layer.pointwise_initializer,
            kernel_regularizer=layer.pointwise_regularizer,
            kernel_constraint=layer.pointwise_constraint,
            bias_initializer=layer.bias_initializer,
            bias_regularizer=layer.bias_regularizer,
            bias_constraint=layer.bias_constraint,
            activity_regularizer=layer.activity_regularizer,
            name=named("pointwise"),
            **common,
        )
        self.kernels = {
            self.depthwise.name: {"depthwise_kernel": "kernel"},
            self.pointwise.name: {"pointwise_kernel": "kernel"},
        }
        self._last = self.pointwise
        if _splits_activation(self.pointwise):
            self._last = _SplitActivation(self.pointwise, lambda part: named(part))
            self.kernels |= self._last.kernels

    def __call__(self, x):
        outputs = self._last(self.depthwise(x))
        if self.whole is not None:
            depthwise, *rest = self.whole.get_weights()
            self.depthwise.set_weights([depthwise])
            self.pointwise.set_weights(rest)
            self.whole = None
        return outputs


class _SplitAttention:
    """Multi-head attention as projections, products, softmax and dropout.

    Args, attributes: As of `_SplitActivation`.
    """

    def __init__(self, layer, named):
        whole = {
            "query": layer.query_dense,
            "key": layer.key_dense,
            "value": layer.value_dense,
            "output": layer.output_dense,
        }
        self._whole = whole
        self.dense, self.kernels = {}, {}
        for part, dense in whole.items():
            config = {**dense.get_config(), "name": named(part)}
            config["trainable"] = layer.trainable and dense.trainable
            self.dense[part] = keras.layers.EinsumDense.from_config(config)
            self.kernels[config["name"]] = {f"{dense.name}/kernel": "kernel"}

        def made(kind, part, *args, **kwargs):
            name = named(part)
            self.kernels[name] = {}
            return kind(*args, **kwargs, name=name, dtype=layer.dtype_policy)

        # Right behind the projection, where it folds into the kernel.
        scale = 1.0 / math.sqrt(layer.key_dim)
        self.scale = made(keras.layers.Rescaling, "scale", scale)
        # Heads are an axis of the batch in the products, which are BATCH_MATMUL then.
        self.query_heads = made(keras.layers.Permute, "query_heads", (2, 1, 3))
        self.key_heads = made(keras.layers.Permute, "key_heads", (2, 3, 1))
        self.value_heads = made(keras.layers.Permute, "value_heads", (2, 1, 3))
        self.softmax = made(keras.layers.Softmax, "softmax", axis=-1)
        self.joined = made(keras.layers.Permute, "joined", (2, 1, 3))
        self.dropout = None
        if layer.dropout > 0:
            self.dropout = made(
                keras.layers.Dropout, "dropout", layer.dropout, seed=layer.get_config()["seed"]
            )
        self.scores, self.attended = (_product(named(part)) for part in ("scores", "attended"))
        self.kernels |= {self.scores.name: {}, self.attended.name: {}}

    def __call__(self, *args, **kwargs):
        given = dict(zip(("query", "value", "key"), args)) | kwargs
        query, value = given["query"], given["value"]
        key = value if given.get("key") is None else given["key"]
        query = self.query_heads(self.scale(self.dense["query"](query)))
        key = self.key_heads(self.dense["key"](key))
        value = self.value_heads(self.dense["value"](value))
        weights = self.softmax(self.scores(query, key))
        if self.dropout is not None:
            training = given.get("training")
            chosen = {} if training is None else {"training": training}
            weights = self.dropout(weights, **chosen)
        outputs = self.dense["output"](self.joined(self.attended(weights, value)))
        for part, dense in self._whole.items():
            self.dense[part].set_weights(dense.get_weights())
        self._whole = {}
        return outputs


def _product(name):
    """`keras.ops.matmul` as an operation with a name of its own.

    Keras would name it by a count over the process, which may be the name of another operation in a
    model that was loaded.
    """
    a, b = keras.Input((1, 1)), keras.Input((1, 1))
    operation = keras.Model([a, b], keras.ops.matmul(a, b)).operations[-1]
    return type(operation)(name=name)
