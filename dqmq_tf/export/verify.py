"""`verify`: compares a file with the model that it was written from, on its target's runtimes."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from dqmq_tf import flatbuffer, runtimes
from dqmq_tf.errors import FileFormatError, VerificationError, check_quantized
from dqmq_tf.export import adaptive as adaptives
from dqmq_tf.export import device_checks, output_agreement
from dqmq_tf.export.first_divergence import first_divergence
from dqmq_tf.export.verification_report import (
    AdaptiveVerificationReport,
    RuntimeReport,
    VerificationReport,
)
from dqmq_tf.flatbuffer import ModelT, TFLiteFile, lookup_tables
from dqmq_tf.inputs import collect, structured
from dqmq_tf.lowering import number_check
from dqmq_tf.lowering.lowered_model import LoweredModel, lower_model
from dqmq_tf.lowering.write_file import WrittenFile
from dqmq_tf.model import DQMQModel
from dqmq_tf.runtimes import vela
from dqmq_tf.runtimes.registry import MEAN_QUANTA, claimed
from dqmq_tf.targets import VELA
from dqmq_tf.terminal import stages

_SECONDS = 60.0
# So many batches are predicted before the graph of `predict` would be traced.
_BATCH, _EAGER_BATCHES = 32, 4


def verify(
    qmodel: DQMQModel,
    path: str | os.PathLike[str],
    data: Any,
    *,
    samples: int = 1000,
    runtimes: Sequence[str] | None = None,
    agreement: float | None = None,
    mean_quanta: float | None = None,
    seconds: float = _SECONDS,
) -> VerificationReport | AdaptiveVerificationReport:
    """Checks that a file contains the model's numbers and computes what the model computes.

    The integers, scales, zero points and biases in the file must be equal to those of the model.
    Then the file is run on each runtime of its target. Each runtime has its own process, because a
    damaged file may crash it. Runtimes round differently, so their outputs are compared with a
    tolerance. On LiteRT with XNNPACK, 99 % of the clear inputs must have the same largest output
    entry, on all other runtimes 98 %. The mean difference of each output may be 8 quanta.

    Args:
        qmodel: The frozen `DQMQModel` that the file was converted from.
        path: The path of the `.tflite` file.
        data: The inputs, as arrays or as a dataset of any kind that `dqmq_tf.inputs` lists. Labels
            are ignored.
        samples: The largest number of inputs to compare.
        runtimes: The names of runtimes (see `dqmq_tf.runtimes.RUNTIMES`), all of which must be
            installed. None for the runtimes of the model's target. The report then says which of them
            are not installed.
        agreement: The smallest share of the clear inputs that must have the same largest output
            entry, 0 to 1. It applies to outputs of rank 2 with more than one column. None for the
            share of each runtime. An input is clear if the model's largest entry leads by more than
            an eighth of the output's grid. For other inputs, rounding alone may change the order. The
            number of disagreements may exceed the expected one by three standard deviations.
        mean_quanta: The largest mean difference of an output, in steps of its grid. None for 8. An
            output in floating point has a grid of 8 bits over its values (at least over an eighth of
            the largest one).
        seconds: The time limit per runtime in seconds. A slower runtime is compared on fewer inputs.

    Returns:
        A `VerificationReport` with a row for each runtime. For an adaptive file, an
        `AdaptiveVerificationReport` with a `VerificationReport` for each profile. On a target that
        Vela compiles for, they hold what Vela estimates for each layer, if Vela is installed.

    Raises:
        VerificationError: If the file cannot be read, if it was written from another model, if its
            outputs differ from the model's by more than the tolerance, if a runtime rejects the file
            or crashes, or if no runtime is installed. If outputs differ, the message names the
            runtime, the differences and the first tensor that differs.
        ConversionError: If Vela rejects the file.
        ImportError: If one of `runtimes` is not installed.
        ValueError: If one of `runtimes` is unknown, if `samples` is less than 1, if `agreement` is no
            share, or if `data` contains no inputs.
        FileNotFoundError: If the file does not exist.

    Example:

    >>> report = dqmq_tf.verify(model, "model.tflite", test_images)
    >>> report.row("litert-xnnpack").top1_agreement
    0.997
    """
    check_quantized(qmodel)
    check_single_process(qmodel)
    if samples < 1:
        raise ValueError(f"samples={samples!r}: give 1 or more inputs to compare.")
    if agreement is not None and not 0 <= agreement <= 1:
        raise ValueError(f"agreement={agreement!r} must be a share from 0 to 1, such as 0.98.")
    try:
        file = TFLiteFile.load(path)
        facts = file.metadata
    except FileFormatError as error:
        raise VerificationError(str(error)) from error
    if facts is None:
        raise VerificationError(
            f"{path} holds no dqmq_tf metadata, so it was not written by dqmq_tf.convert."
        )
    _check_order(path, file.model)
    chosen = _named(runtimes) if runtimes is not None else claimed(qmodel.target)
    networks = adaptives.split_profiles(file) if "routing" in facts else [file]
    inputs, reports = collect(data, qmodel, samples), []
    with stages("Verifying") as stage:
        for network in networks:
            profile = (network.metadata or {}).get("profile")
            if not isinstance(profile, int):
                raise VerificationError(f"{path} is corrupt: its metadata does not name a profile.")
            if profile >= qmodel.frozen_profiles:
                raise VerificationError(
                    f"{path} holds precision profile {profile}, but the model is frozen to "
                    f"{qmodel.frozen_profiles} profiles: the file was written from another state of it."
                )
            written = WrittenFile(
                file=network,
                uncompressed=lookup_tables.decompress_file(network),
                lowered=lower_model(qmodel, profile),
            )
            report = compare_file(
                qmodel,
                path,
                written,
                inputs,
                runtimes=chosen,
                agreement=agreement,
                mean_quanta=mean_quanta,
                seconds=seconds,
                stage=stage,
            )
            if qmodel.target.compiler == VELA and vela.program() is not None:
                stage("compiling with Vela")
                compiled = vela.compile_file(network, qmodel.target.accelerator)[1]
                paths = written.lowered.paths
                compiled = device_checks.with_layer_names(compiled, network, paths)
                report = dataclasses.replace(report, vela=compiled)
            reports.append(report)
    return AdaptiveVerificationReport(profiles=tuple(reports)) if len(reports) > 1 else reports[0]


def compare_file(
    qmodel: DQMQModel,
    path: str | os.PathLike[str],
    written: WrittenFile,
    inputs: list[np.ndarray],
    *,
    runtimes: Sequence[Any],
    first_only: bool = False,
    agreement: float | None = None,
    mean_quanta: float | None = None,
    seconds: float = _SECONDS,
    stage: Callable[[str], None] = lambda name: None,
) -> VerificationReport:
    """Compares a file in memory with the model; see `verify`.

    Args:
        qmodel: The frozen `DQMQModel`.
        path: The path of the file, for messages.
        written: The file of one profile.
        inputs: The inputs, one array `[N, ...]` per input of the model.
        runtimes: The `Runtime` objects, in the order in which they run.
        first_only: Whether to stop after the first runtime that is installed.
        agreement: See `verify`.
        mean_quanta: See `verify`.
        seconds: See `verify`.
        stage: A function that is called with the name of each stage when it begins.

    Raises:
        VerificationError: See `verify`.
    """
    stage("comparing numbers")
    model = written.uncompressed.model
    figures = _compared_numbers(path, model, written.lowered)
    _check_order(path, model)
    _check_shapes(path, model, inputs)
    stage(f"predicting {len(inputs[0])} outputs")
    profile = (written.file.metadata or {})["profile"]
    expected = _predictions(qmodel, profile, inputs)
    exits = len(model.signatureDefs[0].outputs)
    if exits != len(expected):
        raise VerificationError(f"{path} has {exits} outputs, but the model has {len(expected)}.")
    steps = output_agreement.output_steps(model, expected)
    rows: list[RuntimeReport] = []
    for runtime in runtimes:
        row = _cannot_run(runtime, model)
        if row is None:
            stage(f"running {len(inputs[0])} inputs on {runtime.name}")
            # LiteRT does not know lookup tables.
            file = written.file if runtime.name == "tflite-micro" else written.uncompressed
            row = _row(path, file, inputs, expected, steps, runtime, seconds)
        rows.append(row)
        if not row.ran:
            continue
        complaint = _complaint(
            row,
            runtime.agreement if agreement is None else agreement,
            MEAN_QUANTA if mean_quanta is None else mean_quanta,
            _note_on_constants(expected, written.lowered.output_names),
        )
        if complaint:
            stage("looking for the first tensor that departs")
            simulated = lower_model(qmodel, profile, simulate=True)
            departed = first_divergence(file, inputs, simulated, runtime.name)
            raise VerificationError(
                f"{path} departs from the model on {runtime.name}: {complaint} {departed}"
            )
        if first_only:
            break
    if not any(row.ran for row in rows):
        notes = "; ".join(f"{row.runtime}: {row.note}" for row in rows)
        raise VerificationError(f"{path} was not verified, as no runtime ran it: {notes}.")
    return VerificationReport(
        samples=len(inputs[0]),
        classification=output_agreement.is_classification(expected),
        checked_numbers=sum(count for kind, count in figures.items() if kind != "different"),
        different_numbers=figures["different"],
        rows=tuple(rows),
    )


def _named(names: Sequence[str]) -> list[Any]:
    """Returns the runtimes with these names. All of them must be installed."""
    if isinstance(names, str):
        raise ValueError(f"runtimes={names!r}: give a list, such as [{names!r}].")
    chosen = [runtimes.get(name) for name in names]
    if not chosen:
        raise ValueError("runtimes is empty: name at least one, or pass None.")
    for runtime in chosen:
        reason = runtime.missing()
        if reason:
            raise ImportError(f"Runtime {runtime.name!r} is not installed: {reason}")
    return chosen


def _compared_numbers(path: Any, model: ModelT, lowered: LoweredModel) -> Any:
    """Checks that a file contains the numbers of the model, and returns how many were compared."""
    try:
        figures, messages = number_check.differences(model, lowered)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        # A tensor that every file of this model contains has no values or no grid.
        raise VerificationError(
            f"{path} is damaged, or belongs to another model: its numbers cannot be read ({error})."
        ) from error
    if messages:
        raise VerificationError(
            f"{path} does not hold the numbers of this model, so it was written from another model "
            f"or from another state of it: {messages[0]}"
            + (f" (and {len(messages) - 1} more)." if len(messages) > 1 else ".")
        )
    return figures


def _check_shapes(path: Any, model: ModelT, inputs: list[np.ndarray]) -> None:
    """Checks that the inputs of a file have the shapes of the data."""
    if not model.signatureDefs:
        raise VerificationError(f"{path} is damaged: it has no signature.")
    graph, entries = model.subgraphs[0], model.signatureDefs[0].inputs
    if len(entries) != len(inputs):
        raise VerificationError(f"{path} takes {len(entries)} inputs, but data has {len(inputs)}.")
    expected = [tuple(int(n) for n in graph.tensors[e.tensorIndex].shape[1:]) for e in entries]
    found = [array.shape[1:] for array in inputs]
    if expected != found:
        raise VerificationError(f"{path} takes inputs of shape {expected}, but data has {found}.")


def _check_order(path: Any, model: ModelT) -> None:
    """Rejects a file whose inputs or outputs have another order by index than by signature.

    The runtimes are compared with the model by signature, but an app may access them by index.
    """
    for definition in model.signatureDefs or ():
        graph = model.subgraphs[definition.subgraphIndex]
        for kind, entries, tensors in (
            ("inputs", definition.inputs, graph.inputs),
            ("outputs", definition.outputs, graph.outputs),
        ):
            by_signature = [int(entry.tensorIndex) for entry in entries]
            if by_signature != [int(index) for index in tensors]:
                key = flatbuffer.text(definition.signatureKey)
                raise VerificationError(
                    f"{path}: the {kind} of signature {key!r} have another order in its subgraph, "
                    "so whoever reads them by index gets the wrong ones. Convert the model again."
                )


def check_single_process(qmodel: DQMQModel) -> None:
    """Raises `ValueError` if a model predicts only together with other worker processes."""
    if qmodel._spans_workers:
        raise ValueError(
            f"{qmodel.name!r} belongs to a strategy with several workers, and predicts only if all of "
            "them do. Save it on one worker, and load it in a process without TF_CONFIG to convert "
            "and verify it there."
        )


def _predictions(qmodel: DQMQModel, profile: int, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the outputs of one profile of the model."""
    model: keras.Model = qmodel
    if qmodel.frozen_profiles > 1:
        # The model would choose a profile for each input, but the file contains one profile.
        model = lower_model(qmodel, profile, simulate=True).model
    samples = len(inputs[0])
    if samples > _EAGER_BATCHES * _BATCH:
        results = model.predict(structured(inputs, model), batch_size=_BATCH, verbose=0)
        return [np.asarray(result) for result in keras.tree.flatten(results)]
    outputs = []
    for start in range(0, samples, _BATCH):
        parts = [keras.ops.convert_to_tensor(x[start : start + _BATCH]) for x in inputs]
        results = keras.tree.flatten(model(structured(parts, model), training=False))
        outputs.append([keras.ops.convert_to_numpy(result) for result in results])
    return [np.concatenate(arrays) for arrays in zip(*outputs)]


