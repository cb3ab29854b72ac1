"""The last pass over a quantized file: containers, names, signature, versions, metadata."""

import numpy as np

from dqmq_tf import packing
from dqmq_tf.export import flatbuffer, folding, integers, metadata, versions
from dqmq_tf.export.errors import ConversionError

_SIGNATURE = b"serving_default"
_PACK = {"INT4": packing.pack_int4, "INT2": packing.pack_int2}
_ADDED_BY_QUANTIZER = ("_quantized", "_dequant")


def finish(data, skeleton, containers, facts, io, merged=(), grids=None):
    """Turns a quantized file into the one that is delivered.

    Args:
        data: Contents of the quantized file, tensors named by `litert.name_tensors`.
        skeleton: `Skeleton`.
        containers: `{name of a weight tensor: "INT8", "INT4" or "INT2"}`.
        facts: What `metadata.describe` returned.
        io: Type of inputs and outputs, `"float32"` or `"int8"`.
        merged: Names of the tensors whose integer kernels are still to be made.
        grids: `{name of a tensor: ActivationPrecision}`, for these.

    Returns:
        Contents of the finished file.
    """
    model = flatbuffer.read(data)
    graph = model.subgraphs[0]
    _keep_float_outputs(model, graph)
    integers.merge_kernels(model, graph, merged, grids)
    integers.store(model, graph, skeleton)
    _merge_equal_scales(graph, skeleton)
    _store_in_containers(model, graph, containers)
    if io == "int8":
        _strip_ends(model, graph, skeleton)
    _name_inputs_and_outputs(model, graph, skeleton)
    flatbuffer.drop_unused_tensors(model, graph)
    model.description = b"dqmq_tf"
    graph.name = b"main"
    metadata.attach(model, facts, versions.set_versions(model))
    share_buffers(model)
    return flatbuffer.write(model)


def _keep_float_outputs(model, graph):
    """Gives the graph the outputs of its signature.

    Where an integer kernel reads an output that is made in floating point, ai-edge-quantizer hands
    out the integers that this kernel reads.
    """
    named = {entry.tensorIndex for entry in model.signatureDefs[0].outputs}
    quantized = {
        int(operator.outputs[0]): int(operator.inputs[0])
        for operator in graph.operators
        if flatbuffer.operator_name(model, operator) == "QUANTIZE"
    }
    graph.outputs = [i if i in named else quantized.get(int(i), i) for i in graph.outputs]


def _store_in_containers(model, graph, containers):
    for tensor in graph.tensors:
        container = containers.get(flatbuffer.text(tensor.name).rstrip("_"))
        if container in _PACK:
            packed = _PACK[container](flatbuffer.constant(model, tensor))
            flatbuffer.set_constant(model, tensor, packed)
            tensor.type = getattr(flatbuffer.schema().TensorType, container)


def _merge_equal_scales(graph, skeleton):
    """Weights with one step get one scale: some kernels take no more."""
    tensors = {flatbuffer.text(tensor.name): tensor for tensor in graph.tensors}
    for number, weights in enumerate(skeleton.weights):
        tensor = tensors.get(f"w{number}")
        if tensor is None or weights.kind != folding.FULLY_CONNECTED or np.ptp(weights.scales):
            continue
        biases = [
            graph.tensors[operator.inputs[2]]
            for operator in graph.operators
            if len(operator.inputs) > 2
            and operator.inputs[2] >= 0
            and graph.tensors[operator.inputs[1]] is tensor
        ]
        for merged in (tensor, *biases):
            found = merged.quantization
            found.scale, found.zeroPoint = found.scale[:1], found.zeroPoint[:1]
            found.quantizedDimension = 0


