"""Decision points: which tensors of a graph are quantized, and which share a quantizer.

The rules are those of the int8 kernels (TFLite's quantization specification): a convolution with
its batch norm and relu is one kernel with one output; pools, reshapes, pads and concatenations
share the scale of their input; local averages share it too and round again.
"""

import collections
import dataclasses
import math

import keras

from dqmq_tf.graph.activations import fixed_range
from dqmq_tf.graph.fusion import EXACT, fused_tensors, rounds, shares_scale, tensor_slots
from dqmq_tf.graph.kernels import (
    channel_axes,
    is_float,
    kernel_variables,
    multiply_accumulates,
    op_kind,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationPoint:
    """A quantizer of activations and the tensors that it serves.

    Attributes:
        name: Site of the first layer (or name of the input) that makes such a tensor, with
            `"_call_1"` and so on where a shared layer makes several.
        slots: `(path, call, output)` of each output that is quantized where it is made; the
            model's inputs have call -1.
        tensors: All tensor ids that carry this scale.
        bit_widths: Candidates.
        range: `"affine"`, or `"unit"` (softmax, sigmoid: step 2**-bits) or `"tanh"`.
        decided: Whether the policy decides: there are several candidates and a kernel reads it.
    """

    name: str
    slots: tuple
    tensors: tuple
    bit_widths: tuple
    range: str
    decided: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightPoint:
    """One variable whose bit-width is decided.

    Attributes:
        name: `"path:variable"`.
        path, variable: Path of the layer and name of the variable.
        op_kind: One of `dqmq_tf.targets.OP_KINDS`.
        channel_axes: Axes with a step size for each index; `()` for one step in all.
        shape: Of the variable.
        macs: Multiply-accumulates per input, all calls of the layer together.
        input: Index of the activation point that the layer reads, or None where that is float.
        bit_widths: Candidates.
    """

    name: str
    path: str
    variable: str
    op_kind: str
    channel_axes: tuple
    shape: tuple
    macs: int
    input: int | None
    bit_widths: tuple


def find_points(graph, target, config):
    """Returns `(activation points, weight points)` of an inlined graph.

    Args:
        graph: A `dqmq_tf.graph.Graph` of the float model.
        target: A `dqmq_tf.targets.Target`.
        config: A `dqmq_tf.config.DQMQConfig`, for its rules.

    Raises:
        ValueError: If a rule asks for bit-widths that the target does not have, or for a variable
            that the layer does not have, or if nothing is left to quantize.
    """
    activations = _activation_points(graph, target, config)
    owner = {tensor: i for i, point in enumerate(activations) for tensor in point.tensors}
    layers = {node.path: node.layer for node in graph.nodes}
    # A batch norm that is folded in gives each channel a scale of its own, come what may.
    scaled = {
        path
        for norm, path in graph.folds.items()
        if isinstance(layers[norm], keras.layers.BatchNormalization)
    }
    weights = {}
    for node in graph.nodes:
        rule = config.rule_for(node.path)
        per_tensor = frozenset() if node.path in scaled else target.per_tensor
        for variable_name, variable in quantized_variables(node, rule).items():
            name = f"{node.path}:{variable_name}"
            macs = multiply_accumulates(graph, node, variable)
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
                    rule.weight_bits, target.weight_bits, target, node.path, "weight"
                ),
            )
    if not weights:
        raise ValueError("The model has no layer with a kernel left to quantize.")
    return activations, list(weights.values())


def quantized_variables(node, rule):
    """Returns `{name: variable}` of a node's layer that a `LayerRule` lets be quantized."""
    kernels = kernel_variables(node.layer)
    if not rule.quantize or not kernels:
        return {}
    if rule.weights is None:
        return kernels
    missing = [name for name in rule.weights if name not in kernels]
    if missing:
        raise ValueError(
            f"Layer {node.path!r} has no kernel {missing[0]!r} to quantize; it has {list(kernels)}."
        )
    return {name: kernels[name] for name in rule.weights}


def float_weight_count(graph, weights):
    """Returns the number of kernel weights that no `WeightPoint` covers: they stay float."""
    covered = {(point.path, point.variable) for point in weights}
    sizes = {
        (node.path, name): math.prod(variable.shape)
        for node in graph.nodes
        for name, variable in kernel_variables(node.layer).items()
    }
    return sum(size for key, size in sizes.items() if key not in covered)


