"""The last pass over a quantized file: containers, names, signature, versions, metadata."""

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import bit_packing, editing, merging, metadata, operator_versions
from dqmq_tf.lowering import folding, integer_kernels

_PACK = {"INT4": bit_packing.pack_int4, "INT2": bit_packing.pack_int2}
_ADDED_BY_QUANTIZER = ("_quantized", "_dequant")


def finish(file, lowered, containers, facts, io_dtype, merged, grids):
    """Turns a quantized file into the one that is delivered.

    Args:
        file: `TFLiteFile`, quantized, tensors named by `float_file.name_tensors`; changed in place.
        lowered: `LoweredModel`.
        containers: `{name of a weight tensor: "INT8", "INT4" or "INT2"}`.
        facts: What `metadata.describe` returned.
        io_dtype: Type of inputs and outputs, `"float32"` or `"int8"`.
        merged: Names of the tensors whose integer kernels are still to be made.
        grids: `{name of a tensor: ActivationPrecision}`, for these.
    """
    model, graph = file.model, file.model.subgraphs[0]
    _keep_float_outputs(model, graph)
    integer_kernels.merge_kernels(model, graph, merged, grids)
    integer_kernels.store(model, graph, lowered)
    _merge_equal_scales(graph, lowered)
    _store_in_containers(model, graph, containers)
    if io_dtype == "int8":
        _strip_ends(model, graph, lowered)
    _name_inputs_and_outputs(model, graph, lowered)
    editing.drop_unused_tensors(model, graph)
    model.description = b"dqmq_tf"
    graph.name = b"main"
    metadata.attach(model, facts, operator_versions.set_versions(model))
    editing.share_buffers(model)
    file.edited()


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
            editing.set_constant(model, tensor, packed)
            tensor.type = getattr(flatbuffer.schema().TensorType, container)


def _merge_equal_scales(graph, lowered):
    """Weights with one step get one scale: some kernels take no more."""
    tensors = {flatbuffer.text(tensor.name): tensor for tensor in graph.tensors}
    for number, weights in enumerate(lowered.weights):
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


def _strip_ends(model, graph, lowered):
    """Makes the integer twins of inputs and outputs the ends of the graph."""
    inner = {}
    for index in dict.fromkeys((*graph.inputs, *graph.outputs)):
        key = flatbuffer.text(graph.tensors[index].name)
        # Numbers of a table's rows are on no grid, whatever type they come in.
        if flatbuffer.type_name(graph.tensors[index]) != "FLOAT32" or key in lowered.vocabulary:
            inner[index] = index
            continue
        grid = lowered.quantization.get(key)
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
                f"io_dtype='int8', but {flatbuffer.text(graph.tensors[index].name)} is in floating "
                "point: the layer at this end is not quantized. Use io_dtype='float32'."
            )
        twin = editing.add_int8_tensor(graph, index, grid)
    graph.operators = [
        operator
        for operator in graph.operators
        if flatbuffer.operator_name(model, operator) != between
        or index not in (operator.inputs if entering else operator.outputs)
    ]
    read = any(index in operator.inputs for operator in graph.operators)
    made = any(index in operator.outputs for operator in graph.operators)
    if entering and read:
        graph.operators.insert(0, editing.new_operator(model, "DEQUANTIZE", [twin], [index]))
    elif not entering and made:
        graph.operators.append(editing.new_operator(model, "QUANTIZE", [index], [twin]))
    elif not entering and read:
        graph.operators.insert(0, editing.new_operator(model, "DEQUANTIZE", [twin], [index]))
    return twin


def _name_inputs_and_outputs(model, graph, lowered):
    """Gives the inputs and outputs the model's names and order, in the signature and the graph.

    The converter sorts the outputs of the graph by name, but an app or firmware reads them by
    index. The converter numbers the names in the signature, so these tell the model's order.
    The int8 tensors beside float inputs and outputs keep their keys as names.
    """
    (definition,) = model.signatureDefs
    definition.signatureKey = merging.DEFAULT_SIGNATURE.encode()
    entries = sorted(definition.inputs, key=lambda entry: (len(entry.name), entry.name))
    exits = sorted(definition.outputs, key=lambda entry: (len(entry.name), entry.name))
    definition.inputs, definition.outputs, ends = entries, exits, {}
    for entry, name in zip(entries + exits, [*lowered.input_names, *lowered.output_names]):
        entry.name = name.encode()
        ends[entry.tensorIndex] = name
    graph.inputs = np.array([entry.tensorIndex for entry in entries], np.int32)
    graph.outputs = np.array([entry.tensorIndex for entry in exits], np.int32)
    for index, tensor in enumerate(graph.tensors):
        name = flatbuffer.text(tensor.name)
        base = name
        for suffix in _ADDED_BY_QUANTIZER:
            base = base.removesuffix(suffix)
        if flatbuffer.type_name(tensor) == "FLOAT32":
            # The float twin of a quantized tensor; as an end of the graph it has a name already.
            base = ends.get(index, name)
        tensor.name = base.encode()