def _strip_ends(model, graph, skeleton):
    """Makes the integer twins of inputs and outputs the ends of the graph."""
    inner = {}
    for index in (*graph.inputs, *graph.outputs):
        key = flatbuffer.text(graph.tensors[index].name)
        # Numbers of a table's rows are on no grid, whatever type they come in.
        if flatbuffer.type_name(graph.tensors[index]) != "FLOAT32" or key in skeleton.vocabulary:
            inner[index] = index
            continue
        grid = skeleton.quantization.get(key)
        entering = index in graph.inputs
        inner[index] = _integer_twin(model, graph, index, grid, entering)
    graph.inputs = [inner[i] for i in graph.inputs]
    graph.outputs = [inner[i] for i in graph.outputs]
    for definition in model.signatureDefs:
        for entry in (*definition.inputs, *definition.outputs):
            entry.tensorIndex = inner[entry.tensorIndex]


def _integer_twin(model, graph, index, grid, entering):
    """Index of the int8 tensor beside a float end, which is made where there is none."""
    between = "QUANTIZE" if entering else "DEQUANTIZE"
    for operator in graph.operators:
        ends = (int(operator.inputs[0]), int(operator.outputs[0]))
        outer, twin = ends if entering else ends[::-1]
        if flatbuffer.operator_name(model, operator) == between and outer == index:
            break
    else:
        if grid is None:
            raise ConversionError(
                f"io='int8', but {flatbuffer.text(graph.tensors[index].name)} is in floating "
                "point: the layer at this end is not quantized. Use io='float32'."
            )
        twin = integers.new_tensor(graph, index, grid)
    graph.operators = [
        operator
        for operator in graph.operators
        if flatbuffer.operator_name(model, operator) != between
        or index not in (operator.inputs if entering else operator.outputs)
    ]
    read = any(index in operator.inputs for operator in graph.operators)
    made = any(index in operator.outputs for operator in graph.operators)
    if entering and read:
        graph.operators.insert(0, integers.new_operator(model, "DEQUANTIZE", [twin], [index]))
    elif not entering and made:
        graph.operators.append(integers.new_operator(model, "QUANTIZE", [index], [twin]))
    elif not entering and read:
        graph.operators.insert(0, integers.new_operator(model, "DEQUANTIZE", [twin], [index]))
    return twin


def _name_inputs_and_outputs(model, graph, skeleton):
    """Signature and float ends get the model's names and order, their int8 twins the keys."""
    (definition,) = model.signatureDefs
    definition.signatureKey = _SIGNATURE
    entries = sorted(definition.inputs, key=lambda entry: (len(entry.name), entry.name))
    exits = sorted(definition.outputs, key=lambda entry: (len(entry.name), entry.name))
    definition.inputs, definition.outputs, ends = entries, exits, {}
    for entry, name in zip(entries + exits, [*skeleton.input_names, *skeleton.output_names]):
        entry.name = name.encode()
        ends[entry.tensorIndex] = name
    for index, tensor in enumerate(graph.tensors):
        name = flatbuffer.text(tensor.name)
        base = name
        for suffix in _ADDED_BY_QUANTIZER:
            base = base.removesuffix(suffix)
        if flatbuffer.type_name(tensor) == "FLOAT32":
            # The float twin of a quantized tensor; as an end of the graph it has a name already.
            base = ends.get(index, name)
        tensor.name = base.encode()


def share_buffers(model):
    """Keeps each content once, in an order that deflate likes.

    Buffer 0 stands for every tensor that has no values in the file. The others go by entropy:
    deflate codes a stretch of the file at a time, best where the stretch is of one kind.
    """
    owners = [tensor for graph in model.subgraphs for tensor in graph.tensors] + model.metadata
    contents = {}
    for owner in owners:
        data = model.buffers[owner.buffer].data
        key = b"" if data is None or not len(data) else bytes(data)
        contents.setdefault(key, []).append(owner)
    contents.setdefault(b"", [])
    model.buffers = []
    for key in sorted(contents, key=packing.byte_entropy):
        buffer = flatbuffer.schema().BufferT()
        buffer.data = np.frombuffer(key, np.uint8) if key else None
        for owner in contents[key]:
            owner.buffer = len(model.buffers)
        model.buffers.append(buffer)
