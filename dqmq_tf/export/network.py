"""The finished file of one precision profile: `write` makes it, `measure` only to know its size."""

import dataclasses

import numpy as np

from dqmq_tf import graph as graphs
from dqmq_tf.export import (
    checksum,
    compression,
    finishing,
    flatbuffer,
    inspection,
    litert,
    metadata,
    quantization,
    runtimes,
    size,
)
from dqmq_tf.export.errors import ConversionError, UnsupportedLayerError
from dqmq_tf.export.matching import match
from dqmq_tf.export.progress import stages
from dqmq_tf.export.report import TensorReport
from dqmq_tf.export.skeleton import Skeleton, build_skeleton

_OP_KINDS = {
    "CONV_2D": "conv",
    "DEPTHWISE_CONV_2D": "depthwise",
    "FULLY_CONNECTED": "dense",
    "TRANSPOSE_CONV": "transpose",
    "EMBEDDING_LOOKUP": "embedding",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A finished file before its seal, and what it was made from.

    Attributes:
        contents: What a device gets.
        twin: The same with plain weights where `contents` has them in lookup tables, which LiteRT
            cannot load.
        skeleton: `Skeleton`.
    """

    contents: bytes
    twin: bytes
    skeleton: Skeleton


def write(qmodel, skeleton, profile, io, stage):
    """Makes the file of a precision profile.

    Args:
        qmodel: A `DQMQModel`.
        skeleton: `Skeleton` of the profile.
        profile: Its number.
        io: Type of inputs and outputs.
        stage: Function that takes the name of the stage which begins.

    Returns:
        `Network`.

    Raises:
        ConversionError: If a tensor has no range, the runtime that the target is for cannot run the
            file, or it would hold other numbers.
    """
    target = qmodel.target
    stage("exporting the float skeleton")
    data = litert.export_float(skeleton.model)
    model = flatbuffer.read(data)
    stage("matching tensors")
    found = match(model, skeleton)
    _check_operators(model, found, target)
    litert.name_tensors(model, found, skeleton)
    plan = quantization.plan(model, found, skeleton)
    stage("quantizing")
    data = quantization.quantize(model, plan)
    storages = storages_of(skeleton, target)
    containers = {name: storage.container for name, storage in storages.items()}
    facts = metadata.describe(skeleton, target, profile, qmodel.policy.get_config())
    tensors, operators = model.subgraphs[0].tensors, model.subgraphs[0].operators
    merged = [flatbuffer.text(tensors[operators[i].outputs[0]].name) for i in plan.by_us]
    grids = {flatbuffer.text(tensors[i].name): grid for i, grid in plan.activations.items()}
    plain = finishing.finish(data, skeleton, containers, facts, io, merged, grids)
    refused = runtimes.get(target.runtimes[0]).refuses(flatbuffer.read(plain))
    if refused:
        raise ConversionError(
            f"{target.runtimes[0]}, for which target {target.name!r} is, cannot run the file: "
            f"{refused}."
        )
    tables = {
        f"w{number}": weights.bit_width
        for number, weights in enumerate(skeleton.weights)
        if storages[f"w{number}"].table
    }
    contents = compression.compress(plain, tables)
    twin = compression.decompress(contents)
    _, messages = inspection.differences(flatbuffer.read(twin), skeleton)
    if messages:
        raise ConversionError(
            f"The quantizer did not write our numbers: {'; '.join(messages[:3])}. Please report "
            "the model."
        )
    return Network(contents=contents, twin=twin, skeleton=skeleton)


def _check_operators(model, found, target):
    """Refuses operators that the runtime which the target is for has no kernel for."""
    runtime = runtimes.get(target.runtimes[0])
    for index, operator in enumerate(model.subgraphs[0].operators):
        name = flatbuffer.operator_name(model, operator)
        if name == "CUSTOM":
            raise ConversionError(
                f"Layer {found.sites.get(index)!r} becomes an operator that TFLite does not have. "
                "Replace the layer, or keep it outside the converted model."
            )
        if name in runtime.lacks:
            raise ConversionError(
                f"Layer {found.sites.get(index)!r} becomes the operator {name}, for which "
                f"{runtime.name} has no kernel. Replace the layer (relu, hard_silu, tanh and sigmoid "
                "run everywhere), or choose another target."
            )


def measure(qmodel, precision):
    """Makes the file of a model without verifying or keeping it, to know its size.

    Args:
        qmodel: A `DQMQModel`.
        precision: The `Precision` to write.

    Returns:
        `{"size_bytes": …, "download_bytes": …}`, or None where the model cannot be converted.
    """
    try:
        with stages("Measuring the file") as stage:
            skeleton = build_skeleton(graphs.trace(qmodel.float_model()), precision)
            network = write(qmodel, skeleton, 0, qmodel.target.io, stage)
    except (ConversionError, UnsupportedLayerError):
        return None
    return size.file_bytes(checksum.seal(network.contents))


def storages_of(skeleton, target):
    """`{name of a weight tensor: Storage}`."""
    return {
        f"w{number}": target.storage(
            _OP_KINDS.get(weights.kind, "other"),
            weights.bit_width,
            weights.integers.size,
            per_channel=bool(np.ptp(weights.scales)),
        )
        for number, weights in enumerate(skeleton.weights)
    }


def tensor_reports(networks):
    """One `TensorReport` per quantized variable of each profile's `Network`."""
    reports = []
    for profile, network in enumerate(networks):
        label = f"profile {profile}: " if len(networks) > 1 else ""
        reports += [
            dataclasses.replace(report, name=label + report.name)
            for report in _reports_of(flatbuffer.read(network.contents), network.skeleton)
        ]
    return tuple(reports)


def _reports_of(model, skeleton):
    tensors = {flatbuffer.text(t.name): t for t in model.subgraphs[0].tensors}
    coded, reports = compression.coded_tensors(model), []
    for number, weights in enumerate(skeleton.weights):
        tensor = tensors[f"w{number}"]
        holder = coded[f"w{number}"][0] if f"w{number}" in coded else tensor
        data = model.buffers[holder.buffer].data.tobytes()
        reports.append(
            TensorReport(
                name=metadata.weights_label(weights),
                operator=weights.kind,
                count=weights.integers.size,
                bit_width=weights.bit_width,
                container=flatbuffer.type_name(tensor),
                table=holder is not tensor,
                stored_bytes=len(data),
                deflated_bytes=size.deflated_bytes(data),
            )
        )
    return reports
