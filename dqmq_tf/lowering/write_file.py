"""Writes the file of one precision profile, from the lowered model to the finished bytes."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from dqmq_tf import flatbuffer, runtimes
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import ModelT, TFLiteFile, file_size, lookup_tables, metadata
from dqmq_tf.graph import Graph
from dqmq_tf.lowering import final_pass, float_file, number_check, quantization_plan, rules
from dqmq_tf.lowering.float_template import FloatTemplate
from dqmq_tf.lowering.lowered_model import LoweredModel, lower_graph
from dqmq_tf.lowering.tensor_matching import Match, match_tensors
from dqmq_tf.precision import Precision
from dqmq_tf.targets import Storage, Target
from dqmq_tf.terminal import stages

# The kind of op, one of `dqmq_tf.targets.OP_KINDS`, of an operator with weights.
_OP_KINDS = {
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "depthwise",
    "FULLY_CONNECTED": "dense",
    "TRANSPOSE_CONV": "transpose",
    "EMBEDDING_LOOKUP": "embedding",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A finished file, still without its checksum, and the model that it was made from.

    Attributes:
        file: The file for the device.
        uncompressed: The same network with plain weights, if `file` stores weights in lookup
            tables, which LiteRT cannot load. Otherwise `file` itself.
        lowered: The `LoweredModel`.
    """

    file: TFLiteFile
    uncompressed: TFLiteFile
    lowered: LoweredModel


def write_file(
    lowered: LoweredModel,
    target: Target,
    policy_config: Mapping[str, Any],
    *,
    profile: int,
    io_dtype: str,
    stage: Callable[[str], None],
    template: FloatTemplate | None = None,
) -> WrittenFile:
    """Writes the file of a precision profile.

    Args:
        lowered: The `LoweredModel` of the profile.
        target: The `Target`.
        policy_config: The configuration of the policy, which the metadata contain.
        profile: The index of the profile.
        io_dtype: The dtype of the file's inputs and outputs, `"float32"` or `"int8"`.
        stage: A function to call with the name of each stage when it begins.
        template: The `FloatTemplate` that writes the float file. None to convert the model.

    Returns:
        A `WrittenFile`.

    Raises:
        ConversionError: If the quantization of a tensor is unknown, if the target's runtime cannot
            run the file, or if the file would hold other numbers than the lowered model.
    """
    stage("exporting the float model")
    if template is None:
        file = float_file.export_float(lowered.model)
    else:
        file = template.export(lowered)
    model = file.model
    stage("matching tensors")
    match = match_tensors(model, lowered)
    _check_operators(model, match, target)
    _check_scales(lowered, target)
    float_file.name_tensors(model, match, lowered)
    file.edited()
    plan = quantization_plan.plan(model, match, lowered)
    stage("quantizing")
    quantized = quantization_plan.quantize(file, plan)
    storages = storages_of(lowered, target)
    graph = model.subgraphs[0]

    def tensor_name(index: int) -> str:
        return flatbuffer.text(graph.tensors[index].name)

    final_pass.finish(
        quantized,
        lowered,
        containers={name: storage.container for name, storage in storages.items()},
        facts=metadata.describe(lowered, target, profile, policy_config),
        io_dtype=io_dtype,
        merged=[tensor_name(graph.operators[i].outputs[0]) for i in plan.merged],
        grids={tensor_name(i): precision for i, precision in plan.activations.items()},
    )
    _check_runtime(quantized.model, target)
    _check_versions(quantized.model, target)
    table_bits = {
        f"w{number}": weights.bit_width
        for number, weights in enumerate(lowered.weights)
        if storages[f"w{number}"].table
    }
    compressed = lookup_tables.compress(quantized, table_bits)
    uncompressed = lookup_tables.decompress_file(compressed)
    _, messages = number_check.differences(uncompressed.model, lowered)
    if messages:
        raise ConversionError(
            "The file does not hold the numbers of the model: "
            f"{'; '.join(messages[:3])}. Please report the model."
        )
    return WrittenFile(file=compressed, uncompressed=uncompressed, lowered=lowered)


def measure_file(
    graph: Graph,
    precision: Precision,
    target: Target,
    policy_config: Mapping[str, Any],
    output_names: Iterable[str],
    template: FloatTemplate,
) -> dict[str, int]:
    """Returns the size of a model's file. The file is neither verified nor kept.

    Args:
        graph, precision, target, policy_config, output_names, template: See `write_unverified`.

    Returns:
        `{"size_bytes": size, "download_bytes": size when compressed for download}`.

    Raises:
        ConversionError: If the model cannot be converted.
    """
    written = write_unverified(graph, precision, target, policy_config, output_names, template)
    return file_size.file_bytes(written.file.sealed().contents)


