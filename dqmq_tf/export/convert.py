"""`convert`: a trained model becomes a file for a device."""

import os
import pathlib
import tempfile
import time

from dqmq_tf import graph as graphs
from dqmq_tf.export import (
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
from dqmq_tf.export.matching import match, probe_inputs
from dqmq_tf.export.progress import stages
from dqmq_tf.export.report import ConversionReport, TensorReport
from dqmq_tf.export.skeleton import build_skeleton
from dqmq_tf.export.verify import check, claimed, collect, skeleton_of

_SUFFIX = ".tflite"
_IO_TYPES = ("float32", "int8")
_PROBE_SAMPLES = 64
_MEASURING_SAMPLES = 256
_OP_KINDS = {"CONV_2D": "conv", "DEPTHWISE_CONV_2D": "depthwise", "FULLY_CONNECTED": "dense"}
_PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "ai-edge-quantizer")


def convert(qmodel, path, *, profile=0, data=None, io="float32", verify=True):
    """Writes a trained model as a `.tflite` file for its target.

    The file holds the very integers and steps of training: batch normalization is folded exactly,
    and no range is calibrated. It takes a batch of one, and has the signature
    `"serving_default"` with the names of the model's inputs and of the layers that make its
    outputs.

    Args:
        qmodel: A trained `DQMQModel`. It is frozen to one precision profile if that was not done.
        path: Where to write; ends in `.tflite`. An existing file is replaced once all is well.
        profile: Which precision profile to write.
        data: Typical inputs, as `dqmq_tf.verify` takes them: for the verification, and to measure
            the range of a tensor that training could not see, such as the logits inside a
            `Dense(activation="softmax")`. Random inputs are used for the verification otherwise.
        io: Type of inputs and outputs: `"float32"`, or `"int8"` for callers that quantize by
            themselves, such as firmware.
        verify: Run the file and compare it with the model before it is delivered: on the first
            runtime of its target that is installed. `dqmq_tf.verify` runs it on all of them.

    Returns:
        `ConversionReport`.

    Raises:
        UnsupportedLayerError: If a layer has no counterpart on the integer road.
        ConversionError: If the target cannot be deployed to, a tensor has no range, or the file
            is larger than the budget.
        VerificationError: If the file does not compute what the model computes.
        ValueError: If `path` does not end in `.tflite`, or `io` is unknown.
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
    with stages("Converting") as stage:
        if not qmodel.frozen:
            stage("freezing to one precision profile")
            qmodel.freeze(profiles=1)
        stage("folding batch normalization")
        skeleton, graph = skeleton_of(qmodel, profile)
        _check_activations(skeleton, graph, target)
        inputs = None if data is None else collect(data, _MEASURING_SAMPLES)
        contents, model, plan = _written(qmodel, skeleton, target, profile, inputs, io, stage)
        _check_budget(qmodel.budget, contents)
        verification = None
        if verify:
            inputs = probe_inputs(skeleton, _PROBE_SAMPLES) if data is None else inputs
            verification = check(
                qmodel,
                path,
                contents,
                model,
                skeleton,
                inputs,
                graph,
                runtimes=claimed(target),
                first_only=True,
                stage=stage,
            )
        _write_atomically(path, contents)
    return ConversionReport(
        path=str(path),
        target=target.name,
        profile=profile,
        total_bytes=len(contents),
        deflated_bytes=size.deflated_bytes(contents),
        weights=_tensor_reports(model, skeleton),
        float_sites=tuple(skeleton.float_sites),
        measured=plan.measured,
        min_runtime_version=metadata.min_runtime_version_of(model),
        package_versions=_package_versions(),
        verification=verification,
        seconds=time.perf_counter() - started,
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
            contents = _written(qmodel, skeleton, qmodel.target, 0, None, "float32", stage)[0]
    except (ConversionError, UnsupportedLayerError):
        return None
    return size.file_bytes(contents)


def _written(qmodel, skeleton, target, profile, inputs, io, stage):
    """Contents of the finished file, the same parsed, and its plan."""
    stage("exporting the float skeleton")
    data = litert.export_float(skeleton)
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
    return contents, model, plan


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
    found = size.file_bytes(contents)
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


def _tensor_reports(model, skeleton):
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
    return tuple(reports)


def _package_versions():
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in _PACKAGES}
