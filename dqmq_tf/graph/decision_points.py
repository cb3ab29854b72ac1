"""Decision points: which tensors of a graph are quantized, and which share a quantizer.

The rules are those of the int8 kernels (TFLite's quantization specification). A convolution with
its batch norm and relu is one kernel with one output. Pools, reshapes, pads and concatenations
share the scale of their input. Local averages share it too, and round again.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from dqmq_tf.config import DQMQConfig, LayerRule
from dqmq_tf.graph.activations import fixed_range
from dqmq_tf.graph.aliases import sources_of
from dqmq_tf.graph.fusion import (
    Slot,
    fused_tensors,
    joins_values,
    moves_values,
    operator_tensors,
    rounds,
    shares_scale,
    tensor_slots,
)
from dqmq_tf.graph.graph import Graph, Node
from dqmq_tf.graph.int16_layers import without_int16_kernel
from dqmq_tf.graph.kernels import (
    PIXELS,
    channel_axes,
    check_kernels,
    is_float,
    kernel_variables,
    multiply_accumulates,
    op_kind,
)
from dqmq_tf.graph.plain_classes import keras_name
from dqmq_tf.graph.trial_runs import unused_kernels
from dqmq_tf.graph.user_outputs import user_floats, user_quantized
from dqmq_tf.precision import INT16_BITS
from dqmq_tf.targets import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationPoint:
    """A quantizer of activations and the tensors that it serves.

    Attributes:
        name: The path of the first layer (or the name of the input) that computes such a tensor,
            with `"_call_1"` and so on if a shared layer computes several.
        slots: `(path, call, output)` of each output that is quantized where it is computed. The
            model's inputs have call -1.
        tensors: All tensor ids that carry this scale.
        bit_widths: The candidates.
        range: `"affine"`, `"pixels"` (uint8 images in floating point), or one of the fixed ranges of
            `dqmq_tf.graph.activations.fixed_range`.
        decided: Whether the policy decides: there are several candidates, and a kernel reads the
            tensors, or one of the candidates is 16, which costs time in every operator.
        shape: The shape of the first tensor, `[batch, ...]`.
        user_quantizers: The names and quantizers of the user's own that run in place of a learned
            one. Empty if there are none.
        user_path: The path of the layer whose config has them.
    """

    name: str
    slots: tuple[Slot, ...]
    tensors: tuple[int, ...]
    bit_widths: tuple[int, ...]
    range: str
    decided: bool
    shape: tuple[int | None, ...] = ()
    user_quantizers: tuple[tuple[str, Any], ...] = ()
    user_path: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightPoint:
    """One variable whose bit-width is decided.

    Attributes:
        name: `"path:variable"`.
        path, variable: The path of the layer and the name of the variable.
        op_kind: One of `dqmq_tf.targets.OP_KINDS`.
        channel_axes: The axes with a step size for each index. `()` for one step in all.
        shape: The shape of the variable.
        macs: The multiply-accumulates per input, of all calls of the layer together.
        input: The index of the activation point that the layer reads. None if its input is float.
        bit_widths: The candidates.
        user_quantizer: The quantizer of the user's own that runs in place of a learned one, or None.
        may_be_int16: Whether its operator may read or compute activations of 16 bits, so that a file
            cannot store the weights as INT4.
    """

    name: str
    path: str
    variable: str
    op_kind: str
    channel_axes: tuple[int, ...]
    shape: tuple[int, ...]
    macs: int
    input: int | None
    bit_widths: tuple[int, ...]
    user_quantizer: Any = None
    may_be_int16: bool = False


def find_points(
    graph: Graph, target: Target, config: DQMQConfig
) -> tuple[list[ActivationPoint], list[WeightPoint]]:
    """Returns `(activation points, weight points)` of an inlined graph.

    Args:
        graph: A `dqmq_tf.graph.Graph` of the float model.
        target: A `dqmq_tf.targets.Target`.
        config: A `dqmq_tf.config.DQMQConfig`, for its rules.

    Raises:
        ValueError: If a rule asks for bit-widths that the target does not have, or for a variable
            that the layer does not have, if no kernel is left to quantize, or if Keras has quantized
            a layer or given it LoRA weights.
    """
    for node in graph.nodes:
        check_kernels(node)
    activations = _activation_points(graph, target, config)
    owner = {tensor: i for i, point in enumerate(activations) for tensor in point.tensors}
    int16_tensors = {
        t for point in activations if INT16_BITS in point.bit_widths for t in point.tensors
    }
    fused = fused_tensors(graph)
    layers = {node.path: node.layer for node in graph.nodes}
    # Folding a batch norm gives every channel its own scale, whatever the target prefers.
    normalized = {
        path
        for norm, path in graph.folds.items()
        if isinstance(layers[norm], keras.layers.BatchNormalization)
    }
    weights: dict[str, WeightPoint] = {}
    for node in graph.nodes:
        rule = config.rule_for(node.path)
        per_tensor = frozenset() if node.path in normalized else target.per_tensor
        unused = unused_kernels(graph, node)
        for variable_name, variable in quantized_variables(node, rule).items():
            if variable_name in unused:
                continue
            name = f"{node.path}:{variable_name}"
            macs = multiply_accumulates(graph, node, variable)
            user = rule.user_quantizers
            own_bits = None if user is None else user.weight_bits.get(variable_name)
            if name in weights:
                weights[name] = dataclasses.replace(weights[name], macs=weights[name].macs + macs)
                continue
            weights[name] = WeightPoint(
                name=name,
                path=node.path,
                variable=variable_name,
                op_kind=op_kind(node.layer),
                channel_axes=channel_axes(node.layer, variable_name, variable, per_tensor),
                shape=tuple(variable.shape),
                macs=macs,
                input=owner.get(node.inputs[0]),
                bit_widths=_candidates(
                    own_bits or rule.weight_bits, target.weight_bits, target, node.path, "weight"
                ),
                user_quantizer=None if user is None else user.weights.get(variable_name),
                may_be_int16=not int16_tensors.isdisjoint(operator_tensors(graph, node, fused)),
            )
    if not weights:
        raise ValueError(
            "The model has no layer with a kernel left to quantize. Remove the rules with "
            "quantize=False or weights=() for at least one layer with a kernel."
        )
    return activations, list(weights.values())


def quantized_variables(node: Node, rule: LayerRule) -> dict[str, Any]:
    """Returns `{name: variable}` of the kernels of a node that a `LayerRule` allows to quantize.

    Raises:
        ValueError: If the rule names a variable that is not a kernel of the layer.
    """
    kernels = kernel_variables(node.layer)
    if not rule.quantize or not kernels:
        return {}
    if rule.weights is None:
        return kernels
    missing = [name for name in rule.weights if name not in kernels]
    if missing:
        raise ValueError(
            f"Layer {node.path!r} has no kernel {missing[0]!r} to quantize. Choose the rule's "
            f"weights among {list(kernels)}."
        )
    return {name: kernels[name] for name in rule.weights}


def float_weight_count(graph: Graph, weights: Iterable[WeightPoint]) -> int:
    """Returns the number of kernel weights that no `WeightPoint` covers. They stay float."""
    covered = {(point.path, point.variable) for point in weights}
    sizes = {
        (node.path, name): math.prod(variable.shape)
        for node in graph.nodes
        for name, variable in kernel_variables(node.layer).items()
        if name not in unused_kernels(graph, node)
    }
    return sum(size for key, size in sizes.items() if key not in covered)


def _activation_points(graph: Graph, target: Target, config: DQMQConfig) -> list[ActivationPoint]:
    """Returns the activation points of a graph, in the order of their first tensors."""
    slots = tensor_slots(graph)
    producers, consumers = graph.producers, graph.consumers
    names = dict(zip(graph.inputs, graph.input_names))
    quantized = {t for t in slots if is_float(graph.dtypes[t])}
    quantized -= {t for t, node in producers.items() if not config.rule_for(node.path).quantize}
    quantized -= {t for t, name in names.items() if not config.rule_for(name).quantize}
    quantized -= fused_tensors(graph) | _embedding_indices(graph)
    quantized -= user_floats(graph, config)
    user_outputs = user_quantized(graph, config)
    # What nothing reads is not in the trained model, so no data would pass its quantizer.
    quantized &= {*consumers, *graph.outputs}

    ranges: dict[int, str] = {}
    sources: dict[int, tuple[int, ...]] = {}
    for tensor in sorted(quantized):
        producer = producers.get(tensor)
        sources[tensor] = _scale_sources(graph, tensor, quantized, ranges)
        source_ranges = {ranges[source] for source in sources[tensor]}
        own_range = fixed_range(producer.layer if producer else None)
        if graph.dtypes[graph.aliases.get(tensor, tensor)] == PIXELS:
            own_range = "pixels"
        ranges[tensor] = source_ranges.pop() if source_ranges else own_range
    # Tensors with new values. The others only repeat values that are on the grid already.
    origins = {t for t in quantized if not sources[t] or rounds(producers[t])}

    points: list[ActivationPoint] = []
    points_by_path: collections.Counter[str] = collections.Counter()
    for tensors in _groups(graph, quantized, sources, origins):
        first, *rest = [t for t in tensors if t in origins]
        paths = [producers[t].path if t in producers else names[t] for t in (first, *rest)]
        # Tensors that share a scale share the quantizer of the first.
        user = next((user_outputs[t] for t in (first, *rest) if t in user_outputs), None)
        allowed = [_activation_candidates(target, config, path) for path in paths]
        if user is not None:
            asked = (user.bit_widths, target.activation_bits, target, user.path, "activation")
            allowed = [_candidates(*asked)]
        # Tensors that share a scale follow the narrowest rule. If rules contradict, the first wins.
        shared = set(allowed[0]).intersection(*allowed) or set(allowed[0])
        if INT16_BITS in shared:
            shared = _with_int16_kernels(graph, tensors, shared, paths[0])
        is_read = any(kernel_variables(n.layer) for t in tensors for n in consumers.get(t, ()))
        is_open = is_read or INT16_BITS in shared
        bit_widths = tuple(sorted(shared)) if is_open else (max(shared),)
        # The calls of a shared layer have one quantizer each.
        number = points_by_path[paths[0]]
        points_by_path[paths[0]] += 1
        points.append(
            ActivationPoint(
                name=f"{paths[0]}_call_{number}" if number else paths[0],
                slots=tuple(dict.fromkeys(slots[t] for t in (first, *rest))),
                tensors=tuple(tensors),
                bit_widths=bit_widths,
                range=_common_range(ranges[t] for t in (first, *rest)),
                decided=len(bit_widths) > 1,
                shape=tuple(graph.shapes[first]),
                user_quantizers=() if user is None else user.quantizers,
                user_path="" if user is None else user.path,
            )
        )
    return points


def _groups(
    graph: Graph, quantized: set[int], sources: Mapping[int, tuple[int, ...]], origins: set[int]
) -> Iterable[list[int]]:
    """Returns the sets of tensors that share a scale, each sorted, by their first tensor.

    A tensor shares the scale of its sources, of the tensors that are the same one at inference, and
    of those in the same slot (a layer of a nested model that is called twice has one quantizer).
    """
    parents = {tensor: tensor for tensor in quantized}

    def root(tensor: int) -> int:
        while parents[tensor] != tensor:
            tensor = parents[tensor]
        return tensor

    slots = tensor_slots(graph)
    quantized_slots = {slots[t] for t in origins}
    first_in_slot: dict[Slot, int] = {}
    first_of_alias: dict[int, int] = {}
    for tensor in sorted(quantized):
        same = [*sources[tensor]]
        if slots[tensor] in quantized_slots:
            same.append(first_in_slot.setdefault(slots[tensor], tensor))
        same.append(first_of_alias.setdefault(graph.aliases.get(tensor, tensor), tensor))
        for other in same:
            parents[root(tensor)] = root(other)
    members = collections.defaultdict(list)
    for tensor in sorted(quantized):
        members[root(tensor)].append(tensor)
    return members.values()


def _scale_sources(
    graph: Graph, tensor: int, quantized: set[int], ranges: Mapping[int, str]
) -> tuple[int, ...]:
    """Returns the inputs of a tensor's layer whose scale the tensor shares."""
    node, aliases = graph.producers.get(tensor), graph.aliases
    if node is None:
        return ()
    inputs = tuple(dict.fromkeys(t for t in node.inputs if t in quantized))
    for source in inputs:
        if aliases.get(source, source) == aliases.get(tensor, tensor):
            return (source,)
    # Kernels fix the range of a sigmoid: one scale for it and a relu would fit neither.
    has_one_range = len({ranges[t] for t in inputs}) <= 1
    is_on_grid = not joins_values(node) or all(
        isinstance(operand, int) and operand in quantized
        for operand in keras.tree.flatten(node.arguments({t: t for t in node.inputs}))
    )
    return inputs if shares_scale(graph, node) and has_one_range and is_on_grid else ()


