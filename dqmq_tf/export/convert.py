"""`convert`: a trained model becomes a file for a device."""

import dataclasses
import os
import pathlib
import tempfile
import time
from typing import Any

from dqmq_tf import graph as graphs
from dqmq_tf.export import adaptive as adaptives
from dqmq_tf.export import (
    checksum,
    finishing,
    flatbuffer,
    inspection,
    litert,
    lowering,
    metadata,
    quantization,
    size,
)
from dqmq_tf.export.errors import ConversionError, UnsupportedLayerError
from dqmq_tf.export.interpreter import AdaptiveInterpreter
from dqmq_tf.export.matching import match, probe_inputs
from dqmq_tf.export.progress import stages
from dqmq_tf.export.report import AdaptiveVerificationReport, ConversionReport, TensorReport
from dqmq_tf.export.skeleton import Skeleton, build_skeleton
from dqmq_tf.export.verify import (
    DEFAULT_AGREEMENT,
    DEFAULT_MEAN_QUANTA,
    check,
    collect,
    skeleton_of,
)

_SUFFIX = ".tflite"
_IO_TYPES = ("float32", "int8")
_PROBE_SAMPLES = 64
_MEASURING_SAMPLES = 256
_CLUSTERED_SAMPLES = 2048
_OP_KINDS = {"CONV_2D": "conv", "DEPTHWISE_CONV_2D": "depthwise", "FULLY_CONNECTED": "dense"}
_PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "ai-edge-quantizer")


