"""The components of a `DQMQModel`, and how they are built from a float model."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from dqmq_tf.assembly.graph_assembly import GraphAssembly
from dqmq_tf.budget.costs import CostModel
from dqmq_tf.budget.default_budget import allowed_bit_ops, budget_kind
from dqmq_tf.config import Budget, DQMQConfig
from dqmq_tf.graph import Graph, decision_points, inline, splitting, trace, trace_nested
from dqmq_tf.graph.aliases import with_aliases
from dqmq_tf.graph.constant_merging import merge_constants
from dqmq_tf.graph.deep_graphs import deep_graphs
from dqmq_tf.graph.finite_weights import check_finite_weights
from dqmq_tf.graph.rebuild import connect_again, forget_calls
from dqmq_tf.graph.unfolding import unfold_layers
from dqmq_tf.layers import ActivationQuantizer, QualityAffine, QuantizeWrapper
from dqmq_tf.policy.bit_width_policy import BitWidthPolicy
from dqmq_tf.policy.quality_encoder import QualityEncoder
from dqmq_tf.targets import Target
from dqmq_tf.training.batch_statistics import normalizations


@dataclasses.dataclass(kw_only=True)
class ModelParts:
    """The components of a `DQMQModel`. Keras tracks the layers among them through the model's graph.

    Attributes:
        body: The float model whose variables the quantized graph uses.
        instrumented: The quantized graph with the decision among its outputs.
        encoder: The layer that computes the quality embedding.
        policy: The layer that decides the bit-widths.
        affine_of: The `QualityAffine` of each path of a batch normalization that has one.
        quantizers: The `ActivationQuantizer` of each activation point.
        wrappers: The `QuantizeWrapper` of each layer path.
        norms: The `BatchNormalization` layers that are called once per training step.
        costs: The cost model, in the unit of the budget.
        target: The deployment target.
        budget: The budget. None until `BudgetKeeper.set_budget` sets the user's or the default one.
        config: The configuration, with the defaults that depend on the kind of budget filled in.
        bit_ops: The bit operations per input that set the size of encoder and quality normalization.
        encoder_shape: The shape of the first input when the model was quantized, by which the
            encoder was chosen.
        output_names: The names of the outputs of the original model.
        aliases: `[tensor, alias]` of tensors that are equal at inference and share a quantizer.
        functions_share_scales: See `dqmq_tf.graph.Graph`.
        budget_is_default: Whether the budget is the default one.
    """

    body: keras.Model
    instrumented: keras.Model
    encoder: QualityEncoder
    policy: BitWidthPolicy
    affine_of: dict[str, QualityAffine]
    quantizers: list[ActivationQuantizer]
    wrappers: dict[str, QuantizeWrapper]
    norms: list[keras.layers.BatchNormalization]
    costs: CostModel
    target: Target
    budget: Budget | None
    config: DQMQConfig
    bit_ops: float
    encoder_shape: tuple[int | None, ...]
    output_names: list[str]
    aliases: list[list[int]]
    functions_share_scales: bool
    budget_is_default: bool = False

    @property
    def affines(self) -> list[QualityAffine]:
        """The `QualityAffine` layers, from the input to the output."""
        return list(self.affine_of.values())

    @functools.cached_property
    def graph(self) -> Graph:
        """The graph of `body`. Training changes the weights of its layers only."""
        return trace(self.body)

    def current_body(self) -> keras.Model:
        """Returns `body`, whose nested models are as trainable as the user made the quantized ones.

        They share their layers, but the attribute of a model is its own, and a config that says
        `trainable=False` freezes all layers of the model.
        """
        _copy_trainable(self.instrumented, self.body)
        return self.body

    def decision_points(self) -> tuple[str, ...]:
        """Returns the names of the decision points, activations first."""
        activations = [self.costs.activations[i].name for i in self.costs.decided]
        return (*activations, *(point.name for point in self.costs.weights))

    def check_finite(self) -> None:
        """Raises `ConversionError` if training made weights or ranges NaN or infinite."""
        check_finite_weights(self.graph, self.log_steps())

    def log_steps(self) -> dict[str, keras.Variable]:
        """Returns `{name of an activation point: logarithm of its steps}`."""
        names = [point.name for point in self.costs.activations]
        return {name: q.log_step for name, q in zip(names, self.quantizers, strict=True)}

    def decide(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the decision of the policy for values `[batch, ...]` of the model's first input."""
        decision = self.policy(self.encoder(ops.convert_to_tensor(x)), training=False)
        return {key: ops.convert_to_numpy(value) for key, value in decision.items()}

    def deciding_ids(self) -> set[int]:
        """Returns the ids of the variables of policy, encoder and quality normalization."""
        layers: list[keras.layers.Layer] = [self.policy, self.encoder, *self.affines]
        return {id(v) for layer in layers for v in layer.variables}