def _embedding_indices(graph: Graph) -> set[int]:
    """Returns the float tensors that hold the indices of an embedding."""
    indices: set[int] = set()

    def reads_indices(node: Node) -> bool:
        # `NotEqual` computes the mask of an embedding.
        if isinstance(node.layer, keras.layers.Embedding) or keras_name(node.layer) == "NotEqual":
            return True
        if moves_values(graph, node) or sources_of(graph, node) is not None:
            return all(t in indices for t in node.outputs)
        return keras_name(node.layer) == "Cast" and not is_float(graph.dtypes[node.outputs[0]])

    computed = [t for node in graph.nodes for t in node.outputs]
    for tensor in [*reversed(computed), *graph.inputs]:
        readers = graph.consumers.get(tensor, ())
        if readers and tensor not in graph.outputs and all(map(reads_indices, readers)):
            indices.add(tensor)
    return indices


def _common_range(ranges: Iterable[str]) -> str:
    """Returns the range that tensors have in common, `"affine"` if they differ."""
    kinds = set(ranges)
    return kinds.pop() if len(kinds) == 1 else "affine"


def _activation_candidates(target: Target, config: DQMQConfig, path: str) -> tuple[int, ...]:
    """Returns the candidates of the output of a layer, or of an input of the model."""
    asked, offered = config.rule_for(path).activation_bits, target.activation_bits
    if asked is not None:
        offered = tuple(sorted({*offered, *target.optional_activation_bits}))
    return _candidates(asked, offered, target, path, "activation")


def _with_int16_kernels(
    graph: Graph, tensors: list[int], candidates: set[int], path: str
) -> set[int]:
    """Returns the candidates of tensors that share a scale, without 16 if a layer cannot have it.

    Raises:
        ValueError: If 16 is the only candidate.
    """
    reason = without_int16_kernel(graph, tensors)
    if reason is None:
        return candidates
    if candidates == {INT16_BITS}:
        raise ValueError(
            f"Layer {path!r}: its output cannot have 16 bits, because {reason}. Allow 8 bits as "
            "well with activation_bits=(8, 16), or give the layer a rule of its own."
        )
    return candidates - {INT16_BITS}


def _candidates(
    asked: tuple[int, ...] | None, offered: tuple[int, ...], target: Target, path: str, what: str
) -> tuple[int, ...]:
    """Returns the bit-widths that a rule asks for, or all that the target offers."""
    if asked is None:
        return offered
    outside = sorted(set(asked) - set(offered))
    if outside:
        raise ValueError(
            f"Layer {path!r}: {what} bit-widths {outside} are not among those of target "
            f"{target.name!r}, which runs {list(offered)}. Choose among these, or another target."
        )
    return tuple(asked)
