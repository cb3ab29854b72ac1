"""The finished file of one precision profile: `write` makes it, `measure` only to know its size."""

import dataclasses

import numpy as np

from dqmq_tf import flatbuffer, runtimes
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import TFLiteFile, file_size, lookup_tables, metadata
from dqmq_tf.lowering import final_pass, float_file, number_check, quantization_plan, rules
from dqmq_tf.lowering.lowered_model import LoweredModel, lower_graph
from dqmq_tf.lowering.tensor_matching import match_tensors
from dqmq_tf.terminal import stages

_OP_KINDS = {
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "depthwise",
    "FULLY_CONNECTED": "dense",
    "TRANSPOSE_CONV": "transpose",
    "EMBEDDING_LOOKUP": "embedding",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A finished file before its seal, and what it was made from.

    Attributes:
        file: What a device gets.
        uncompressed: The same with plain weights where `file` has them in lookup tables, which
            LiteRT cannot load; else `file` itself.
        lowered: `LoweredModel`.
    """

    file: TFLiteFile
    uncompressed: TFLiteFile
    lowered: LoweredModel


def write_file(lowered, target, policy_config, *, profile, io_dtype, stage):
    """Makes the file of a precision profile.

    Args:
        lowered: `LoweredModel` of the profile.
        target: The `Target`.
        policy_config: Configuration of the policy, which the metadata tell.
        profile: Its number.
        io_dtype: Type of inputs and outputs.
        stage: Function that takes the name of the stage which begins.

    Returns:
        `WrittenFile`.

    Raises:
        ConversionError: If a tensor has no range, the runtime that the target is for cannot run the
            file, or it would hold other numbers.
    """
    stage("exporting the float model")
    file = float_file.export_float(lowered.model)
    model = file.model
    stage("matching tensors")
    found = match_tensors(model, lowered)
    _check_operators(model, found, target)
    float_file.name_tensors(model, found, lowered)
    file.edited()
    plan = quantization_plan.plan(model, found, lowered)
    stage("quantizing")
    quantized = quantization_plan.quantize(file, plan)
    storages = storages_of(lowered, target)
    containers = {name: storage.container for name, storage in storages.items()}
    facts = metadata.describe(lowered, target, profile, policy_config)
    tensors, operators = model.subgraphs[0].tensors, model.subgraphs[0].operators
    merged = [flatbuffer.text(tensors[operators[i].outputs[0]].name) for i in plan.own_kernels]
    grids = {flatbuffer.text(tensors[i].name): grid for i, grid in plan.activations.items()}
    final_pass.finish(quantized, lowered, containers, facts, io_dtype, merged, grids)
    refused = runtimes.get(target.runtimes[0]).refuses(quantized.model)
    if refused:
        raise ConversionError(
            f"{target.runtimes[0]}, for which target {target.name!r} is, cannot run the file: "
            f"{refused}."
        )
    _check_versions(quantized.model, target)
    tables = {
        f"w{number}": weights.bit_width
        for number, weights in enumerate(lowered.weights)
        if storages[f"w{number}"].table
    }
    compressed = lookup_tables.compress(quantized, tables)
    uncompressed = lookup_tables.decompress_file(compressed)
    _, messages = number_check.differences(uncompressed.model, lowered)
    if messages:
        raise ConversionError(
            f"The quantizer did not write our numbers: {'; '.join(messages[:3])}. Please report "
            "the model."
        )
    return WrittenFile(file=compressed, uncompressed=uncompressed, lowered=lowered)


def _check_versions(model, target):
    """Refuses operators that are newer than the target allows."""
    newest = dict(target.operator_versions)
    for code in model.operatorCodes:
        name = flatbuffer.builtin_name(code)
        if code.version > newest.get(name, code.version):
            oldest = target.oldest_tflite
            reason = "" if oldest is None else f", so that TensorFlow Lite {oldest} runs the file"
            raise ConversionError(
                f"The file needs version {code.version} of operator {name}, but target "
                f"{target.name!r} allows version {newest[name]} at most{reason}. Raise it in the "
                "target's operator_versions, or remove the kind of layer from its int4_ops and "
                "int2_ops."
            )


def _check_operators(model, found, target):
    """Refuses operators that the runtime which the target is for has no kernel for."""
    runtime = runtimes.get(target.runtimes[0])
    for index, operator in enumerate(model.subgraphs[0].operators):
        name = flatbuffer.operator_name(model, operator)
        if name == "CUSTOM":
            raise ConversionError(
                f"Layer {found.paths.get(index)!r} becomes an operator that TFLite does not have. "
                "Replace the layer, or keep it outside the converted model."
            )
        if name in runtime.lacks:
            raise ConversionError(
                f"Layer {found.paths.get(index)!r} becomes the operator {name}, for which "
                f"{runtime.name} has no kernel. Replace the layer (relu, hard_silu, tanh and sigmoid "
                "run everywhere), or choose another target."
            )


def measure_file(graph, precision, target, policy_config, output_names):
    """Makes the file of a model without verifying or keeping it, to know its size.

    Args:
        graph: The inlined `Graph` of the float model.
        precision: The `Precision` to write.
        target: The `Target`.
        policy_config: Configuration of the policy, which the metadata tell.
        output_names: Names of the outputs, which the file stores.

    Returns:
        `{"size_bytes": …, "download_bytes": …}`.

    Raises:
        ConversionError: If the model cannot be converted.
    """
    rules.check_supported(graph)
    with stages("Measuring the file") as stage:
        lowered = lower_graph(graph, precision, output_names=output_names)
        network = write_file(
            lowered, target, policy_config, profile=0, io_dtype=target.io_dtype, stage=stage
        )
    return file_size.file_bytes(network.file.sealed().contents)


def storages_of(lowered, target):
    """`{name of a weight tensor: Storage}`."""
    return {
        f"w{number}": target.storage(
            _OP_KINDS.get(weights.kind, "other"),
            weights.bit_width,
            weights.integers.size,
            per_channel=bool(np.ptp(weights.scales)),
        )
        for number, weights in enumerate(lowered.weights)
    }