def _cannot_run(runtime: Any, model: ModelT) -> RuntimeReport | None:
    """Returns a row that says why a runtime cannot run the file, or None if it can."""
    reason = runtime.missing()
    if reason:
        return RuntimeReport(runtime=runtime.name, note=f"not installed: {reason}")
    reason = runtime.refuses(model)
    if reason:
        note = f"cannot run this file: {reason}"
        return RuntimeReport(runtime=runtime.name, version=runtime.version, note=note)
    return None


def _row(
    path: Any,
    file: TFLiteFile,
    inputs: list[np.ndarray],
    expected: list[np.ndarray],
    steps: list[float],
    runtime: Any,
    seconds: float,
) -> RuntimeReport:
    """Runs a file on a runtime, and returns how its outputs agree with those of the model."""
    # The signature has inputs and outputs in the order of the model.
    key = flatbuffer.text(file.signature.signatureKey)
    try:
        run = runtimes.run(file, inputs, runtime=runtime.name, signature=key, seconds=seconds)
    except VerificationError as error:
        raise VerificationError(f"{path}: {error}") from error
    found = output_agreement.compare(run.outputs, [e[: run.samples] for e in expected], steps)
    return RuntimeReport(
        runtime=runtime.name,
        version=runtime.version,
        latency_ms=run.latency_ms,
        arena_bytes=run.arena_bytes,
        **dataclasses.asdict(found),
    )


