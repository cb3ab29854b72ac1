"""The last edits of a quantized file: storage of weights, inputs and outputs, names, metadata."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import (
    ModelT,
    OperatorT,
    SubGraphT,
    TFLiteFile,
    bit_packing,
    editing,
    metadata,
    operator_versions,
)
from dqmq_tf.flatbuffer.serialization import schema
from dqmq_tf.lowering import folding, integer_kernels
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.precision import ActivationPrecision

_PACK = {"INT4": bit_packing.pack_int4, "INT2": bit_packing.pack_int2}
# Operators that only move values.
_MOVES = {"EXPAND_DIMS", "RESHAPE", "SQUEEZE", "TRANSPOSE"}
# What litert-quantizer appends to the names of the tensors that it adds.
_QUANTIZER_SUFFIXES = ("_quantized", "_dequant")


def finish(
    file: TFLiteFile,
    lowered: LoweredModel,
    containers: Mapping[str, str],
    facts: Mapping[str, Any],
    io_dtype: str,
    merged: Sequence[str],
    grids: Mapping[str, ActivationPrecision],
) -> None:
    """Turns a quantized file into the file that is delivered.

    Args:
        file: The quantized `TFLiteFile`, with the names that `float_file.name_tensors` gave to its
            tensors. Changed in place.
        lowered: The `LoweredModel`.
        containers: `{name of a weight tensor: "INT8", "INT4" or "INT2"}`.
        facts: The facts that `metadata.describe` returned.
        io_dtype: The dtype of the file's inputs and outputs, `"float32"` or `"int8"`. With
            `"int8"`, those of 16 bits are int16.
        merged: The names of the outputs of the operators that `integer_kernels.merge_kernels`
            turns into integer kernels.
        grids: `{name of a tensor: ActivationPrecision}` of the tensors of these operators.

    Raises:
        ConversionError: If weights are not in the file, or if `io_dtype` is `"int8"` but an input
            or output is not quantized.
    """
    model, graph = file.model, file.model.subgraphs[0]
    _restore_float_outputs(model, graph)
    _read_integer_outputs(model, graph)
    integer_kernels.merge_kernels(model, graph, merged, grids, lowered)
    _round_between_float_layers(model, graph, lowered)
    integer_kernels.store_weights(model, graph, lowered)
    _merge_equal_scales(graph, lowered)
    _drop_far_ceilings(graph)
    _store_in_containers(model, graph, containers)
    if io_dtype == "int8":
        _make_inputs_and_outputs_int8(model, graph, lowered)
    _name_inputs_and_outputs(model, graph, lowered)
    editing.drop_unused_tensors(model, graph)
    model.description = b"dqmq_tf"
    graph.name = b"main"
    metadata.attach(model, facts, operator_versions.set_versions(model))
    editing.share_buffers(model)
    file.edited()


def _drop_far_ceilings(graph: SubGraphT) -> None:
    """Makes a fused relu6 a relu where 6 is so many steps of the output that int32 cannot hold them.

    The range of the output ends far below 6, so they compute the same. Kernels of LiteRT refuse such
    a relu6, or crash.
    """
    kinds = schema().ActivationFunctionType
    for operator in graph.operators:
        quantization = graph.tensors[operator.outputs[0]].quantization
        if getattr(operator.builtinOptions, "fusedActivationFunction", None) != kinds.RELU6:
            continue
        scales = quantization.scale if quantization else None
        if scales is not None and len(scales) and 6.0 / float(scales[0]) > np.iinfo(np.int32).max:
            operator.builtinOptions.fusedActivationFunction = kinds.RELU


def _restore_float_outputs(model: ModelT, graph: SubGraphT) -> None:
    """Makes the outputs of the graph and of its signature those that the float file had.

    If an integer kernel reads an output that is computed in floating point, litert-quantizer
    returns the quantized tensor that this kernel reads. If an operator in floating point reads an
    output of an integer kernel, the signature keeps the integers.
    """
    outputs = set(map(int, graph.outputs))
    floats: dict[int, int] = {}
    for operator in graph.operators:
        if flatbuffer.operator_name(model, operator) == "DEQUANTIZE":
            source, result = int(operator.inputs[0]), int(operator.outputs[0])
            if source not in floats or result in outputs:
                floats[source] = result
    entries = model.signatureDefs[0].outputs
    for entry in entries:
        entry.tensorIndex = floats.get(entry.tensorIndex, entry.tensorIndex)
    graph.outputs = [entry.tensorIndex for entry in entries]


def _read_integer_outputs(model: ModelT, graph: SubGraphT) -> None:
    """Makes integer kernels read the integers of an output of the graph.

    If an integer kernel reads an output, litert-quantizer may let it read the tensor in floating
    point that the graph returns.
    """
    integers = {
        int(operator.outputs[0]): int(operator.inputs[0])
        for operator in graph.operators
        if flatbuffer.operator_name(model, operator) == "DEQUANTIZE"
    }
    for operator in graph.operators:
        types = {flatbuffer.type_name(graph.tensors[i]) for i in operator.outputs}
        if "INT8" in types and flatbuffer.operator_name(model, operator) != "QUANTIZE":
            operator.inputs = [integers.get(int(i), i) for i in operator.inputs]


def _round_between_float_layers(model: ModelT, graph: SubGraphT, lowered: LoweredModel) -> None:
    """Lets operators in floating point read the rounded values that training gave their layers.

    An integer kernel reads integers in any case. Between an input or an operator in floating point
    and another such operator there would be none.
    """
    computed = {
        int(i)
        for operator in graph.operators
        for i in operator.outputs
        if flatbuffer.operator_name(model, operator) != "DEQUANTIZE"
    }
    for index in range(len(graph.tensors)):
        key = flatbuffer.text(graph.tensors[index].name)
        precision = lowered.quantization.get(key)
        # Pixels are integers as they are.
        if (
            precision is None
            or key in lowered.pixels
            or not (index in computed or index in graph.inputs)
        ):
            continue
        if flatbuffer.type_name(graph.tensors[index]) != "FLOAT32":
            continue
        readers = [o for o in graph.operators if index in o.inputs]
        quantize = [o for o in readers if flatbuffer.operator_name(model, o) == "QUANTIZE"]
        in_float = [o for o in readers if not _leads_to_integers(model, graph, o)]
        if not in_float:
            continue
        if quantize:
            integers = int(quantize[0].outputs[0])
        else:
            integers = editing.add_integer_tensor(graph, index, precision)
            # Later steps know the tensor in floating point by its key.
            graph.tensors[integers].name = f"{key}{_QUANTIZER_SUFFIXES[0]}".encode()
            graph.tensors[index].name = key.encode()
            quantize = [editing.new_operator(model, "QUANTIZE", [index], [integers])]
        rounded = editing.add_tensor(graph, copy.copy(graph.tensors[index]))
        graph.tensors[rounded].name = f"{key}r".encode()
        for operator in in_float:
            operator.inputs = [rounded if i == index else i for i in operator.inputs]
        graph.operators = [o for o in graph.operators if o is not quantize[0]]
        makers = [n for n, o in enumerate(graph.operators) if index in o.outputs]
        dequantize = editing.new_operator(model, "DEQUANTIZE", [integers], [rounded])
        position = max(makers, default=-1) + 1
        graph.operators[position:position] = [quantize[0], dequantize]


def _leads_to_integers(model: ModelT, graph: SubGraphT, operator: OperatorT) -> bool:
    """Whether an operator rounds its input, or moves its values to operators that do."""
    name = flatbuffer.operator_name(model, operator)
    if name not in _MOVES:
        return name == "QUANTIZE"
    readers = [o for o in graph.operators if operator.outputs[0] in o.inputs]
    is_output = operator.outputs[0] in graph.outputs
    return (
        bool(readers)
        and not is_output
        and all(_leads_to_integers(model, graph, reader) for reader in readers)
    )


def _store_in_containers(model: ModelT, graph: SubGraphT, containers: Mapping[str, str]) -> None:
    """Packs the weights that a target stores as INT4 or INT2."""
    for tensor in graph.tensors:
        container = containers.get(flatbuffer.text(tensor.name).rstrip("_"))
        if container in _PACK:
            packed = _PACK[container](flatbuffer.constant(model, tensor))
            editing.set_constant(model, tensor, packed)
            tensor.type = getattr(flatbuffer.schema().TensorType, container)


def _merge_equal_scales(graph: SubGraphT, lowered: LoweredModel) -> None:
    """Stores one scale for dense weights whose channels have equal scales.

    Some kernels of dense layers support only one scale for the whole tensor.
    """
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
        for operand in (tensor, *biases):
            quantization = operand.quantization
            quantization.scale = quantization.scale[:1]
            quantization.zeroPoint = quantization.zeroPoint[:1]
            quantization.quantizedDimension = 0


def _make_inputs_and_outputs_int8(model: ModelT, graph: SubGraphT, lowered: LoweredModel) -> None:
    """Replaces the float inputs and outputs of the graph by their int8 or int16 counterparts."""
    new_index = {}
    for index in dict.fromkeys((*graph.inputs, *graph.outputs)):
        key = flatbuffer.text(graph.tensors[index].name)
        is_input = index in graph.inputs
        # Indices are not quantized, even where the model takes them as float32. An input that
        # nothing reads has no quantization.
        if (
            flatbuffer.type_name(graph.tensors[index]) != "FLOAT32"
            or key in lowered.vocabulary
            or is_input
            and index not in graph.outputs
            and not any(index in operator.inputs for operator in graph.operators)
        ):
            new_index[index] = index
            continue
        precision = lowered.quantization.get(key)
        new_index[index] = _int8_counterpart(model, graph, index, precision, is_input)
    graph.inputs = [new_index[i] for i in graph.inputs]
    graph.outputs = [new_index[i] for i in graph.outputs]
    for definition in model.signatureDefs:
        for entry in (*definition.inputs, *definition.outputs):
            entry.tensorIndex = new_index[entry.tensorIndex]


def _int8_counterpart(
    model: ModelT,
    graph: SubGraphT,
    index: int,
    precision: ActivationPrecision | None,
    is_input: bool,
) -> int:
    """Returns the index of the int8 counterpart of a float input or output.

    The operator that converts one into the other is removed if there is one. Otherwise the int8
    tensor is added. Operators that use the float tensor get a conversion from or to the int8 one.

    Args:
        model: The `ModelT`, changed in place.
        graph: Its subgraph.
        index: The index of the float tensor.
        precision: Its quantization. None if it has none.
        is_input: Whether it is an input of the graph.
    """
    conversion = "QUANTIZE" if is_input else "DEQUANTIZE"
    for operator in graph.operators:
        source, result = int(operator.inputs[0]), int(operator.outputs[0])
        float_index, int8_index = (source, result) if is_input else (result, source)
        if flatbuffer.operator_name(model, operator) == conversion and float_index == index:
            break
    else:
        if precision is None:
            raise ConversionError(
                f"io_dtype='int8', but {flatbuffer.text(graph.tensors[index].name)} is in floating "
                f"point: this {'input' if is_input else 'output'} of the model is not quantized. "
                "Use io_dtype='float32'."
            )
        int8_index = editing.add_integer_tensor(graph, index, precision)
    graph.operators = [
        operator
        for operator in graph.operators
        if flatbuffer.operator_name(model, operator) != conversion
        or index not in (operator.inputs if is_input else operator.outputs)
    ]
    is_read = any(index in operator.inputs for operator in graph.operators)
    is_computed = any(index in operator.outputs for operator in graph.operators)
    if not is_input and is_computed:
        quantize = editing.new_operator(model, "QUANTIZE", [index], [int8_index])
        graph.operators.append(quantize)
    elif is_read:
        dequantize = editing.new_operator(model, "DEQUANTIZE", [int8_index], [index])
        computing = [int8_index in operator.outputs for operator in graph.operators]
        graph.operators.insert(computing.index(True) + 1 if any(computing) else 0, dequantize)
    return int8_index


def _name_inputs_and_outputs(model: ModelT, graph: SubGraphT, lowered: LoweredModel) -> None:
    """Gives the inputs and outputs the model's names, in the signature and the graph.

    The graph gets the order of the signature, because an app or firmware reads outputs by index. The
    int8 counterparts of float inputs and outputs keep their keys as names.
    """
    (definition,) = model.signatureDefs
    inputs, outputs = definition.inputs, definition.outputs
    names = {}
    for entry, name in zip(inputs + outputs, [*lowered.input_names, *lowered.output_names]):
        entry.name = name.encode()
        names[entry.tensorIndex] = name
    graph.inputs = np.array([entry.tensorIndex for entry in inputs], np.int32)
    graph.outputs = np.array([entry.tensorIndex for entry in outputs], np.int32)
    for index, tensor in enumerate(graph.tensors):
        name = flatbuffer.text(tensor.name)
        if flatbuffer.type_name(tensor) == "FLOAT32":
            name = names.get(index, name)
        else:
            for suffix in _QUANTIZER_SUFFIXES:
                name = name.removesuffix(suffix)
        tensor.name = name.encode()
