"""Quantizes chosen layers only: annotate them, then apply, as in TFMOT."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import keras

from dqmq_tf import graph as graphs
from dqmq_tf.config import Budget, DQMQConfig, LayerRule
from dqmq_tf.graph.cloning import clone_layer, copy_state
from dqmq_tf.graph.fusion import fused_tensors
from dqmq_tf.graph.kernels import kernel_variables
from dqmq_tf.graph.overrides import warn_of_training_methods
from dqmq_tf.graph.rebuild import rebuild
from dqmq_tf.model import DQMQModel
from dqmq_tf.precision import KEEPS_PRECISION
from dqmq_tf.quantize import quantize_model
from dqmq_tf.targets import Target

# Returns the copy of a layer.
_Copy = Callable[[keras.layers.Layer], keras.layers.Layer]


@keras.saving.register_keras_serializable(package="dqmq_tf")
class QuantizeAnnotate(keras.layers.Layer):
    """Marks a layer for `quantize_apply`, and calls it. `quantize_annotate_layer` creates it.

    The config is saved as the equivalent rule for this layer. A model with a `DQMQQuantizeConfig`
    or a `LayerRule` loads without TFMOT. The quantizers of other configs are saved by class and
    config, see `dqmq_tf.tfmot.user_quantizers`.

    Args:
        layer: The layer.
        config: See `quantize_annotate_layer`.
    """

    def __init__(self, layer: keras.layers.Layer, config: Any = None, **kwargs: Any) -> None:
        kwargs = {"name": f"quantize_annotate_{layer.name}", **kwargs, **KEEPS_PRECISION}
        super().__init__(**kwargs)
        self.layer = layer
        self.quantize_config = config
        self.supports_masking = layer.supports_masking

    def build(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the layer builds itself in its first call, with its own arguments."""

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def rule(self, path: str) -> LayerRule | None:
        """Returns the `LayerRule` of the annotation, or None if it has no config.

        Args:
            path: The path of the layer, which becomes the pattern of the rule.

        Raises:
            ValueError: If the config does not fit the layer or cannot be expressed as a rule.
        """
        config = self.quantize_config
        if config is None:
            return None
        if isinstance(config, LayerRule):
            rule = dataclasses.replace(config, pattern=re.escape(path))
        else:
            # Import TFMOT only when it is needed: it is optional and slow to import.
            from dqmq_tf.tfmot import quantize_config

            rule = quantize_config.to_rule(config, self.layer, path)
        if (rule.weight_bits or rule.weights) and not kernel_variables(self.layer):
            raise ValueError(
                f"Layer {path!r} is annotated with weight bits or weight names, but has no kernel. "
                "Leave weights and weight_bits at None."
            )
        return rule

    def get_config(self) -> dict[str, Any]:
        rule = self.rule(self.layer.name)
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "config": None if rule is None else rule.to_dict(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuantizeAnnotate":
        layer = keras.saving.deserialize_keras_object(config["layer"])
        rule = config["config"] and LayerRule.from_dict(config["config"])
        return cls(**{**config, "layer": layer, "config": rule})


def quantize_annotate_layer(layer: keras.layers.Layer, config: Any = None) -> QuantizeAnnotate:
    """Marks a layer for `quantize_apply`. Until then it runs in floating point.

    Args:
        layer: A Keras 3 layer, built or not. For a nested model, use `quantize_annotate_model`.
        config: The candidates of this layer: a `DQMQQuantizeConfig`, any other TFMOT
            `QuantizeConfig`, or a `LayerRule`, whose pattern is ignored. None to use the rules of
            `quantize_apply`, or all candidates of the target if no rule matches.

    Returns:
        A `QuantizeAnnotate` layer to use in place of `layer`.

    Raises:
        ValueError: If `layer` is not a layer or is already annotated, or if `config` is of another
            type.

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
        raise ValueError(f"Layer {layer.layer.name!r} is already annotated. Annotate it once.")
    if isinstance(layer, keras.Model):
        raise ValueError(
            f"{layer.name!r} is a model. Call quantize_annotate_model, which marks its layers."
        )
    if not isinstance(layer, keras.layers.Layer) or isinstance(layer, keras.layers.InputLayer):
        raise ValueError(
            f"Expected a Keras 3 layer to annotate. Found {layer!r} of type "
            f"{type(layer).__module__}.{type(layer).__name__}."
        )
    is_tfmot = hasattr(config, "get_weights_and_quantizers") and not isinstance(config, type)
    if config is not None and not isinstance(config, LayerRule) and not is_tfmot:
        raise ValueError(
            f"Layer {layer.name!r}: config={config!r} is not known. Pass a "
            "dqmq_tf.DQMQQuantizeConfig, another TFMOT QuantizeConfig object, or a "
            "dqmq_tf.LayerRule."
        )
    return QuantizeAnnotate(layer, config)


def quantize_annotate_model(model: keras.Model) -> keras.Model:
    """Marks every layer of a model that has a kernel, including those of nested models.

    Args:
        model: A built Keras 3 Sequential or functional model. It is not changed. Layers that are
            already annotated keep their configs.

    Returns:
        A new, uncompiled model with the same weights.

    Raises:
        ValueError: If the model is subclassed, not built or not from Keras 3, or has no kernel.

    Example:

    >>> qmodel = dqmq_tf.quantize_apply(dqmq_tf.quantize_annotate_model(model))
    """
    nodes = graphs.trace(model).nodes
    if not any(isinstance(n.layer, QuantizeAnnotate) or _has_kernel(n.layer) for n in nodes):
        raise ValueError(f"Model {model.name!r} has no layer with a kernel to annotate.")
    warn_of_training_methods(model)

    def annotate(layer: keras.layers.Layer, copy: _Copy) -> keras.layers.Layer:
        if isinstance(layer, QuantizeAnnotate):
            # A copy of the annotation itself would turn its config into a rule already here.
            return QuantizeAnnotate(copy(layer.layer), layer.quantize_config, name=layer.name)
        return QuantizeAnnotate(copy(layer)) if _has_kernel(layer) else copy(layer)

    return _replace_layers(model, annotate)


def quantize_apply(
    model: keras.Model,
    *,
    target: str | Target = "android",
    budget: Budget | None = None,
    config: DQMQConfig | None = None,
) -> DQMQModel:
    """Quantizes the annotated layers of a model. All other kernels stay in floating point.

    An integer kernel reads and writes integers. Therefore a layer without a kernel (batch norm,
    ReLU, pooling, add) and an input of the model are quantized as well if an annotated layer reads
    their output, directly or through other such layers, or if they read only outputs of annotated
    layers. `quantize_apply(quantize_annotate_model(model))` quantizes the same tensors as
    `quantize_model(model)`.

    Args:
        model: A built model with layers from `quantize_annotate_layer` or
            `quantize_annotate_model`. It is not changed.
        target: See `quantize_model`.
        budget: See `quantize_model`.
        config: A `DQMQConfig`. Its rules match the paths of the original layers. They apply to
            annotated layers without a config of their own and to the layers around them. The config
            of an annotation takes precedence, and no rule quantizes a layer that is not annotated.

    Returns:
        A `DQMQModel` with the names and weights of the original layers.

    Raises:
        ValueError: If there is no annotation, if the model is not built, if the config of an
            annotation names a weight that its layer does not have or bits that the target does not
            support, or for any reason that `quantize_model` gives.

    Example:

    >>> qmodel = dqmq_tf.quantize_apply(model, budget=dqmq_tf.Budget(download_bytes=20_000))
    >>> qmodel.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    """
    # By the id of the copy of the annotated layer.
    annotations: dict[int, QuantizeAnnotate] = {}

    def unwrap(layer: keras.layers.Layer, copy: _Copy) -> keras.layers.Layer:
        if not isinstance(layer, QuantizeAnnotate):
            return copy(layer)
        inner = copy(layer.layer)
        annotations[id(inner)] = layer
        return inner

    plain = _replace_layers(model, unwrap)
    if not annotations:
        raise ValueError(
            f"Model {model.name!r} has no annotated layer to quantize. Mark layers with "
            "quantize_annotate_layer, or all of them with quantize_annotate_model, or call "
            "quantize_model to quantize the whole model."
        )
    warn_of_training_methods(model)
    config = config or DQMQConfig()
    rules = (*_rules(graphs.trace(plain), annotations), *config.rules)
    config = dataclasses.replace(config, rules=rules)
    return quantize_model(plain, target=target, budget=budget, config=config)


def _rules(graph: graphs.Graph, annotations: Mapping[int, QuantizeAnnotate]) -> list[LayerRule]:
    """Returns the rules that quantize the annotated layers and the layers around them.

    Args:
        graph: The graph of the model without annotations.
        annotations: The annotation of each annotated layer, by the id of the layer.
    """
    layers = {node.path: node.layer for node in graph.nodes}
    annotation_rules = {
        path: annotations[id(layer)].rule(path)
        for path, layer in layers.items()
        if id(layer) in annotations
    }
    annotated = {path for path, rule in annotation_rules.items() if rule is None or rule.quantize}
    users = {path: rule.user_quantizers for path, rule in annotation_rules.items() if rule}
    float_writers = {path for path, user in users.items() if user and user.has_float_output}
    quantized = annotated | _around(graph, annotated, float_writers)
    rules = []
    for path in (*layers, *graph.input_names):
        rule = annotation_rules.get(path)
        if path not in quantized:
            rule = LayerRule(pattern=re.escape(path), quantize=False)
        if rule is not None:
            rules.append(rule)
    return rules


def _around(graph: graphs.Graph, annotated: set[str], float_writers: set[str]) -> set[str]:
    """Returns the layers without kernels, and the inputs, that annotated layers quantize.

    These are the layers that annotated layers read, and those that read only annotated layers.

    Args:
        graph: The graph of the model without annotations.
        annotated: The paths of the annotated layers that are quantized.
        float_writers: The paths of those whose config leaves the output in floating point.
    """
    fused = fused_tensors(graph)
    written: set[int] = set()
    floating: set[int] = set()
    read: set[int] = set()
    around: set[str] = set()
    # Nodes are in execution order, so one pass in each direction follows chains of any length.
    for node in graph.nodes:
        if node.path in annotated:
            is_float = node.path in float_writers and not fused.intersection(node.outputs)
            (floating if is_float else written).update(node.outputs)
            read.update(node.inputs)
        elif _has_kernel(node.layer) or floating.intersection(node.inputs):
            floating.update(node.outputs)
        elif written.intersection(node.inputs):
            around.add(node.path)
            written.update(node.outputs)
            read.update(node.inputs)
    for node in reversed(graph.nodes):
        if read.intersection(node.outputs) and not _has_kernel(node.layer):
            around.add(node.path)
            read.update(node.inputs)
    around.update(name for name, t in zip(graph.input_names, graph.inputs) if t in read)
    return around


def _has_kernel(layer: keras.layers.Layer) -> bool:
    return not isinstance(layer, QuantizeAnnotate) and bool(kernel_variables(layer))


def _replace_layers(
    model: keras.Model, replacement: Callable[[keras.layers.Layer, _Copy], keras.layers.Layer]
) -> keras.Model:
    """Returns a copy of a model with other layers.

    Args:
        model: The model.
        replacement: `replacement(layer, copy)` returns the layer to use for a layer.
            `copy(layer)` returns the copy of a layer, always the same one. It gets the weights of
            the layer once the new model is built.
    """
    originals: dict[int, keras.layers.Layer] = {}
    copies: dict[int, keras.layers.Layer] = {}
    replacements: dict[int, keras.layers.Layer] = {}

    def copy(layer: keras.layers.Layer) -> keras.layers.Layer:
        if id(layer) not in copies:
            originals[id(layer)] = layer
            copies[id(layer)] = clone_layer(layer)
        return copies[id(layer)]

    def call(node: graphs.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if id(node.layer) not in replacements:
            replacements[id(node.layer)] = replacement(node.layer, copy)
        return replacements[id(node.layer)](*args, **kwargs)

    result = rebuild(graphs.trace_nested(model), model.name, call)
    for key, layer in originals.items():
        if isinstance(layer, keras.layers.Layer) and copies[key] is not layer:
            copy_state(layer, copies[key])
    return result
