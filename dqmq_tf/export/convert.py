"""`convert`: writes a trained model as a file for a device."""

import functools
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dqmq_tf import graph as graphs
from dqmq_tf.errors import ConversionError, check_profile, check_quantized
from dqmq_tf.export import adaptive as adaptives
from dqmq_tf.export import atomic_write, conversion_report, device_checks
from dqmq_tf.export.artifacts import artifact_paths, check_artifacts, render_artifacts
from dqmq_tf.export.conversion_report import AdaptiveReport, ConversionReport
from dqmq_tf.export.file_paths import checked_path
from dqmq_tf.export.preprocessing import Preprocessing, input_facts, warn_of_other_ranges
from dqmq_tf.export.verification_report import AdaptiveVerificationReport, VerificationReport
from dqmq_tf.export.verify import check_single_process, compare_file
from dqmq_tf.flatbuffer import TFLiteFile, editing, file_size, metadata, standard_metadata
from dqmq_tf.inputs import collect, structured
from dqmq_tf.lowering import output_grid, quantization_plan, rules, write_file
from dqmq_tf.lowering.lowered_model import lower_model, probe_inputs
from dqmq_tf.model import DQMQModel
from dqmq_tf.precision import INT16_BITS
from dqmq_tf.runtimes import claimed, tflite_micro
from dqmq_tf.runtimes.adaptive_interpreter import AdaptiveInterpreter
from dqmq_tf.runtimes.registry import installed_version
from dqmq_tf.runtimes.vela_report import VelaReport
from dqmq_tf.targets import IO_TYPES, Target
from dqmq_tf.terminal import stages

_SUFFIX = ".tflite"
_PROBE_SAMPLES = 64
_MEASURING_SAMPLES = 256
_CLUSTERED_SAMPLES = 2048
_PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "litert-quantizer")


