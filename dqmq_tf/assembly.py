"""Puts graph, policy and quantizing layers together into one Keras graph."""

import dataclasses

import keras

from dqmq_tf import graph as graphs
from dqmq_tf.budget.costs import CostModel
from dqmq_tf.budget.default_budget import allowed_bit_ops, budget_kind
from dqmq_tf.config import Budget, DQMQConfig
from dqmq_tf.graph import activations, decision_points, fusion, splitting
from dqmq_tf.graph.aliases import with_aliases
from dqmq_tf.graph.rebuild import new_inputs, single, structured
from dqmq_tf.layers import (
    ActivationQuantizer,
    Constants,
    FusedBatchNormalization,
    QualityAffine,
    QuantizeWrapper,
    RectifiedQuantizer,
    Reorder,
    is_fusible,
)
from dqmq_tf.policy.bit_width_policy import BitWidthPolicy
from dqmq_tf.policy.quality_encoder import QualityEncoder
from dqmq_tf.training.batch_statistics import normalizations


@dataclasses.dataclass(kw_only=True)
class ModelParts:
    """What a `DQMQModel` is made of, beside its graph; views on its layers, not tracked by Keras.

    Attributes:
        body: The float model whose variables the quantized graph uses.
        instrumented: The same graph with the decision among its outputs.
        encoder, policy: The layers that decide.
        affines: The `QualityAffine`s.
        quantizers: The `ActivationQuantizer` of each activation point.
        wrappers: `{path: QuantizeWrapper}`.
        norms: The `BatchNormalization`s that a training step calls once.
        costs, target, budget, config: See `quantize_model`.
        bit_ops: By which encoder and normalization were measured out.
        output_names: Names of the outputs, those of the model that was quantized.
        aliases: `[tensor, alias]` of the tensors that are one at inference, and share a quantizer.
        budget_is_default: Whether the budget was chosen for a model that was given none.
    """

    body: keras.Model
    instrumented: keras.Model
    encoder: keras.layers.Layer
    policy: keras.layers.Layer
    affines: list
    quantizers: list
    wrappers: dict
    norms: list
    costs: object
    target: object
    budget: Budget
    config: DQMQConfig
    bit_ops: float
    output_names: list
    aliases: list
    budget_is_default: bool = False


# Share of the bit operations that normalization may take to follow the quality.
_NORMALIZATION_SHARE = 0.02


def build(model, target, budget, config, bit_ops=None, output_names=None, aliases=None):
    """Returns what a `DQMQModel` is made of: `(inputs, outputs, ModelParts)`.

    A saved model is built anew by this and then given its weights: step sizes for its first, random
    weights, or what those would cost, say nothing.

    Args:
        model, target, budget, config: See `quantize_model`.
        bit_ops: Per input, by which encoder and normalization are measured out; None for those of
            the budget. A default budget is known only once these are.
        output_names: Names of the outputs, for losses and logs; None for those of the model.
        aliases: Of a saved model, see `ModelParts`; None to find them by running layers.
    """
    body, made = splitting.split_layers(model)
    config = splitting.with_part_rules(config, made)
    nested = graphs.trace_nested(body)
    graph = graphs.inline(nested)
    if aliases is not None:
        graph = with_aliases(graph, aliases)
    activations, weights = decision_points.find_points(graph, target, config)
    kept = decision_points.float_weight_count(graph, weights)
    costs = CostModel(budget_kind(budget, target), target, activations, weights, kept)
    config = config.completed(costs.in_bytes)
    bit_ops = allowed_bit_ops(budget, costs) if bit_ops is None else bit_ops
    assembly = GraphAssembly(costs, config, nested, bit_ops)
    inputs, outputs, result = assembly.connect(nested)
    if config.quality_aware and (costs.decided or config.profiles > 1):
        costs.overhead = assembly.bit_operations(nested.shapes[nested.inputs[0]])
    parts = ModelParts(
        body=body,
        instrumented=keras.Model(inputs, result),
        encoder=assembly.encoder,
        policy=assembly.policy,
        affines=assembly.affines,
        quantizers=assembly.quantizers,
        wrappers=assembly.wrappers,
        norms=normalizations(graph),
        costs=costs,
        target=target,
        budget=budget,
        config=config,
        bit_ops=bit_ops,
        output_names=output_names or names_of_outputs(model),
        aliases=[list(pair) for pair in graph.aliases.items()],
    )
    return inputs, outputs, parts