def _complaint(row: RuntimeReport, agreement: float, mean_quanta: float, note: str) -> str | None:
    """Returns how a row exceeds the tolerance, with a note on quanta, or None if it does not."""
    assert row.clear_agreement is not None and row.clear is not None
    assert row.top1_agreement is not None
    assert row.mean_quanta is not None and row.largest_quanta is not None
    wrong = round((1 - row.clear_agreement) * row.clear)
    allowed = output_agreement.allowed(agreement, row.clear)
    if wrong <= allowed and row.mean_quanta <= mean_quanta:
        return None
    return (
        f"{wrong} of {row.clear} clear inputs have another top entry (allowed: {allowed}), "
        f"top-1 agreement of all {row.samples} is {100 * row.top1_agreement:.2f} %, mean "
        f"difference {row.mean_quanta:.3g} quanta (allowed: {mean_quanta:g}), largest "
        f"{row.largest_quanta:.3g}." + (note if row.mean_quanta > mean_quanta else "")
    )


def _note_on_constants(expected: list[np.ndarray], names: Sequence[str]) -> str:
    """Returns a sentence about the outputs whose quanta say little, `""` if there are none."""
    found = ", ".join(
        f"{names[i]!r} (from {expected[i].min():.3g} to {expected[i].max():.3g})"
        for i in output_agreement.all_but_constant(expected)
    )
    if not found:
        return ""
    return (
        f" On these data an output is all but constant, so that a quantum of it is next to nothing: "
        f"{found}. Pass data on which it varies, train the model first, or allow more with "
        "dqmq_tf.verify(..., mean_quanta=...)."
    )
