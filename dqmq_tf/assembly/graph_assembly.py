"""Builds the quantized Keras graph of a float model."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from dqmq_tf.budget.costs import CostModel
from dqmq_tf.config import DQMQConfig
from dqmq_tf.graph import Graph, Node, inline, replay, splitting
from dqmq_tf.graph.activations import is_relu, relu_ceiling
from dqmq_tf.graph.fusion import INPUT_CALL, Slot, computes_means, gated_paths
from dqmq_tf.graph.rebuild import new_inputs, single, structured
from dqmq_tf.layers import (
    ActivationQuantizer,
    ChainedActivation,
    Constants,
    FusedBatchNormalization,
    QualityAffine,
    QuantizeWrapper,
    RectifiedQuantizer,
    Reorder,
    UserActivationQuantizer,
    is_chainable,
    is_fusible,
    shapes_worth_compiling,
)
from dqmq_tf.policy.bit_width_policy import BitWidthPolicy
from dqmq_tf.policy.quality_encoder import QualityEncoder

# Share of the bit operations that quality normalization may take.
_NORMALIZATION_SHARE = 0.02


class GraphAssembly:
    """Connects encoder, policy, quantizers and wrapped layers into one functional graph.

    Args:
        costs: The cost model, for its decision points.
        config: The configuration.
        graph: The graph of the float model, with nested models kept.
        bit_ops: The bit operations per input that set the size of encoder and quality normalization.
        encoder_shape: The shape of the first input by which the encoder is chosen.

    Attributes:
        encoder: The `QualityEncoder`.
        policy: The `BitWidthPolicy`.
        quantizers: The `ActivationQuantizer` of each activation point.
        wrappers: The `QuantizeWrapper` of each layer path. `connect` fills it.
    """

    def __init__(
        self,
        costs: CostModel,
        config: DQMQConfig,
        graph: Graph,
        bit_ops: float,
        encoder_shape: Sequence[int | None],
    ) -> None:
        inlined = inline(graph)
        # Sorting a batch would separate its samples from the masks that Keras passes beside them.
        has_masks = any(splitting.makes_mask(node.layer) for node in inlined.nodes)
        self.encoder = QualityEncoder.for_model(
            encoder_shape,
            bit_ops,
            config.embedding_size,
            seed=config.seed,
            name="quality_encoder",
        )
        assert config.initial_sigma is not None  # `completed` sets it.
        self.policy = BitWidthPolicy(
            activations=[costs.activations[i].bit_widths for i in costs.decided],
            weights=[point.bit_widths for point in costs.weights],
            groups=1 if has_masks else config.profiles,
            initial_sigma=config.initial_sigma,
            quality_aware=config.quality_aware,
            seed=config.seed,
            name="bit_width_policy",
        )
        self.policy.pathwise = config.terms.pathwise
        self.policy.curvature = config.terms.curvature
        self.policy.per_sample = not costs.target.deployable
        self._profiles = config.profiles
        self.wrappers: dict[str, QuantizeWrapper] = {}
        self._nested: dict[str, keras.Model] = {}
        self._fused: dict[str, FusedBatchNormalization] = {}
        self._compiled_shapes = shapes_worth_compiling(
            _normalized_shapes(inlined),
            FusedBatchNormalization.COMPILED_SHARE,
            FusedBatchNormalization.COMPILED_VALUES,
        )
        # A file stores one normalization. Only simulation can have one that follows each input.
        follows_quality = config.quality_aware and config.quality_normalization
        self._has_affines = follows_quality and not costs.target.deployable
        self._affines: dict[str, QualityAffine | None] = {}
        self._affine_budget = _NORMALIZATION_SHARE * bit_ops
        self._call_counts = inlined.calls
        self.quantizers = _new_quantizers(costs)
        self._quantizer_of: dict[Slot, ActivationQuantizer] = {
            slot: quantizer
            for point, quantizer in zip(costs.activations, self.quantizers)
            for slot in point.slots
        }
        self._means = {
            (node.path, node.call, 0) for node in inlined.nodes if computes_means(inlined, node)
        }
        slots = {
            s for point in costs.activations if max(point.bit_widths) <= 8 for s in point.slots
        }
        self._gated = gated_paths(inlined, slots) if costs.target.deployable else set()
        self._chained: dict[str, ChainedActivation] = {}
        self._user_quantizers: dict[str, dict[str, Any]] = {}
        self._points_of: dict[str, list[dict[str, Any]]] = {}
        for column, point in enumerate(costs.weights):
            self._points_of.setdefault(point.path, []).append(
                {
                    "variable": point.variable,
                    "column": column,
                    "channel_axes": point.channel_axes,
                    "bit_widths": point.bit_widths,
                }
            )
            if point.user_quantizer is not None:
                of_layer = self._user_quantizers.setdefault(point.path, {})
                of_layer[point.variable] = point.user_quantizer

    @property
    def affine_of(self) -> dict[str, QualityAffine]:
        """The `QualityAffine` layers that `connect` created, by the path of their normalization."""
        return {path: layer for path, layer in self._affines.items() if layer is not None}

    def bit_operations(self, input_shape: Sequence[int | None]) -> float:
        """Returns the bit operations per input of encoder, policy and quality normalization.

        Args:
            input_shape: The shape of the model's first input, `[batch, ...]`.
        """
        policy = self.policy.bit_operations(self.encoder.size, self._profiles)
        shapes = [layer.scale_direction.shape for layer in self.affine_of.values()]
        normalization = sum(QualityAffine.bit_operations(*shape) for shape in shapes)
        return self.encoder.bit_operations(input_shape) + policy + normalization

    def connect(self, graph: Graph) -> tuple[Any, Any, dict[str, Any]]:
        """Builds the quantized graph of a float model.

        Args:
            graph: The graph of the float model, with nested models kept.

        Returns:
            `(inputs, outputs, outputs_and_decision)`: the inputs and outputs in the structures of
            the float model, and a dictionary of the outputs (`"outputs"`) and the decision.
        """
        inputs = new_inputs(graph)
        z = self.encoder(inputs[0])
        decision = self.policy(z)
        sort, unsort = Reorder(name="sort_by_quality"), Reorder(inverse=True, name="unsort")
        values: dict[int, Any] = {}
        for i, (tensor, x) in enumerate(zip(graph.inputs, inputs)):
            x = sort(x, decision["order"])
            values[tensor] = self._quantize_slot(("", INPUT_CALL, i), x, decision)
        outputs = replay(graph, values, lambda *call: self._call(decision, *call))
        outputs = keras.tree.map_structure(lambda y: unsort(y, decision["order"], like=z), outputs)
        outputs = single(outputs)
        return structured(graph, inputs), outputs, {"outputs": outputs, **decision}

    def _call(
        self,
        decision: Mapping[str, Any],
        node: Node,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Calls what replaces a node, and quantizes its outputs."""
        if self._is_rectifier(node, args, kwargs):
            return self._call_rectifier(decision, node, *args)
        if node.subgraph is not None:
            outputs = self._call_nested(decision, node, node.subgraph, args, kwargs)
        elif node.path in self._points_of:
            outputs = self._call_wrapper(decision, node, args, kwargs)
        else:
            outputs = self._call_plain(decision, node, args, kwargs)
        flat = keras.tree.flatten(outputs)
        slots = [(node.path, node.call, i) for i in range(len(flat))]
        flat = [self._quantize_slot(slot, y, decision) for slot, y in zip(slots, flat)]
        return keras.tree.pack_sequence_as(outputs, flat)

    def _call_wrapper(
        self,
        decision: Mapping[str, Any],
        node: Node,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Calls a layer with quantized kernels."""
        if node.path not in self.wrappers:
            self.wrappers[node.path] = QuantizeWrapper(
                node.layer, self._points_of[node.path], self._user_quantizers.get(node.path)
            )
        # Keras records the default of `training`. In a graph, only that of the wrapper is replaced.
        training = {"training": kwargs["training"]} if "training" in kwargs else {}
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        tensors, constants = _split_arguments(kwargs)
        return self.wrappers[node.path](
            *args,
            weight_decision=decision["weights"],
            group=decision["group"],
            constants=Constants(constants) if constants else None,
            **training,
            **tensors,
        )

    def _call_plain(
        self,
        decision: Mapping[str, Any],
        node: Node,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Calls a layer without kernels. The quality may scale a batch normalization."""
        layer = node.layer
        x: Any = args[0] if args else None
        is_scaled = self._has_affines and isinstance(layer, keras.layers.BatchNormalization)
        affine = self._affine(node, x) if is_scaled else None
        is_tensor = keras.backend.is_keras_tensor(x)
        if node.path in self._gated:
            if node.path not in self._chained:
                silu = keras.layers.Activation("silu", name=layer.name)
                self._chained[node.path] = ChainedActivation(silu, rounds_gate=True)
            return self._chained[node.path](x)
        if is_tensor and is_chainable(layer, x.dtype) and self._call_counts[node.path] == 1:
            return ChainedActivation(layer)(*args, **kwargs)
        if not is_tensor or not is_fusible(layer, x.shape, x.dtype):
            outputs = layer(*args, **kwargs)
            return affine(outputs, decision["embedding"]) if affine else outputs
        if node.path not in self._fused:
            compiled = x.shape[1:] in self._compiled_shapes
            self._fused[node.path] = FusedBatchNormalization(layer, affine, compiled)
        quality = {"z": decision["embedding"]} if affine else {}
        return self._fused[node.path](*args, **quality, **kwargs)

    def _is_rectifier(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Returns whether a node is only a ReLU, and its output has its own quantizer."""
        if not is_relu(node.layer) or len(args) != 1 or kwargs:
            return False
        has_quantizer = (node.path, node.call, 0) in self._quantizer_of
        is_regularized = getattr(node.layer, "activity_regularizer", None) is not None
        keeps_dtype = getattr(node.layer, "compute_dtype", args[0].dtype) == args[0].dtype
        is_called_once = self._call_counts[node.path] == 1
        return has_quantizer and not is_regularized and keeps_dtype and is_called_once

    def _call_rectifier(self, decision: Mapping[str, Any], node: Node, x: Any) -> Any:
        """Calls a ReLU and its quantizer as one layer."""
        quantizer = self._quantizer_of[node.path, node.call, 0]
        layer = RectifiedQuantizer(quantizer, relu_ceiling(node.layer), name=node.layer.name)
        return _quantize(layer, quantizer, x, decision)

    def _call_nested(
        self,
        decision: Mapping[str, Any],
        node: Node,
        subgraph: Graph,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Calls a nested model, which stays a model. The decision becomes additional inputs."""
        names = ["activations", "weights", "group"]
        if self._has_affines:
            names.append("embedding")
        decided = [decision[name] for name in names]
        if node.path not in self._nested:
            inputs = new_inputs(subgraph)
            # Keras would name them by a count over the process. A model that was loaded may use
            # such a name.
            entries = [
                keras.Input(batch_shape=x.shape, dtype=x.dtype, name=f"dqmq_{name}")
                for name, x in zip(names, decided)
            ]
            inner = dict(zip(names, entries))
            values = dict(zip(subgraph.inputs, inputs))
            outputs = replay(subgraph, values, lambda *call: self._call(inner, *call))
            nested = keras.Model([*inputs, *entries], single(outputs), name=node.layer.name)
            # `trainable = True` has no effect on a model that says it is trainable. Through the
            # public attribute, a frozen model would freeze its quantizers as well.
            nested._trainable = node.layer.trainable
            self._nested[node.path] = nested
        tensors = [
            x for x in keras.tree.flatten((args, kwargs)) if keras.backend.is_keras_tensor(x)
        ]
        training = {"training": kwargs["training"]} if "training" in kwargs else {}
        return self._nested[node.path]([*tensors, *decided], **training)

    def _affine(self, node: Node, x: Any) -> QualityAffine | None:
        """Returns the `QualityAffine` of a batch normalization, or None if it would cost too much.

        Layers get one in order, starting at the input: early layers have few channels, and a later
        layer need not correct what an earlier one has corrected.
        """
        if node.path not in self._affines:
            channels = x.shape[node.layer.axis]
            self._affine_budget -= QualityAffine.bit_operations(self.encoder.size, channels)
            name = f"{node.path.replace('/', '_')}_quality"
            is_affordable = self._affine_budget >= 0
            self._affines[node.path] = (
                QualityAffine(node.layer.axis, name=name) if is_affordable else None
            )
        return self._affines[node.path]

    def _quantize_slot(self, slot: Slot, x: Any, decision: Mapping[str, Any]) -> Any:
        """Quantizes what a slot computes, if it has a quantizer."""
        quantizer = self._quantizer_of.get(slot)
        if quantizer is None:
            return x
        options = {"are_means": True} if slot in self._means else {}
        return _quantize(quantizer, quantizer, x, decision, **options)


def _normalized_shapes(graph: Graph) -> list[tuple[int | None, ...]]:
    """Returns the shape, without the batch, of the input of each batch normalization that is fused."""
    inputs = [(node.layer, tensor) for node in graph.nodes for tensor in node.inputs[:1]]
    return [
        graph.shapes[tensor][1:]
        for layer, tensor in inputs
        if is_fusible(layer, graph.shapes[tensor], graph.dtypes[tensor])
    ]


def _new_quantizers(costs: CostModel) -> list[ActivationQuantizer]:
    """Returns an `ActivationQuantizer` for each activation point."""
    columns = {point: column for column, point in enumerate(costs.decided)}
    shapes = [point.shape[1:] for point in costs.activations]
    compiled_shapes = shapes_worth_compiling(shapes, ActivationQuantizer.COMPILED_SHARE)
    quantizers: list[ActivationQuantizer] = []
    for i, point in enumerate(costs.activations):
        is_input = all(call == INPUT_CALL for _, call, _ in point.slots)
        name = f"{point.name.replace('/', '_')}_quantizer"
        if point.user_quantizers:
            quantizers.append(
                UserActivationQuantizer(
                    point.user_quantizers,
                    point.shape,
                    point.user_path,
                    point.bit_widths,
                    range=point.range,
                    name=name,
                )
            )
            continue
        quantizers.append(
            ActivationQuantizer(
                point.bit_widths,
                column=columns.get(i),
                range=point.range,
                compiled=point.shape[1:] in compiled_shapes,
                # A calibrated step is enough for images at 8 bits. Without a trained step, the
                # first layer needs no gradient to its input, which would be the most expensive one
                # of the network, and which augmentation in front may not have.
                trainable=point.decided or not is_input,
                name=name,
            )
        )
    return quantizers


def _quantize(
    layer: ActivationQuantizer | RectifiedQuantizer,
    quantizer: ActivationQuantizer,
    x: Any,
    decision: Mapping[str, Any],
    **options: Any,
) -> Any:
    """Calls a layer that runs a quantizer, with the decision if the quantizer has a column in it."""
    if quantizer.column is None:
        return layer(x, **options)
    return layer(x, decision=decision["activations"], **options)


def _split_arguments(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the call arguments that contain tensors, and the others."""
    tensors = {
        key: value
        for key, value in kwargs.items()
        if any(keras.backend.is_keras_tensor(leaf) for leaf in keras.tree.flatten(value))
    }
    return tensors, {key: value for key, value in kwargs.items() if key not in tensors}