def _activation_points(graph, target, config):
    slots = tensor_slots(graph)
    producers, consumers = graph.producers, graph.consumers
    kept = {t for t in slots if is_float(graph.dtypes[t])}
    kept -= {t for t, node in producers.items() if not config.rule_for(node.path).quantize}
    names = dict(zip(graph.inputs, graph.input_names))
    kept -= {t for t, name in names.items() if not config.rule_for(name).quantize}
    kept -= fused_tensors(graph) | _embedding_indices(graph)

    ranges, sources = {}, {}
    for tensor in sorted(kept):
        producer = producers.get(tensor)
        sources[tensor] = _shared(graph, producer, kept, ranges)
        found = {ranges[source] for source in sources[tensor]}
        ranges[tensor] = found.pop() if found else fixed_range(producer.layer if producer else None)
    made = [t for t in sorted(kept) if not sources[t] or rounds(graph, producers[t])]

    groups = {tensor: tensor for tensor in kept}

    def root(tensor):
        while groups[tensor] != tensor:
            tensor = groups[tensor]
        return tensor

    first_of_slot, quantized_slots = {}, {slots[t] for t in made}
    for tensor in sorted(kept):
        if slots[tensor] in quantized_slots:
            groups[root(tensor)] = root(first_of_slot.setdefault(slots[tensor], tensor))
        for source in sources[tensor]:
            groups[root(tensor)] = root(source)

    members = collections.defaultdict(list)
    for tensor in sorted(kept):
        members[root(tensor)].append(tensor)
    points, taken = [], collections.Counter()
    for tensors in members.values():
        origins = [t for t in tensors if t in made]
        paths = [producers[t].path if t in producers else names[t] for t in origins]
        allowed = [
            _candidates(
                config.rule_for(path).activation_bits,
                target.activation_bits,
                target,
                path,
                "activation",
            )
            for path in paths
        ]
        # Tensors that share a scale share the narrowest rule; disjoint rules keep the first.
        shared = set(allowed[0]).intersection(*allowed) or set(allowed[0])
        read = any(kernel_variables(n.layer) for t in tensors for n in consumers.get(t, ()))
        bit_widths = tuple(sorted(shared)) if read else (max(shared),)
        # The calls of a shared layer have quantizers of their own.
        number = taken[paths[0]]
        taken[paths[0]] += 1
        points.append(
            ActivationPoint(
                name=f"{paths[0]}_call_{number}" if number else paths[0],
                slots=tuple(dict.fromkeys(slots[t] for t in origins)),
                tensors=tuple(tensors),
                bit_widths=bit_widths,
                range=_range(ranges[t] for t in origins),
                decided=len(bit_widths) > 1,
            )
        )
    return points


def _shared(graph, node, kept, ranges):
    """Tensors among a node's inputs whose scale its output shares."""
    if node is None or not shares_scale(graph, node):
        return ()
    sources = tuple(dict.fromkeys(t for t in node.inputs if t in kept))
    # Kernels fix the range of a sigmoid: one scale for it and a relu would fit neither.
    return sources if len({ranges[t] for t in sources}) <= 1 else ()


def _embedding_indices(graph):
    """Float tensors that hold the indices of an embedding."""
    consumers, found = graph.consumers, set()

    def read_as_index(node):
        if isinstance(node.layer, keras.layers.Embedding):
            return True
        if type(node.layer).__name__ in EXACT:
            return all(t in found for t in node.outputs)
        return type(node.layer).__name__ == "Cast" and not is_float(graph.dtypes[node.outputs[0]])

    made = [t for node in graph.nodes for t in node.outputs]
    for tensor in [*reversed(made), *graph.inputs]:
        readers = consumers.get(tensor, ())
        if readers and tensor not in graph.outputs and all(map(read_as_index, readers)):
            found.add(tensor)
    return found


def _range(found):
    kinds = set(found)
    return kinds.pop() if len(kinds) == 1 else "affine"


def _candidates(asked, offered, target, path, what):
    if asked is None:
        return offered
    outside = sorted(set(asked) - set(offered))
    if outside:
        raise ValueError(
            f"Layer {path!r}: {what} bit-widths {outside} are not among those of target "
            f"{target.name!r}, which runs {list(offered)}. Choose among these, or another target."
        )
    return tuple(asked)