def names_of_outputs(model):
    """Returns the names that Keras gives to the outputs of a model."""
    if isinstance(model, keras.Sequential):
        return [model.layers[-1].name]
    return list(model.output_names)


class GraphAssembly:
    """Connects encoder, policy, quantizers and wrapped layers into one functional graph."""

    def __init__(self, costs, config, graph, bit_ops):
        self.costs = costs
        input_shape = graph.shapes[graph.inputs[0]]
        # Sorting a batch would part its samples from masks that Keras carries beside them.
        masks = any(splitting.makes_mask(node.layer) for node in graphs.inline(graph).nodes)
        self.encoder = QualityEncoder.for_model(
            input_shape,
            bit_ops,
            config.embedding_size,
            seed=config.seed,
            name="quality_encoder",
        )
        self.policy = BitWidthPolicy(
            activations=[costs.activations[i].bit_widths for i in costs.decided],
            weights=[point.bit_widths for point in costs.weights],
            groups=1 if masks else config.profiles,
            initial_sigma=config.initial_sigma,
            quality_aware=config.quality_aware,
            seed=config.seed,
            name="bit_width_policy",
        )
        self.policy.pathwise = config.terms.pathwise
        self.policy.curvature = config.terms.curvature
        self._profiles = config.profiles
        self.quantizers, self.wrappers, self._nested, self._fused = [], {}, {}, {}
        # Files hold one normalization: what follows each input exists in simulation only.
        follows = config.quality_aware and config.quality_normalization
        self._conditions = follows and not costs.target.deployable
        self._affines, self._spare = {}, _NORMALIZATION_SHARE * bit_ops
        self._quantizer_of = {}
        self._called = graphs.inline(graph).calls
        columns = {point: column for column, point in enumerate(costs.decided)}
        for i, point in enumerate(costs.activations):
            is_input = all(call == fusion.INPUT_CALL for _, call, _ in point.slots)
            quantizer = ActivationQuantizer(
                point.bit_widths,
                column=columns.get(i),
                range=point.range,
                # A calibrated step is enough for images at 8 bits, and spares the first layer,
                # a float network's dearest to differentiate, the gradient to its input.
                trainable=point.decided or not is_input,
                name=f"{point.name.replace('/', '_')}_quantizer",
            )
            self.quantizers.append(quantizer)
            self._quantizer_of.update({slot: quantizer for slot in point.slots})
        self._points_of = {}
        for column, point in enumerate(costs.weights):
            self._points_of.setdefault(point.path, []).append(
                {
                    "variable": point.variable,
                    "column": column,
                    "channel_axes": point.channel_axes,
                    "bit_widths": point.bit_widths,
                }
            )

    @property
    def affines(self):
        """The `QualityAffine`s that were made."""
        return [layer for layer in self._affines.values() if layer]

    def bit_operations(self, input_shape):
        """Returns the bit operations per input of encoder, policy and normalization."""
        policy = self.policy.bit_operations(self.encoder.size, self._profiles)
        shapes = [layer.scale_direction.shape for layer in self.affines]
        normalization = sum(QualityAffine.bit_operations(*shape) for shape in shapes)
        return self.encoder.bit_operations(input_shape) + policy + normalization

    def connect(self, graph):
        """Returns inputs, outputs, and the outputs together with the decision."""
        inputs = new_inputs(graph)
        z = self.encoder(inputs[0])
        decision = self.policy(z)
        sort, unsort = Reorder(name="sort_by_quality"), Reorder(inverse=True, name="unsort")
        values = {}
        for i, (tensor, x) in enumerate(zip(graph.inputs, inputs)):
            x = sort(x, decision["order"])
            values[tensor] = self._quantized(("", fusion.INPUT_CALL, i), x, decision)
        outputs = graphs.replay(graph, values, lambda *call: self._call(decision, *call))
        outputs = keras.tree.map_structure(lambda y: unsort(y, decision["order"], like=z), outputs)
        outputs = single(outputs)
        return structured(graph, inputs), outputs, {"outputs": outputs, **decision}

    def _call(self, decision, node, args, kwargs):
        if self._is_rectifier(node, args, kwargs):
            return self._rectified(decision, node, *args)
        if node.subgraph is not None:
            outputs = self._call_nested(decision, node, args, kwargs)
        elif node.path in self._points_of:
            if node.path not in self.wrappers:
                self.wrappers[node.path] = QuantizeWrapper(node.layer, self._points_of[node.path])
            tensors, constants = _split_arguments(kwargs)
            outputs = self.wrappers[node.path](
                *args,
                weight_decision=decision["weights"],
                group=decision["group"],
                constants=Constants(constants) if constants else None,
                **tensors,
            )
        else:
            outputs = self._plain(decision, node, args, kwargs)
        flat = keras.tree.flatten(outputs)
        slots = [(node.path, node.call, i) for i in range(len(flat))]
        flat = [self._quantized(slot, y, decision) for slot, y in zip(slots, flat)]
        return keras.tree.pack_sequence_as(outputs, flat)

    def _plain(self, decision, node, args, kwargs):
        """Calls a layer without kernels; the scale and shift of a batch normalization follow."""
        layer, x = node.layer, args[0] if args else None
        conditions = self._conditions and isinstance(layer, keras.layers.BatchNormalization)
        affine = self._affine(node, x) if conditions else None
        if not keras.backend.is_keras_tensor(x) or not is_fusible(layer, x.shape, x.dtype):
            outputs = layer(*args, **kwargs)
            return affine(outputs, decision["embedding"]) if affine else outputs
        if node.path not in self._fused:
            self._fused[node.path] = FusedBatchNormalization(layer, affine)
        quality = {"z": decision["embedding"]} if affine else {}
        return self._fused[node.path](*args, **quality, **kwargs)

    def _is_rectifier(self, node, args, kwargs):
        """Whether a node is a relu, and no more, whose output has a quantizer of its own."""
        if not activations.is_relu(node.layer) or len(args) != 1 or kwargs:
            return False
        plain = getattr(node.layer, "activity_regularizer", None) is None
        same = getattr(node.layer, "compute_dtype", args[0].dtype) == args[0].dtype
        known = self._quantizer_of.get((node.path, node.call, 0)) is not None
        return known and plain and same and self._called[node.path] == 1

    def _rectified(self, decision, node, x):
        quantizer = self._quantizer_of[node.path, node.call, 0]
        layer = RectifiedQuantizer(
            quantizer, activations.relu_ceiling(node.layer), name=node.layer.name
        )
        return self._quantize(layer, quantizer, x, decision)

    def _call_nested(self, decision, node, args, kwargs):
        """A nested model stays a model; the decision enters it as more inputs."""
        names = ["activations", "weights", "group", *["embedding"] * self._conditions]
        handed = [decision[name] for name in names]
        if node.path not in self._nested:
            inputs = new_inputs(node.subgraph)
            entries = [keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in handed]
            inner = dict(zip(names, entries))
            values = dict(zip(node.subgraph.inputs, inputs))
            outputs = graphs.replay(node.subgraph, values, lambda *call: self._call(inner, *call))
            self._nested[node.path] = keras.Model(
                [*inputs, *entries], single(outputs), name=node.layer.name
            )
        tensors = [
            x for x in keras.tree.flatten((args, kwargs)) if keras.backend.is_keras_tensor(x)
        ]
        training = {"training": kwargs["training"]} if "training" in kwargs else {}
        return self._nested[node.path]([*tensors, *handed], **training)

    def _affine(self, node, x):
        """The `QualityAffine` of a batch normalization; None once they would take too much.

        They are given from the input on: early layers have few channels, and what is made up for
        there need not be made up for later.
        """
        if node.path not in self._affines:
            channels = x.shape[node.layer.axis]
            self._spare -= QualityAffine.bit_operations(self.encoder.size, channels)
            name = f"{node.path.replace('/', '_')}_quality"
            layer = QualityAffine(node.layer.axis, name=name) if self._spare >= 0 else None
            self._affines[node.path] = layer
        return self._affines[node.path]

    def _quantized(self, slot, x, decision):
        quantizer = self._quantizer_of.get(slot)
        return x if quantizer is None else self._quantize(quantizer, quantizer, x, decision)

    @staticmethod
    def _quantize(layer, quantizer, x, decision):
        """Calls a layer that runs a quantizer with what the quantizer needs to know."""
        if quantizer.column is None:
            return layer(x)
        return layer(x, decision=decision["activations"])


def _split_arguments(kwargs):
    """Call arguments that hold tensors, and those that do not."""
    tensors = {
        key: value
        for key, value in kwargs.items()
        if any(keras.backend.is_keras_tensor(leaf) for leaf in keras.tree.flatten(value))
    }
    return tensors, {key: value for key, value in kwargs.items() if key not in tensors}