def convert(
    qmodel: DQMQModel,
    path: str | os.PathLike[str],
    *,
    profile: int = 0,
    adaptive: int | None = None,
    routing: str = "signatures",
    data: Any = None,
    io_dtype: str | None = None,
    verify: bool = True,
    artifacts: Sequence[str] = (),
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | Mapping[str, Preprocessing] | None = None,
) -> ConversionReport:
    """Writes a trained model as a `.tflite` file for its target.

    The file contains exactly the integers and steps of training: batch normalization is folded
    exactly, and no range is calibrated. The batch size is one. The signature `"serving_default"` has
    the names of the model's inputs and outputs. Inputs and outputs have the order of the model, in
    the signature and by index.

    Args:
        qmodel: A trained `DQMQModel`. If it is not frozen, it is frozen to one precision profile.
        path: The path of the file to write. It ends in `.tflite`. An existing file is replaced only
            if the conversion succeeds.
        profile: The index of the precision profile to write.
        adaptive: The number of precision profiles, 2 to 4, of an adaptive file, which contains all
            profiles and the quality router that chooses one of them for each input. To train the
            weights of each profile, train with `DQMQConfig(profiles=adaptive)`. A model that was
            neither trained with nor frozen to this number of profiles is frozen to it by the policy's
            decisions on `data`. None for a file of one profile.
        routing: How an adaptive file chooses a profile. `"signatures"`: the app runs the signature
            `"router"`, whose output is `profile`, and then `"profile_0"`, `"profile_1"` or the like,
            as `dqmq_tf.AdaptiveInterpreter` does. `"graph"`: the file has one signature and contains
            an IF operator; an additional last output `profile` is the chosen profile.
        data: Typical inputs for the verification, as arrays or as a dataset of any kind that
            `dqmq_tf.inputs` lists. None for random inputs. Required for an adaptive file.
        io_dtype: The type of inputs and outputs: `"float32"`, or `"int8"` for callers that quantize
            values themselves, such as firmware. None for the default of the target, which is `"int8"`
            for `microcontroller` and `ethos_u`. With `"int8"`, those of 16 bits are int16.
        verify: Whether to compare the file with the model before it is written, on the first runtime
            of the target that is installed. `dqmq_tf.verify` compares it on all of them. An adaptive
            file is always compared with the files of its profiles.
        artifacts: The files to write beside the `.tflite` file, under its name: `"c_array"` for a C++
            source and header for TFLite Micro (see `write_c_array`), and `"json"` for the report.
            Either all files are written, or none.
        labels: The names of the classes, in the order of the output. The metadata of the file contain
            them, so that an app needs no list of its own. None to leave them out.
        preprocessing: The `dqmq_tf.Preprocessing` of all image inputs, or `{name of an input:
            Preprocessing}`. The metadata contain it, so that an app knows how to turn a picture into
            an input. None for what the model tells: an input takes pixels from 0 to 255 if its dtype
            is uint8, or if the model begins with a `Rescaling` or `Normalization` of pixels. A budget
            in bytes does not count labels and preprocessing that are given here.

    Returns:
        A `ConversionReport`.

    Raises:
        UnsupportedLayerError: If a layer cannot be converted.
        ConversionError: If the target has no runtime or does not support the routing, if its runtime
            lacks an operator, if a layer has weights that are NaN or infinity, if the file (of each
            profile, for an adaptive file) exceeds the budget, or if an artifact does not suit the
            target.
        VerificationError: If the file does not compute what the model computes.
        ImportError: If weights are stored in lookup tables or a C array is requested, and the
            `tflite-micro` wheel, which checks and measures them, is not installed.
        ValueError: If `path` does not end in `.tflite`, if labels or preprocessing do not suit the
            model, or if another argument is not valid.
        OSError: If `path` cannot be written.

    Example:

    >>> report = dqmq_tf.convert(model, "model.tflite", data=test_images)
    >>> rich.print(report)
    """
    started = time.perf_counter()
    check_quantized(qmodel)
    check_single_process(qmodel)
    path = checked_path(path, _SUFFIX)
    target = _checked_target(qmodel.target)
    io_dtype = target.io_dtype if io_dtype is None else io_dtype
    if io_dtype not in IO_TYPES:
        raise ValueError(f"io_dtype={io_dtype!r} must be one of {', '.join(map(repr, IO_TYPES))}.")
    if adaptive is None:
        check_profile(profile, qmodel.frozen_profiles or 1)
        profile = int(profile)
    check_artifacts(artifacts, path, target)
    quantization_plan.require_quantizer()
    graph = graphs.trace(qmodel.float_model())
    rules.check_supported(graph)
    given = input_facts(graph, labels, preprocessing)
    if adaptive is not None:
        adaptives.check_request(adaptive, routing, target, data, qmodel.inputs[0].dtype)
        adaptive = int(adaptive)
    with stages("Converting") as stage:
        inputs, qualities = None, None
        if adaptive is not None:
            inputs, qualities = adaptives.inputs_and_qualities(data, qmodel, _CLUSTERED_SAMPLES)
        elif data is not None:
            inputs = collect(data, qmodel, _CLUSTERED_SAMPLES)
        _freeze(qmodel, adaptive, inputs, stage)
        inputs = inputs and [array[:_MEASURING_SAMPLES] for array in inputs]
        qualities = qualities and qualities[:_MEASURING_SAMPLES]
        parts: list[write_file.WrittenFile] = []
        verifications: list[VerificationReport] = []
        numbers = [profile] if adaptive is None else list(range(adaptive))
        stage("folding batch normalization")
        networks = [lower_model(qmodel, number) for number in numbers]
        if adaptive is not None:
            adaptives.check_ends(networks)
        _warn_of_clipped_weights(qmodel)
        warn_of_other_ranges(networks[0], given, stacklevel=2)
        decoder = write_file.uses_decoder(networks, target)
        if decoder:
            tflite_micro.require()
        for number, lowered in zip(numbers, networks):
            _check_activations(lowered, target)
            output_grid.check_steps(qmodel._parts, lowered.precision)
            write = functools.partial(
                write_file.write_file,
                lowered,
                target,
                qmodel._parts.policy.get_config(),
                profile=number,
                io_dtype=io_dtype,
                stage=stage,
            )
            part = write(decoder=decoder)
            if not qmodel._parts.budget_is_default:
                # A profile alone may store its weights otherwise than a file of all profiles.
                alone = write_file.uses_decoder([lowered], target)
                own = part if alone == decoder else write(decoder=alone)
                _check_budget(qmodel.budget, own.file.sealed(), target)
            stage("asking the tools of the target")
            device = device_checks.examine(part.file, target)
            device_checks.check_vela_budget(qmodel.budget, device.vela)
            parts.append(part)
            if verify:
                verifications.append(_verified(qmodel, path, part, inputs, stage))
        file, routed = parts[0].file, None
        if adaptive is not None:
            stage("building the quality router")
            file, routed = _adaptive(qmodel, path, parts, inputs, qualities, routing)
            device = device_checks.examine_adaptive(file, target)
        file, described_bytes = _described(file, given, target)
        # The budget is for the file of each profile.
        if described_bytes and adaptive is None and not qmodel._parts.budget_is_default:
            _warn_over_budget(qmodel.budget, file, described_bytes, target)
    report = ConversionReport(
        path=str(path),
        artifacts=tuple(map(str, artifact_paths(artifacts, path))),
        target=target.name,
        profile=profile if adaptive is None else None,
        io_dtype=io_dtype,
        size_bytes=len(file.contents),
        decoder_bytes=write_file.firmware_bytes(file, target)["decoder_bytes"],
        download_bytes=file_size.deflated_bytes(file.contents),
        described_bytes=described_bytes,
        arena_bytes=device.arena_bytes,
        vela=device.vela and _named(device.vela, parts[0]),
        weights=conversion_report.tensor_reports(parts),
        float_layers=parts[0].lowered.float_layers,
        min_runtime_version=metadata.min_runtime_version_of(file.model),
        package_versions=_package_versions(),
        verification=_one(verifications),
        adaptive=routed,
        seconds=time.perf_counter() - started,
    )
    atomic_write.write_together(
        {path: file.contents, **render_artifacts(artifacts, path, file, report)}
    )
    return report


