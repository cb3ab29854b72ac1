"""Quantizing chosen layers only: annotate them, then apply, as with TFMOT."""

import dataclasses
import re

import keras

from dqmq_tf import graph as graphs
from dqmq_tf.config import DQMQConfig, LayerRule
from dqmq_tf.graph.kernels import kernel_variables
from dqmq_tf.graph.rebuild import rebuild
from dqmq_tf.quantize import quantize_model


@keras.saving.register_keras_serializable(package="dqmq_tf")
class QuantizeAnnotate(keras.layers.Layer):
    """Marks a layer for `quantize_apply`, and calls it; made by `quantize_annotate_layer`.

    A config is saved as the rule that it amounts to for this layer, so that a model with any TFMOT
    `QuantizeConfig` loads without scope and without TFMOT.

    Args:
        layer: The layer.
        config: What `quantize_annotate_layer` takes, or None.
    """

    def __init__(self, layer, config=None, **kwargs):
        kwargs = {"name": f"quantize_annotate_{layer.name}", **kwargs, "autocast": False}
        super().__init__(**kwargs)
        self.layer = layer
        self.quantize_config = config
        self.supports_masking = layer.supports_masking

    def build(self, *args, **kwargs):
        """The layer builds itself when it is called: it knows its own arguments."""

    def call(self, *args, **kwargs):
        return self.layer(*args, **kwargs)

    def compute_mask(self, inputs, previous_mask=None):
        return self.layer.compute_mask(inputs, previous_mask)

    def rule(self, path):
        """Returns the annotation's own `LayerRule` for the layer with path `path`, or None.

        Raises:
            ValueError: If the config does not fit the layer or cannot be expressed as a rule.
        """
        config = self.quantize_config
        if config is None:
            return None
        if isinstance(config, LayerRule):
            rule = dataclasses.replace(config, pattern=re.escape(path))
        else:
            # Only here may TFMOT be needed: it is an optional package, and slow to import.
            from dqmq_tf.tfmot import quantize_config

            rule = quantize_config.to_rule(config, self.layer, path)
        if (rule.weight_bits or rule.weights) and not kernel_variables(self.layer):
            raise ValueError(
                f"Layer {path!r} is annotated with weight bits or names, and it has no kernel: "
                "leave weights and weight_bits at None."
            )
        return rule

    def get_config(self):
        rule = self.rule(self.layer.name)
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "config": None if rule is None else dataclasses.asdict(rule),
        }

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config["layer"])
        rule = config["config"] and LayerRule(**config["config"])
        return cls(**{**config, "layer": layer, "config": rule})


def quantize_annotate_layer(layer, config=None):
    """Marks a layer to be quantized by `quantize_apply`; until then it runs in floating point.

    Args:
        layer: A Keras 3 layer, built or not. For a nested model, use `quantize_annotate_model`.
        config: The layer's own candidates: a `DQMQQuantizeConfig`, any other TFMOT
            `QuantizeConfig`, or a `LayerRule` (of which the pattern is not read). None for what
            the rules of `quantize_apply` say, else all candidates of the target.

    Returns:
        A `QuantizeAnnotate` layer, to be used in place of `layer`.

    Raises:
        ValueError: If `layer` is no layer or already annotated, or `config` none of these.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((4,)),
    ...     keras.layers.Dense(8),
    ...     dqmq_tf.quantize_annotate_layer(
    ...         keras.layers.Dense(2), dqmq_tf.DQMQQuantizeConfig(weight_bits=(4, 8))
    ...     ),
    ... ])
    >>> qmodel = dqmq_tf.quantize_apply(model)
    """
    if isinstance(layer, QuantizeAnnotate):
        raise ValueError(f"Layer {layer.layer.name!r} is already annotated: annotate it once.")
    if isinstance(layer, keras.Model):
        raise ValueError(
            f"{layer.name!r} is a model: use quantize_annotate_model on it, which marks its layers."
        )
    if not isinstance(layer, keras.layers.Layer) or isinstance(layer, keras.layers.InputLayer):
        raise ValueError(
            f"Expected a Keras 3 layer to annotate, found {layer!r} of type "
            f"{type(layer).__module__}.{type(layer).__name__}."
        )
    is_tfmot = hasattr(config, "get_weights_and_quantizers") and not isinstance(config, type)
    if config is not None and not isinstance(config, LayerRule) and not is_tfmot:
        raise ValueError(
            f"Layer {layer.name!r}: config={config!r} is not known; give a "
            "dqmq_tf.DQMQQuantizeConfig, another TFMOT QuantizeConfig object, or a "
            "dqmq_tf.LayerRule."
        )
    return QuantizeAnnotate(layer, config)