@deep_graphs()
def build(
    model: keras.Model,
    target: Target,
    budget: Budget | None,
    config: DQMQConfig,
    bit_ops: float | None = None,
    output_names: Sequence[str] | None = None,
    aliases: Iterable[Sequence[int]] | None = None,
    functions_share_scales: bool = True,
    encoder_shape: Sequence[int | None] | None = None,
) -> tuple[Any, Any, ModelParts]:
    """Builds what a `DQMQModel` consists of.

    A saved model is built by this function and then gets its weights. Nothing that is computed from
    its first, random weights would be valid: neither step sizes nor the bytes of the weights.

    Args:
        model: The float model. It is not changed.
        target: The deployment target.
        budget: The user's budget, or None for the default one.
        config: The configuration.
        bit_ops: The bit operations per input that set the size of encoder and quality normalization.
            None for those that the budget allows. A saved model passes its own, because a default
            budget in bit operations is known only once encoder and normalization are.
        output_names: The names of the outputs for losses and logs. None for those of the model.
        aliases: The `ModelParts.aliases` of a saved model. None to find them by running layers.
        functions_share_scales: See `dqmq_tf.graph.Graph`.
        encoder_shape: The `ModelParts.encoder_shape` of a saved model. None for the shape of the
            first input.

    Returns:
        `(inputs, outputs, parts)`: the structures of Keras tensors for `keras.Model`, and a
        `ModelParts`.

    Raises:
        ValueError: If the model, the budget or a rule of the configuration is not valid.
    """
    body = model
    if aliases is None:
        # A saved model has unfolded layers already, or is of a version that did not unfold them.
        body, parts_of_layers = unfold_layers(model, config)
        config = splitting.with_part_rules(config, parts_of_layers)
    # A saved model has split layers already, or is of a version that did not split all of them.
    body, parts_of_layers = splitting.split_layers(body, splits_all=aliases is None)
    config = splitting.with_part_rules(config, parts_of_layers)
    if aliases is None:
        # A saved model has merged layers already, or is of a version that did not merge them.
        body = merge_constants(body, config)
    nested = trace_nested(body)
    graph = dataclasses.replace(inline(nested), functions_share_scales=functions_share_scales)
    if aliases is not None:
        graph = with_aliases(graph, aliases)
    activations, weights = decision_points.find_points(graph, target, config)
    float_weights = decision_points.float_weight_count(graph, weights)
    costs = CostModel(budget_kind(budget, target), target, activations, weights, float_weights)
    config = config.completed(not costs.counts_activations)
    bit_ops = allowed_bit_ops(budget, costs) if bit_ops is None else bit_ops
    encoder_shape = encoder_shape or nested.shapes[nested.inputs[0]]
    assembly = GraphAssembly(costs, config, nested, bit_ops, encoder_shape)
    # The quantized graph calls the layers first, so that `layer.output` belongs to it.
    forget_calls(nested)
    inputs, outputs, outputs_and_decision = assembly.connect(nested)
    body = connect_again(nested, body)
    follows_sample = bool(costs.decided) and not target.deployable
    if config.quality_aware and (follows_sample or config.profiles > 1):
        costs.overhead = assembly.bit_operations(nested.shapes[nested.inputs[0]])
    parts = ModelParts(
        body=body,
        instrumented=keras.Model(inputs, outputs_and_decision),
        encoder=assembly.encoder,
        policy=assembly.policy,
        affine_of=assembly.affine_of,
        quantizers=assembly.quantizers,
        wrappers=assembly.wrappers,
        norms=normalizations(graph),
        costs=costs,
        target=target,
        budget=budget,
        config=config,
        bit_ops=bit_ops,
        encoder_shape=tuple(encoder_shape),
        output_names=list(output_names) if output_names else names_of_outputs(model),
        aliases=[list(pair) for pair in graph.aliases.items()],
        functions_share_scales=functions_share_scales,
    )
    return inputs, outputs, parts


def _copy_trainable(quantized: keras.Model, body: keras.Model) -> None:
    """Marks the models nested in `body` as trainable or not, as those of the same names are."""
    for nested in body.layers:
        if isinstance(nested, keras.Model):
            source = quantized.get_layer(nested.name)
            # The public attribute would change the layers inside as well.
            nested._trainable = source.trainable
            _copy_trainable(source, nested)


def names_of_outputs(model: keras.Model) -> list[str]:
    """Returns the names that Keras gives to the outputs of a model."""
    if isinstance(model, keras.Sequential):
        return [model.layers[-1].name]
    return list(model.output_names)