def _freeze(
    qmodel: DQMQModel, adaptive: int | None, inputs: Any, stage: Callable[[str], None]
) -> None:
    """Freezes the model to the profiles that the file will contain, unless it already is."""
    if adaptive is None and not qmodel.frozen_profiles:
        stage("freezing to one precision profile")
        qmodel.freeze(profiles=1)
    elif adaptive is not None and qmodel.frozen_profiles != adaptive:
        stage(f"freezing to {adaptive} precision profiles")
        qmodel.freeze(profiles=adaptive, data=structured(inputs, qmodel))


def _warn_of_clipped_weights(qmodel: DQMQModel) -> None:
    """Warns if quantizers of the user's own make weights of -128 steps."""
    for path, wrapper in qmodel._parts.wrappers.items():
        for name in wrapper.user_quantizers:
            count = wrapper.clipped(name)
            if count:
                warnings.warn(
                    f"Layer {path!r}: {count} of the weights in {name!r} are -128 steps. The file "
                    "has -127 steps for them, because int8 kernels of some CPUs do not take -128. "
                    "Give the quantizer narrow_range=True for a file that equals the model.",
                    stacklevel=3,
                )


def _verified(
    qmodel: DQMQModel, path: Any, part: Any, inputs: Any, stage: Callable[[str], None]
) -> VerificationReport:
    """Compares the file of one profile with the model on the first installed runtime."""
    return compare_file(
        qmodel,
        path,
        part,
        probe_inputs(part.lowered, _PROBE_SAMPLES) if inputs is None else inputs,
        runtimes=claimed(qmodel.target),
        first_only=True,
        stage=stage,
    )


def _adaptive(
    qmodel: DQMQModel, path: Any, parts: list[Any], inputs: Any, qualities: Any, routing: str
) -> tuple[Any, AdaptiveReport]:
    """Combines the files of the profiles, checks the result, and returns it with its report."""
    lowered = parts[0].lowered
    grid = lowered.quantization.get(lowered.inputs[0])
    files = [part.file for part in parts]
    file, routes = adaptives.combine_profiles(qmodel, files, inputs, grid, routing)
    runnable, uncompressed = file, [part.uncompressed for part in parts]
    if any(part.uncompressed is not part.file for part in parts):
        runnable, _ = adaptives.combine_profiles(qmodel, uncompressed, inputs, grid, routing)
    interpreter = AdaptiveInterpreter(runnable)
    report = adaptives.compare_adaptive_file(
        qmodel, path, uncompressed, interpreter, inputs, qualities, routing, routes
    )
    return file, report