def convert(
    qmodel,
    path,
    *,
    profile=0,
    adaptive=None,
    routing="signatures",
    data=None,
    io="float32",
    verify=True,
):
    """Writes a trained model as a `.tflite` file for its target.

    The file holds the very integers and steps of training: batch normalization is folded exactly,
    and no range is calibrated. It takes a batch of one, and has the signature
    `"serving_default"` with the names of the model's inputs and of the layers that make its
    outputs.

    Args:
        qmodel: A trained `DQMQModel`. It is frozen to one precision profile if that was not done.
        path: Where to write; ends in `.tflite`. An existing file is replaced once all is well.
        profile: Which precision profile to write.
        adaptive: Number of precision profiles, 2 to 4, to write into one file with the quality
            router that chooses among them for each input. The model is frozen to as many, by the
            policy's decisions on `data`, if it is not yet; train with
            `DQMQConfig(profiles=adaptive)` to have each profile's weights trained.
        routing: How an adaptive file chooses. `"signatures"`: signatures `"router"`, which gives
            `profile`, and `"profile_0"`, `"profile_1"` and so on, which the app runs one after the
            other, as `dqmq_tf.AdaptiveInterpreter` does. `"graph"`: one signature, an IF inside
            the file; a last output `profile` tells what was chosen.
        data: Typical inputs, as `dqmq_tf.verify` takes them: for the verification, and to measure
            the range of a tensor that training could not see, such as the logits inside a
            `Dense(activation="softmax")`. Random inputs are used for the verification otherwise.
        io: Type of inputs and outputs: `"float32"`, or `"int8"` for callers that quantize by
            themselves, such as firmware.
        verify: Run the file on LiteRT and compare it with the model before it is delivered. An
            adaptive file is compared with its profiles' own files in any case.

    Returns:
        `ConversionReport`.

    Raises:
        UnsupportedLayerError: If a layer has no counterpart on the integer road.
        ConversionError: If the target cannot be deployed to or cannot route so, a tensor has no
            range, or the file (each profile's own, of an adaptive one) is larger than the budget.
        VerificationError: If the file does not compute what the model computes.
        ValueError: If `path` does not end in `.tflite`, or another argument is not as above.
        OSError: If `path` cannot be written.

    Example:

    >>> report = dqmq_tf.convert(model, "model.tflite", data=test_images)
    >>> rich.print(report)
    """
    started = time.perf_counter()
    path = _checked_path(path)
    target = _checked_target(qmodel.target)
    if io not in _IO_TYPES:
        raise ValueError(f"io={io!r} must be one of {', '.join(map(repr, _IO_TYPES))}.")
    quantization.require_quantizer()
    lowering.check_supported(graphs.trace(qmodel.float_model()))
    if adaptive is not None:
        adaptives.check_request(adaptive, routing, target, data)
    with stages("Converting") as stage:
        inputs = None if data is None else collect(data, _CLUSTERED_SAMPLES)
        _freeze(qmodel, adaptive, inputs, stage)
        inputs = inputs and [array[:_MEASURING_SAMPLES] for array in inputs]
        parts, verifications = [], []
        for number in [profile] if adaptive is None else range(adaptive):
            stage("folding batch normalization")
            skeleton, graph = skeleton_of(qmodel, number)
            _check_activations(skeleton, graph, target)
            part = _written(qmodel, skeleton, target, number, inputs, io, stage)
            _check_budget(qmodel.budget, part.contents)
            parts.append(part)
            if verify:
                verifications.append(_verified(qmodel, path, part, graph, inputs, stage))
        contents, routed = parts[0].contents, None
        if adaptive is not None:
            stage("building the quality router")
            contents, routed = _adaptive(qmodel, path, parts, inputs, data, routing)
        contents = checksum.seal(contents)
        _write_atomically(path, contents)
    return ConversionReport(
        path=str(path),
        target=target.name,
        profile=profile if adaptive is None else None,
        total_bytes=len(contents),
        deflated_bytes=size.deflated_bytes(contents),
        weights=_tensor_reports(parts),
        float_sites=tuple(parts[0].skeleton.float_sites),
        measured=parts[0].plan.measured,
        min_runtime_version=metadata.min_runtime_version_of(flatbuffer.read(contents)),
        package_versions=_package_versions(),
        verification=_one(verifications),
        adaptive=routed,
        seconds=time.perf_counter() - started,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
    """A finished file before its seal: contents, the same parsed, and what it was made from."""

    contents: bytes
    model: Any
    skeleton: Skeleton
    plan: quantization.Plan


def _freeze(qmodel, adaptive, inputs, stage):
    if adaptive is None and not qmodel.frozen:
        stage("freezing to one precision profile")
        qmodel.freeze(profiles=1)
    elif adaptive is not None and qmodel.frozen != adaptive:
        stage(f"freezing to {adaptive} precision profiles")
        qmodel.freeze(profiles=adaptive, data=inputs if len(inputs) > 1 else inputs[0])


def _verified(qmodel, path, part, graph, inputs, stage):
    return check(
        qmodel,
        path,
        part.contents,
        part.model,
        part.skeleton,
        probe_inputs(part.skeleton, _PROBE_SAMPLES) if inputs is None else inputs,
        graph,
        agreement=DEFAULT_AGREEMENT,
        mean_quanta=DEFAULT_MEAN_QUANTA,
        stage=stage,
    )


def _adaptive(qmodel, path, parts, inputs, data, routing):
    """Contents of the adaptive file, and its report."""
    files = [part.contents for part in parts]
    skeleton = parts[0].skeleton
    grid = skeleton.quantization.get(skeleton.inputs[0])
    contents, routes = adaptives.combine(qmodel, files, inputs, grid, routing)
    interpreter = AdaptiveInterpreter(contents)
    report = adaptives.check(
        qmodel, path, contents, files, interpreter, inputs, data, routing, routes
    )
    return contents, report


def _one(verifications):
    """The verification of one profile, or of all, or None."""
    if len(verifications) > 1:
        return AdaptiveVerificationReport(profiles=tuple(verifications))
    return verifications[0] if verifications else None


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
            part = _written(qmodel, skeleton, qmodel.target, 0, None, "float32", stage)
    except (ConversionError, UnsupportedLayerError):
        return None
    return size.file_bytes(checksum.seal(part.contents))


def _written(qmodel, skeleton, target, profile, inputs, io, stage):
    """The finished file of a precision profile, as a `_Part`."""
    stage("exporting the float skeleton")
    data = litert.export_float(skeleton.model)
    model = flatbuffer.read(data)
    stage("matching tensors")
    found = match(model, data, skeleton)
    litert.name_tensors(model, found, skeleton)
    plan = quantization.plan(model, found, skeleton, inputs)
    stage("quantizing")
    data = quantization.quantize(model, plan)
    containers = {
        f"w{number}": target.container(_OP_KINDS[weights.kind], weights.bit_width)
        for number, weights in enumerate(skeleton.weights)
    }
    facts = metadata.describe(skeleton, target, profile, qmodel.policy.get_config(), plan.measured)
    contents = finishing.finish(data, skeleton, containers, facts, io)
    model = flatbuffer.read(contents)
    _, messages = inspection.differences(model, skeleton)
    if messages:
        raise ConversionError(
            f"The quantizer did not write our numbers: {'; '.join(messages[:3])}. Please report "
            "the model."
        )
    return _Part(contents=contents, model=model, skeleton=skeleton, plan=plan)


def _checked_path(path):
    path = pathlib.Path(path)
    if path.suffix != _SUFFIX:
        raise ValueError(f"path={str(path)!r} must end in {_SUFFIX!r}.")
    if path.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a folder: give the name of a file in it.")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise FileNotFoundError(f"The folder {str(parent)!r} of path={str(path)!r} is not there.")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise PermissionError(f"The folder {str(parent)!r} cannot be written: {error}.") from error
    return path


def _checked_target(target):
    if not target.deployable:
        raise ConversionError(
            f"Target {target.name!r} has no runtime: nothing runs such a file. Quantize the model "
            "for a target that can be deployed to, such as 'android'."
        )
    return target


def _check_activations(skeleton, graph, target):
    sites = {f"a{tensor}": node.site for node in graph.nodes for tensor in node.outputs}
    for key, precision in skeleton.quantization.items():
        if precision.bit_width != 8:
            raise ConversionError(
                f"The tensor made by {sites.get(key.rstrip('p'), 'the input')!r} has "
                f"{precision.bit_width} bits, but runtimes of target {target.name!r} compute with "
                "8-bit activations. Quantize the model for that target."
            )


def _check_budget(budget, contents):
    if budget is None:
        return
    found = size.file_bytes(checksum.seal(contents))
    if budget.kind in found and found[budget.kind] > budget.value:
        raise ConversionError(
            f"The file takes {found[budget.kind]:,} bytes ({budget.kind}), the budget is "
            f"{int(budget.value):,}; its weights alone are only a part of that. Nothing was "
            "written. Train with a smaller budget, or allow fewer bits by LayerRule."
        )


def _write_atomically(path, contents):
    descriptor, temporary = tempfile.mkstemp(dir=path.absolute().parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def _tensor_reports(parts):
    """One report per quantized variable and profile."""
    reports = []
    for profile, part in enumerate(parts):
        label = f"profile {profile}: " if len(parts) > 1 else ""
        reports += [
            dataclasses.replace(report, name=label + report.name)
            for report in _reports_of(part.model, part.skeleton)
        ]
    return tuple(reports)


def _reports_of(model, skeleton):
    tensors = {flatbuffer.text(t.name): t for t in model.subgraphs[0].tensors}
    reports = []
    for number, weights in enumerate(skeleton.weights):
        tensor = tensors[f"w{number}"]
        data = model.buffers[tensor.buffer].data.tobytes()
        reports.append(
            TensorReport(
                name=metadata.weights_label(weights),
                operator=weights.kind,
                count=weights.integers.size,
                bit_width=weights.bit_width,
                container=flatbuffer.type_name(tensor),
                stored_bytes=len(data),
                deflated_bytes=size.deflated_bytes(data),
            )
        )
    return reports


def _package_versions():
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in _PACKAGES}