def quantize_annotate_model(model):
    """Marks every layer of a model that has a kernel, those of nested models included.

    Args:
        model: A built Keras 3 Sequential or functional model. It is not changed. Layers that are
            annotated already keep their configs.

    Returns:
        A new model with the same weights, not compiled.

    Raises:
        ValueError: If the model is subclassed, not built or not of Keras 3, or has no kernel.

    Example:

    >>> qmodel = dqmq_tf.quantize_apply(dqmq_tf.quantize_annotate_model(model))
    """
    nodes = graphs.trace(model).nodes
    if not any(isinstance(n.layer, QuantizeAnnotate) or _has_kernel(n.layer) for n in nodes):
        raise ValueError(f"Model {model.name!r} has no layer with a kernel to annotate.")

    def annotate(layer, copy):
        return QuantizeAnnotate(copy(layer)) if _has_kernel(layer) else copy(layer)

    return _replaced(model, annotate)


def quantize_apply(model, *, target="android", budget=None, config=None):
    """Quantizes the annotated layers of a model; all other kernels stay in floating point.

    An integer kernel reads and makes integers. So what has no kernel (batch norm, relu, pools,
    adds) and the model's inputs are quantized where an annotated layer reads them, directly or
    through others of these, and where they are made of the outputs of annotated layers alone;
    `quantize_apply(quantize_annotate_model(model))` quantizes what `quantize_model(model)` does.

    Args:
        model: A built model with layers from `quantize_annotate_layer` or
            `quantize_annotate_model`. It is not changed.
        target, budget: See `quantize_model`.
        config: A `DQMQConfig`. Its rules hold, by the layers' own paths, for annotated layers
            without a config of their own and what lies around them: a config of an annotation
            comes first, and no rule quantizes a layer that is not annotated.

    Returns:
        A `DQMQModel` with the names and weights of the layers that were annotated.

    Raises:
        ValueError: If there is no annotation or the model is not built, if the config of an
            annotation names a weight that its layer lacks or bits that the target does not run,
            and as `quantize_model` does.

    Example:

    >>> qmodel = dqmq_tf.quantize_apply(model, budget=dqmq_tf.Budget(download_bytes=20_000))
    >>> qmodel.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    """
    annotations = {}

    def unwrap(layer, copy):
        if not isinstance(layer, QuantizeAnnotate):
            return copy(layer)
        inner = copy(layer.layer)
        annotations[id(inner)] = layer
        return inner

    plain = _replaced(model, unwrap)
    if not annotations:
        raise ValueError(
            f"Model {model.name!r} has no annotated layer to quantize: mark some with "
            "quantize_annotate_layer, or all with quantize_annotate_model; quantize_model "
            "quantizes all at once."
        )
    config = config or DQMQConfig()
    rules = (*_rules(graphs.trace(plain), annotations), *config.rules)
    config = dataclasses.replace(config, rules=rules)
    return quantize_model(plain, target=target, budget=budget, config=config)


def _rules(graph, annotations):
    """`LayerRule`s that quantize the annotated paths of a graph and what lies around them."""
    layers = {node.path: node.layer for node in graph.nodes}
    own = {
        path: annotations[id(layer)].rule(path)
        for path, layer in layers.items()
        if id(layer) in annotations
    }
    annotated = {path for path, rule in own.items() if rule is None or rule.quantize}
    taking_part = annotated | _around(graph, annotated)
    rules = []
    for path in (*layers, *graph.input_names):
        rule = own.get(path)
        if path not in taking_part:
            rule = LayerRule(pattern=re.escape(path), quantize=False)
        if rule is not None:
            rules.append(rule)
    return rules


def _around(graph, annotated):
    """Sites without kernels, and inputs, whose integers annotated layers read or have made."""
    made, floating, read, found = set(), set(), set(), set()
    # Nodes are in execution order, so one pass each way follows any number of them.
    for node in graph.nodes:
        if node.path in annotated:
            made.update(node.outputs)
            read.update(node.inputs)
        elif _has_kernel(node.layer) or floating.intersection(node.inputs):
            floating.update(node.outputs)
        elif made.intersection(node.inputs):
            found.add(node.path)
            made.update(node.outputs)
            read.update(node.inputs)
    for node in reversed(graph.nodes):
        if read.intersection(node.outputs) and not _has_kernel(node.layer):
            found.add(node.path)
            read.update(node.inputs)
    return found | {name for name, t in zip(graph.input_names, graph.inputs) if t in read}


def _has_kernel(layer):
    return not isinstance(layer, QuantizeAnnotate) and bool(kernel_variables(layer))


def _replaced(model, function):
    """Returns a copy of a model with `function(layer, copy)` in place of each layer.

    `copy(layer)` is the layer's copy, one for each layer; it has the weights once all is built.
    """
    copies, done = {}, {}

    def copy(layer):
        if id(layer) not in copies:
            copies[id(layer)] = layer, type(layer).from_config(layer.get_config())
        return copies[id(layer)][1]

    def call(node, args, kwargs):
        if id(node.layer) not in done:
            done[id(node.layer)] = function(node.layer, copy)
        return done[id(node.layer)](*args, **kwargs)

    result = rebuild(graphs.trace_nested(model), model.name, call)
    for layer, twin in copies.values():
        if isinstance(layer, keras.layers.Layer):
            twin.set_weights(layer.get_weights())
    return result