def _described(
    file: TFLiteFile, given: Mapping[str, Any], target: Target
) -> tuple[TFLiteFile, int]:
    """Adds the given labels and preprocessing to a file, and seals it.

    For LiteRT they are also written as TFLite's standard metadata. Microcontrollers have no reader of
    those, and no bytes to spare.

    Returns:
        `(file, bytes that the labels and the preprocessing take)`.
    """
    plain = file.sealed()
    if not given:
        return plain, 0
    described = file.copy()
    facts = metadata.with_input_facts(file.metadata or {}, given)
    standard = "tflite-micro" not in target.runtimes
    oldest = metadata.min_runtime_version_of(file.model)
    metadata.attach(described.model, facts, oldest, standard=standard)
    editing.share_buffers(described.model)
    described.edited()
    if standard and "labels" in facts:
        contents = standard_metadata.append_labels(described.contents, facts["labels"])
        described = TFLiteFile(contents)
    described = described.sealed()
    return described, len(described.contents) - len(plain.contents)


def _named(report: VelaReport, part: write_file.WrittenFile) -> VelaReport:
    return device_checks.with_layer_names(report, part.file, part.lowered.paths)


def _one(
    verifications: list[VerificationReport],
) -> VerificationReport | AdaptiveVerificationReport | None:
    """Returns the report of one profile, a joint report of several, or None if there is none."""
    if len(verifications) > 1:
        return AdaptiveVerificationReport(profiles=tuple(verifications))
    return verifications[0] if verifications else None


def _checked_target(target: Target) -> Target:
    if not target.deployable:
        raise ConversionError(
            f"Target {target.name!r} has no runtime, so nothing could run the file. Quantize the "
            "model for a target with a runtime, such as 'android'."
        )
    return target


def _check_activations(lowered: Any, target: Target) -> None:
    allowed = {8, *target.activation_bits, *target.optional_activation_bits} & {8, INT16_BITS}
    for key, precision in lowered.quantization.items():
        if precision.bit_width not in allowed:
            raise ConversionError(
                f"The output of {(lowered.paths[key] or 'the input')!r} has "
                f"{precision.bit_width} bits, but runtimes of target {target.name!r} compute with "
                "8-bit activations. Quantize the model for that target."
            )


def _check_budget(budget: Any, file: TFLiteFile, target: Target) -> None:
    """Raises `ConversionError` if a file is larger than a budget in bytes."""
    if budget is None:
        return
    sizes = write_file.firmware_bytes(file, target)
    if budget.kind in sizes and sizes[budget.kind] > budget.value:
        counted = budget.kind
        if counted == "size_bytes" and sizes["decoder_bytes"]:
            counted += f", with its decoder of {sizes['decoder_bytes']:,} bytes"
        raise ConversionError(
            f"The file takes {sizes[budget.kind]:,} bytes ({counted}), the budget is "
            f"{int(budget.value):,} bytes. The file was not written. Besides the weights, it holds "
            "the graph, scales and biases, which fewer bits do not reduce. Train with a smaller "
            "budget, or allow fewer bits with a LayerRule."
        )


def _warn_over_budget(budget: Any, file: TFLiteFile, described_bytes: int, target: Target) -> None:
    """Warns if labels and preprocessing make a file larger than a budget in bytes."""
    sizes = write_file.firmware_bytes(file, target)
    if budget is not None and budget.kind in sizes and sizes[budget.kind] > budget.value:
        warnings.warn(
            f"The file takes {sizes[budget.kind]:,} bytes ({budget.kind}), the budget is "
            f"{int(budget.value):,} bytes. The network meets the budget; labels and preprocessing, "
            f"which it does not count, add {described_bytes:,} bytes. If the device has no room for "
            "them, convert without them, or train with a smaller budget.",
            stacklevel=3,
        )


def _package_versions() -> dict[str, str]:
    micro = [tflite_micro.PACKAGE] if tflite_micro.is_installed() else []
    return {name: installed_version(name) for name in (*_PACKAGES, *micro)}
