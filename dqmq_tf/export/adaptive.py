"""Adaptive files: several precision profiles and the quality router in one `.tflite`."""

import itertools
import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError, VerificationError
from dqmq_tf.export import graph_routing, quality_router
from dqmq_tf.export.conversion_report import AdaptiveReport
from dqmq_tf.flatbuffer import ModelT, TFLiteFile, editing, merging, metadata, operator_versions
from dqmq_tf.inputs import collect, joined, labeled_batches, structured
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.model import DQMQModel
from dqmq_tf.precision import ActivationPrecision
from dqmq_tf.quality.degradations import NUMBERED_KINDS, check_kind_numbers
from dqmq_tf.runtimes import in_process
from dqmq_tf.runtimes.adaptive_interpreter import AdaptiveInterpreter
from dqmq_tf.targets import PROFILE_COUNTS, ROUTINGS, Target

_ROUTER = "router"
# The router rounds filters and responses to 8 bits, which may move inputs across a threshold.
_LEAST_AGREEMENT = 0.97
_TIMED_RUNS = 30


def check_request(adaptive: Any, kind: str, target: Target, data: Any, dtype: str) -> None:
    """Checks that an adaptive file can be written, before the conversion starts.

    Args:
        adaptive: The number of profiles; of any type.
        kind: The routing, see `convert`.
        target: The deployment target.
        data: The data that the user passed to `convert`.
        dtype: The dtype of the model's first input, which the router reads.

    Raises:
        ValueError: If the number of profiles or the routing is not valid, or if there is no data.
        ConversionError: If the runtime of the target cannot run such a file.
    """
    if not isinstance(adaptive, numbers.Integral) or adaptive not in PROFILE_COUNTS:
        raise ValueError(f"adaptive={adaptive!r}: give 2, 3 or 4 precision profiles.")
    if kind not in ROUTINGS:
        raise ValueError(f"routing={kind!r} must be one of {', '.join(map(repr, ROUTINGS))}.")
    if data is None:
        raise ValueError(
            "adaptive=... needs data=..., typical inputs of every quality. Their decisions are clustered "
            "into profiles, and the router is scaled by them."
        )
    if dtype != "float32":
        raise ConversionError(
            f"The model's first input has dtype {dtype}, but the router measures the quality of "
            "float32 values. Put such an input first, or convert to one profile."
        )
    if kind == "signatures" and "tflite-micro" in target.runtimes:
        raise ConversionError(
            f"Target {target.name!r} runs on TFLite Micro, which invokes only the first subgraph "
            "and crashes on a file with several signatures. Use routing='graph'."
        )


def inputs_and_qualities(
    data: Any, qmodel: DQMQModel, samples: int
) -> tuple[list[np.ndarray], list[str] | None]:
    """Reads data once: each time, a dataset that is shuffled has another order.

    Args:
        data: The data that the user passed to `convert`. A `tf.data.Dataset` contains the kind of
            degradation of each input if its elements end in `{"kind": …}`, as
            `quality.mixed_quality(..., with_quality=True)` produces them.
        qmodel: The model.
        samples: The number of inputs to read. There may be fewer.

    Returns:
        `(inputs, qualities)`: one array `[N, ...]` per input of the model, and the kind of each, or None
        if the data do not contain it.
    """
    spec = getattr(data, "element_spec", None)
    last = spec[-1] if isinstance(spec, tuple) and len(spec) > 1 else None
    # Labels or sample weights of outputs with names are dictionaries too.
    are_of_outputs = isinstance(last, dict) and set(last) <= set(qmodel.output_names)
    if not (isinstance(last, dict) and "kind" in last) or are_of_outputs:
        return collect(data, qmodel, samples), None
    parts: list[list[np.ndarray]] = []
    found: list[str] = []
    for arrays, rest in labeled_batches(data, qmodel, may_be_endless=True):
        parts.append(arrays)
        kinds = np.ravel(rest[-1]["kind"]).astype(int)
        check_kind_numbers(kinds)
        found += [NUMBERED_KINDS[kind] for kind in kinds]
        if len(found) >= samples:
            break
    return [array[:samples] for array in joined(parts)], found[:samples]


def check_ends(profiles: Sequence[LoweredModel]) -> None:
    """Rejects profiles with inputs or outputs of 16 bits: all profiles and the router share them.

    Args:
        profiles: The `LoweredModel` of each profile.

    Raises:
        ConversionError: If an input or output has 16 bits in a profile.
    """
    for lowered in profiles:
        ends = zip(
            (*lowered.inputs, *lowered.outputs), (*lowered.input_names, *lowered.output_names)
        )
        for key, name in ends:
            if key in lowered.quantization and lowered.quantization[key].is_int16:
                raise ConversionError(
                    f"{name!r} has 16 bits, but the inputs and outputs of an adaptive file have 8. "
                    "Give it a rule with activation_bits=8, or convert to one profile."
                )


def combine_profiles(
    qmodel: DQMQModel,
    files: Sequence[TFLiteFile],
    inputs: Sequence[np.ndarray],
    grid: ActivationPrecision | None,
    kind: str,
) -> tuple[TFLiteFile, TFLiteFile]:
    """Combines the profiles' files into one file.

    Args:
        qmodel: The frozen `DQMQModel`.
        files: The file of each profile, from the lowest score to the highest.
        inputs: Typical inputs, one array `[N, ...]` per input of the model.
        grid: The `ActivationPrecision` of the first input. None if it is in floating point.
        kind: `"signatures"` or `"graph"`.

    Returns:
        `(file, router)`: the adaptive file, and a file of only the router.
    """
    profiles = [file.model for file in files]
    router_file = quality_router.build_router(qmodel, inputs[0], grid)
    router = router_file.copy().model
    first = profiles[0].signatureDefs[0].inputs[0]
    if flatbuffer.type_name(profiles[0].subgraphs[0].tensors[first.tensorIndex]) == "INT8":
        merging.strip_input_quantization(router)
    if kind == "graph":
        model = graph_routing.routed(profiles, router, len(profiles) - 1)
    else:
        _sign_router(router, first.name)
        names = [f"profile_{number}" for number in range(len(profiles))]
        model = merging.merge({**dict(zip(names, profiles)), _ROUTER: router})
    facts = metadata.describe_adaptive([file.metadata or {} for file in files], kind)
    metadata.attach(model, facts, operator_versions.set_versions(model))
    editing.share_buffers(model)
    return TFLiteFile.from_model(model), router_file


