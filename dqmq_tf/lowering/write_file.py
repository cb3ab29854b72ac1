"""Writes the file of one precision profile, from the lowered model to the finished bytes."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dqmq_tf import flatbuffer, runtimes
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import (
    ModelT,
    TFLiteFile,
    code_sharing,
    file_size,
    huffman,
    lookup_tables,
    metadata,
)
from dqmq_tf.graph import Graph
from dqmq_tf.lowering import (
    final_pass,
    float_file,
    number_check,
    operator_origins,
    quantization_plan,
    rules,
)
from dqmq_tf.lowering.float_template import FloatTemplate
from dqmq_tf.lowering.folding import FoldedWeights
from dqmq_tf.lowering.lowered_model import LoweredModel, lower_graph
from dqmq_tf.lowering.stored_weights import StoredWeights
from dqmq_tf.lowering.tensor_matching import Match, match_tensors
from dqmq_tf.precision import Precision
from dqmq_tf.targets import CODE_BYTES, TABLE_BYTES, Storage, Target, without_int4
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
    decoder: bool | None = None,
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
        decoder: Whether the file may use the operator DECODE. None for what `uses_decoder` says.

    Returns:
        A `WrittenFile`.

    Raises:
        ConversionError: If the quantization of a tensor is unknown, if the target's runtime cannot
            run the file, or if the file would hold other numbers than the lowered model.
    """
    stage("exporting the float model")
    if template is None:
        file = float_file.export_float(lowered.model, lowered.layer_paths)
    else:
        file = template.export(lowered)
    model = file.model
    stage("matching tensors")
    match = match_tensors(model, lowered)
    _check_kernels(model, match, lowered.layer_paths)
    _check_operators(model, match, target)
    _check_scales(lowered, target)
    float_file.name_tensors(model, match, lowered)
    file.edited()
    plan = quantization_plan.plan(model, match, lowered)
    stage("quantizing")
    quantized = quantization_plan.quantize(file, plan)
    if decoder is None:
        decoder = uses_decoder([lowered], target)
    containers, codings = _codings(lowered, target, decoder)
    graph = model.subgraphs[0]

    def tensor_name(index: int) -> str:
        return flatbuffer.text(graph.tensors[index].name)

    final_pass.finish(
        quantized,
        lowered,
        containers=containers,
        facts=metadata.describe(lowered, target, profile, policy_config),
        io_dtype=io_dtype,
        merged=[tensor_name(graph.operators[i].outputs[0]) for i in plan.merged],
        grids={tensor_name(i): precision for i, precision in plan.activations.items()},
    )
    _check_runtime(quantized.model, target)
    _check_versions(quantized.model, target)
    compressed = lookup_tables.compress(quantized, codings)
    uncompressed = lookup_tables.decompress_file(compressed)
    _, messages = number_check.differences(uncompressed.model, lowered)
    if messages:
        raise ConversionError(
            "The file does not hold the numbers of the model: "
            f"{'; '.join(messages[:3])}. Please report the model."
        )
    return WrittenFile(file=compressed, uncompressed=uncompressed, lowered=lowered)


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


def firmware_bytes(file: TFLiteFile, target: Target) -> dict[str, int]:
    """Returns the size of a file in the unit of each budget in bytes, and that of its decoder.

    Args:
        file: The finished file, with its checksum.
        target: The `Target`.

    Returns:
        `{"size_bytes": bytes of firmware, "download_bytes": bytes of the file when compressed for
        download, "decoder_bytes": bytes of the decoder in the firmware}`.
    """
    sizes = file_size.file_bytes(file.contents)
    decoder_bytes = target.decoder_bytes if lookup_tables.is_compressed(file.model) else 0
    sizes["size_bytes"] += decoder_bytes
    return sizes | {"decoder_bytes": decoder_bytes}


def uses_decoder(profiles: Sequence[LoweredModel], target: Target) -> bool:
    """Returns whether a file uses the operator DECODE: whether the firmware is smaller with it.

    Args:
        profiles: The `LoweredModel` of each profile in the file. Weights that several have are
            counted once.
        target: The `Target`.
    """
    totals = []
    for decoder in (False, True):
        distinct = {
            (weights.path, weights.variable, weights.integers.tobytes()): storage.size_bytes
            for lowered in profiles
            for weights, storage in zip(
                lowered.weights, storages_of(lowered, target, decoder).values()
            )
        }
        totals.append(sum(distinct.values()))
    return target.pays_decoder(*totals)