def write_unverified(
    graph: Graph,
    precision: Precision,
    target: Target,
    policy_config: Mapping[str, Any],
    output_names: Iterable[str],
    template: FloatTemplate,
) -> WrittenFile:
    """Writes the file of a model whose bits are still being chosen, to measure it.

    Args:
        graph: The inlined `Graph` of the float model.
        precision: The `Precision` to write.
        target: The `Target`.
        policy_config: The configuration of the policy, which the metadata contain.
        output_names: The names of the outputs, which the file stores.
        template: The `FloatTemplate` of the model, which keeps what does not change.

    Returns:
        A `WrittenFile`.

    Raises:
        ConversionError: If the model cannot be converted.
    """
    rules.check_supported(graph)
    with stages("Measuring the file") as stage:
        lowered = lower_graph(graph, precision, output_names=output_names)
        return write_file(
            lowered,
            target,
            policy_config,
            profile=0,
            io_dtype=target.io_dtype,
            stage=stage,
            template=template,
        )


def storages_of(lowered: LoweredModel, target: Target) -> dict[str, Storage]:
    """Returns `{name of a weight tensor: how the target stores it}`."""
    return {
        f"w{number}": target.storage(
            _OP_KINDS.get(weights.kind, "other"),
            weights.bit_width,
            weights.integers.size,
            per_channel=bool(np.ptp(weights.scales)),
        )
        for number, weights in enumerate(lowered.weights)
    }


def _check_operators(model: ModelT, match: Match, target: Target) -> None:
    """Rejects operators for which the target's runtime has no kernel, naming the layer."""
    runtime = runtimes.get(target.runtimes[0])
    for index, operator in enumerate(model.subgraphs[0].operators):
        name = flatbuffer.operator_name(model, operator)
        if name == "CUSTOM":
            raise ConversionError(
                f"Layer {match.paths.get(index)!r} becomes an operator that TFLite does not have. "
                "Replace the layer, or keep it outside the converted model."
            )
        if name in runtime.lacks:
            raise ConversionError(
                f"Layer {match.paths.get(index)!r} becomes the operator {name}, for which "
                f"{runtime.name} has no kernel. Replace the layer (relu, hard_silu, tanh and "
                "sigmoid run everywhere), or choose another target."
            )
        if name not in runtime.largest_ranks:
            continue
        rank = len(model.subgraphs[0].tensors[operator.inputs[0]].shape)
        if rank > runtime.largest_ranks[name]:
            raise ConversionError(
                f"Layer {match.paths.get(index)!r} becomes the operator {name} on a tensor of "
                f"{rank} axes, but {runtime.name} runs it on {runtime.largest_ranks[name]} at "
                "most. Reshape the tensor before the layer, or choose another target."
            )


def _check_scales(lowered: LoweredModel, target: Target) -> None:
    """Rejects weights with a scale per channel that the target's runtime reads with one scale."""
    runtime = runtimes.get(target.runtimes[0])
    for weights in lowered.weights:
        if weights.kind in runtime.one_scale and np.ptp(weights.scales):
            reason = lowered.float_layers.get(weights.path, "it has no integer kernel")
            raise ConversionError(
                f"Layer {weights.path!r} computes in floating point ({reason}). There "
                f"{runtime.name}, the runtime of target {target.name!r}, silently uses the first of "
                "several scales of its weights. Replace the layer, such as a grouped convolution by "
                "several plain ones, or choose another target."
            )


def _check_runtime(model: ModelT, target: Target) -> None:
    """Rejects a file that the target's runtime cannot run for another reason."""
    runtime = target.runtimes[0]
    reason = runtimes.get(runtime).refuses(model)
    if reason:
        raise ConversionError(
            f"{runtime}, the runtime of target {target.name!r}, cannot run the file: {reason}."
        )


def _check_versions(model: ModelT, target: Target) -> None:
    """Rejects operators whose version is newer than the target allows."""
    newest = dict(target.operator_versions)
    for code in model.operatorCodes:
        name = flatbuffer.builtin_name(code)
        if code.version > newest.get(name, code.version):
            oldest = target.oldest_tflite
            purpose = "" if oldest is None else f", so that TensorFlow Lite {oldest} runs the file"
            raise ConversionError(
                f"The file needs version {code.version} of operator {name}, but target "
                f"{target.name!r} allows version {newest[name]} at most{purpose}. Raise it in the "
                "target's operator_versions, or remove the kind of op from its int4_ops and "
                "int2_ops."
            )