def split_profiles(file: TFLiteFile) -> list[TFLiteFile]:
    """Splits an adaptive file into its profiles.

    Args:
        file: An adaptive file.

    Returns:
        The file of each profile, as `convert` would write it for only that profile.
    """
    facts = file.metadata
    assert facts is not None
    found: list[TFLiteFile] = []
    for number in range(len(facts["profiles"])):
        part = merging.extract(file.model, f"profile_{number}")
        metadata.attach(
            part, metadata.profile_facts(facts, number), operator_versions.set_versions(part)
        )
        editing.share_buffers(part)
        found.append(TFLiteFile.from_model(part))
    return found


def compare_adaptive_file(
    qmodel: DQMQModel,
    path: Any,
    files: Sequence[TFLiteFile],
    interpreter: AdaptiveInterpreter,
    inputs: list[np.ndarray],
    qualities: Sequence[str] | None,
    kind: str,
    routes: TFLiteFile,
) -> AdaptiveReport:
    """Compares an adaptive file with the files of its profiles, and its router with the policy.

    Args:
        qmodel: The frozen `DQMQModel`.
        path: The path of the file, for messages.
        files: The files of the profiles, in the form that LiteRT can load.
        interpreter: The `AdaptiveInterpreter` of the adaptive file.
        inputs: Typical inputs, one array `[N, ...]` per input of the model.
        qualities: The kind of degradation of each input, for the shares of each. None if they
            are unknown.
        kind: `"signatures"` or `"graph"`.
        routes: The file of the router.

    Returns:
        An `AdaptiveReport`.

    Raises:
        VerificationError: If any bit of an output differs, or if the router chooses other profiles
            than the policy for too many inputs.
    """
    result = interpreter(inputs)
    for number, file in enumerate(files):
        is_chosen = result.profile == number
        if is_chosen.any():
            expected = in_process.signature_outputs(file, [array[is_chosen] for array in inputs])
            outputs = [output[is_chosen] for output in result.outputs]
            if not all(np.array_equal(o, e) for o, e in zip(outputs, expected)):
                raise VerificationError(
                    f"{path}: profile {number} computes other numbers than its own file. Please "
                    "report the model."
                )
    decided = qmodel.decisions(structured(inputs, qmodel)).profile
    bits = keras.ops.convert_to_numpy(qmodel._parts.policy.assigned)[: qmodel.frozen_profiles]
    _warn_of_equal(bits)
    # Of two profiles with the same bits, the router may choose either.
    agreement = float((bits[decided] == bits[result.profile]).all(axis=1).mean())
    if agreement < _LEAST_AGREEMENT:
        raise VerificationError(
            f"{path}: the router chooses the policy's profile for only {100 * agreement:.1f} % of "
            f"{len(decided)} inputs (required: {100 * _LEAST_AGREEMENT:.0f} %). Its filters are "
            "scaled by the data: pass inputs of every quality as data=...."
        )
    return AdaptiveReport(
        routing=kind,
        profile_bytes=tuple(len(file.contents) for file in files),
        router_bytes=len(routes.contents),
        router_ms=_milliseconds(routes),
        profile_ms=tuple(_milliseconds(file) for file in files),
        router_agreement=agreement,
        shares=_shares(result.profile, len(files), qualities),
    )


def _warn_of_equal(bits: np.ndarray) -> None:
    """Warns of the first two profiles with the same bits, shape `[profiles, points]`."""
    for first, second in itertools.combinations(range(len(bits)), 2):
        if np.array_equal(bits[first], bits[second]):
            warnings.warn(
                f"Precision profiles {first} and {second} have the same bits, so the file holds the "
                "same network twice. Convert to fewer profiles, or train longer on data of every "
                "quality.",
                stacklevel=5,
            )
            return


def _shares(
    profile: np.ndarray, count: int, names: Sequence[str] | None
) -> dict[str, tuple[float, ...]]:
    """Returns `{kind of degradation: share of its inputs per profile}`, `"all"` first."""
    groups = {"all": np.ones(len(profile), bool)}
    for name in dict.fromkeys(names or ()):
        groups[name] = np.array(names) == name
    return {
        name: tuple(float((profile[mask] == number).mean()) for number in range(count))
        for name, mask in groups.items()
    }


def _milliseconds(file: TFLiteFile) -> float:
    """Returns the median time of one inference with one thread, in milliseconds."""
    return in_process.median_milliseconds(in_process.interpreter(file.contents), _TIMED_RUNS)


def _sign_router(router: ModelT, input_name: bytes) -> None:
    """Names the router's outputs, and its input like the model's first input."""
    graph, (definition,) = router.subgraphs[0], router.signatureDefs
    definition.inputs[0].name = input_name
    entries = definition.outputs[:2]
    for entry, name in zip(entries, (quality_router.PROFILE, quality_router.SCORE)):
        entry.name = name.encode()
    definition.outputs = entries
    graph.outputs = np.array([entry.tensorIndex for entry in entries], np.int32)