def storages_of(lowered: LoweredModel, target: Target, decoder: bool) -> dict[str, Storage]:
    """Returns `{name of a weight tensor: how the target stores it}` if tensors share no codes.

    Args:
        lowered: The `LoweredModel`.
        target: The `Target`.
        decoder: Whether the file may use the operator DECODE.
    """
    return {
        f"w{number}": code_sharing.storage_alone(
            _storing(target, weights),
            _op_kind(weights),
            weights.bit_width,
            weights.integers,
            _is_per_channel(weights),
            decoder=decoder,
        )
        for number, weights in enumerate(lowered.weights)
    }


def _codings(
    lowered: LoweredModel, target: Target, decoder: bool
) -> tuple[dict[str, str], dict[str, int | huffman.Code]]:
    """Returns the container of each weight tensor, and the coding of coded ones for `compress`.

    Tensors share Huffman codes here, so a few more have one than `storages_of` says.
    """
    containers: dict[str, str] = {}
    codings: dict[str, int | huffman.Code] = {}
    codable: dict[str, code_sharing.Codable] = {}
    for number, weights in enumerate(lowered.weights):
        name, integers = f"w{number}", weights.integers
        storage = _storing(target, weights).storage(
            _op_kind(weights),
            weights.bit_width,
            integers.size,
            per_channel=_is_per_channel(weights),
            decoder=decoder,
        )
        containers[name] = storage.container
        if storage.coding == "table":
            codings[name] = weights.bit_width
        if _OP_KINDS.get(weights.kind) in target.table_ops and integers.size:
            codable[name] = code_sharing.Codable(integers=integers, other_bytes=storage.size_bytes)
    if decoder and "huffman" in target.codings:
        codes = code_sharing.choose_codes(codable, TABLE_BYTES, CODE_BYTES)
        codings |= codes
        containers |= dict.fromkeys(codes, "INT8")
    return containers, codings


def _storing(target: Target, weights: FoldedWeights | StoredWeights) -> Target:
    """Returns the target, without INT4 for weights of an operator with int16 activations."""
    is_int16 = isinstance(weights, FoldedWeights) and weights.is_int16
    return without_int4(target) if is_int16 else target


def _op_kind(weights: FoldedWeights | StoredWeights) -> str:
    """Returns the kind of op that reads weights, one of `dqmq_tf.targets.OP_KINDS`."""
    return _OP_KINDS.get(weights.kind, "other")


def _is_per_channel(weights: FoldedWeights | StoredWeights) -> bool:
    """Returns whether weights have several scales."""
    return bool(np.ptp(weights.scales))


def _check_kernels(model: ModelT, match: Match, layer_paths: Mapping[str, str]) -> None:
    """Rejects operators of TensorFlow that TFLite does not have, naming the layer."""
    graph = model.subgraphs[0]
    kinds: dict[str | None, list[str]] = {}
    for index, operator in enumerate(graph.operators):
        if flatbuffer.operator_name(model, operator) == "CUSTOM":
            name = flatbuffer.text(graph.tensors[operator.outputs[0]].name)
            path = operator_origins.origin(name, layer_paths) or match.paths.get(index)
            kind = flatbuffer.text(model.operatorCodes[operator.opcodeIndex].customCode)
            kinds.setdefault(path, []).append(kind.removeprefix("Flex"))
    if kinds:
        path, found = next(iter(kinds.items()))
        raise ConversionError(
            f"Layer {path!r} becomes operators of TensorFlow that TFLite does not have: "
            f"{', '.join(dict.fromkeys(found))}. Replace the layer, or compute it outside the model, "
            "on the data."
        )


def _check_operators(model: ModelT, match: Match, target: Target) -> None:
    """Rejects operators for which the target's runtime has no kernel, naming the layer."""
    runtime = runtimes.get(target.runtimes[0])
    for index, operator in enumerate(model.subgraphs[0].operators):
        name = flatbuffer.operator_name(model, operator)
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
