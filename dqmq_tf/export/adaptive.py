"""Adaptive files: several precision profiles and the quality router in one `.tflite`."""

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError, VerificationError
from dqmq_tf.export import graph_routing, quality_router
from dqmq_tf.export.conversion_report import AdaptiveReport
from dqmq_tf.flatbuffer import TFLiteFile, editing, merging, metadata, operator_versions
from dqmq_tf.quality.degradations import KINDS
from dqmq_tf.runtimes import in_process
from dqmq_tf.targets import PROFILE_COUNTS, ROUTINGS

_ROUTER = "router"
# The router rounds its filters and responses to 8 bits: inputs at a threshold may change sides.
_LEAST_AGREEMENT = 0.97
_TIMED_RUNS = 30


def check_request(adaptive, kind, target, data, dtype):
    """Refuses an adaptive file that cannot be, before any work is done.

    Args:
        adaptive, kind, target, data: See `convert`.
        dtype: Of the model's first input, which the router reads.

    Raises:
        ValueError: If the number of profiles or the routing is unknown, or there are no data.
        ConversionError: If the target's runtime cannot run such a file.
    """
    if adaptive not in PROFILE_COUNTS:
        raise ValueError(f"adaptive={adaptive!r}: give 2, 3 or 4 precision profiles.")
    if kind not in ROUTINGS:
        raise ValueError(f"routing={kind!r} must be one of {', '.join(map(repr, ROUTINGS))}.")
    if data is None:
        raise ValueError(
            "adaptive=... needs data=...: typical inputs of every quality, whose decisions are "
            "clustered into profiles and by which the router is scaled."
        )
    if dtype != "float32":
        raise ConversionError(
            f"The model's first input has dtype {dtype}: the router looks at the quality of real "
            "values. Put such an input first, or convert to one profile."
        )
    if kind == "signatures" and "tflite-micro" in target.runtimes:
        raise ConversionError(
            f"Target {target.name!r} runs on TFLite Micro, which invokes the first subgraph alone "
            "and crashes on a file with several signatures: use routing='graph'."
        )


def combine_profiles(qmodel, files, inputs, grid, kind):
    """Makes one file of the profiles' files.

    Args:
        qmodel: The frozen `DQMQModel`.
        files: `TFLiteFile` of each profile, from the lowest score to the highest.
        inputs: Typical inputs, a list of arrays.
        grid: `ActivationPrecision` of the first input, None where it is in floating point.
        kind: `"signatures"` or `"graph"`.

    Returns:
        `(file, file of the router alone)`, `TFLiteFile`s.
    """
    profiles = [file.model for file in files]
    routes = quality_router.build_router(qmodel, inputs[0], grid)
    brain = routes.copy().model
    first = profiles[0].signatureDefs[0].inputs[0]
    if flatbuffer.type_name(profiles[0].subgraphs[0].tensors[first.tensorIndex]) == "INT8":
        merging.strip_input_quantization(brain)
    if kind == "graph":
        model = graph_routing.routed(profiles, brain, len(profiles) - 1)
    else:
        _sign_router(brain, first.name)
        names = [f"profile_{number}" for number in range(len(profiles))]
        model = merging.merge({**dict(zip(names, profiles)), _ROUTER: brain})
    facts = metadata.describe_adaptive([file.metadata for file in files], kind)
    metadata.attach(model, facts, operator_versions.set_versions(model))
    editing.share_buffers(model)
    return TFLiteFile.from_model(model), routes


def split_profiles(file):
    """Takes an adaptive file apart again.

    Args:
        file: `TFLiteFile`, adaptive.

    Returns:
        `TFLiteFile` of each profile, as a file of its own would be.
    """
    facts, found = file.metadata, []
    for number in range(len(facts["profiles"])):
        part = merging.extract(file.model, f"profile_{number}")
        metadata.attach(
            part, metadata.profile_facts(facts, number), operator_versions.set_versions(part)
        )
        editing.share_buffers(part)
        found.append(TFLiteFile.from_model(part))
    return found


def compare_adaptive_file(qmodel, path, files, interpreter, inputs, data, kind, routes):
    """Compares an adaptive file with the files that it was made of, and its router with the policy.

    Args:
        qmodel: The frozen `DQMQModel`.
        path: Name of the file, for messages.
        files: `TFLiteFile`s of the profiles, as LiteRT loads them.
        interpreter: `AdaptiveInterpreter` of them in one file.
        inputs: Typical inputs, a list of arrays.
        data: The data set that they come from; one with qualities tells the shares apart.
        kind: `"signatures"` or `"graph"`.
        routes: `TFLiteFile` of the router alone.

    Returns:
        `AdaptiveReport`.

    Raises:
        VerificationError: If an output differs by a bit, or the router departs from the policy.
    """
    result = interpreter(inputs)
    for number, own in enumerate(files):
        chosen = [array[result.profile == number] for array in inputs]
        if len(chosen[0]):
            expected = in_process.signature_outputs(own, chosen)
            found = [output[result.profile == number] for output in result.outputs]
            if not all(np.array_equal(f, e) for f, e in zip(found, expected)):
                raise VerificationError(
                    f"{path}: profile {number} computes other numbers than its own file. Please "
                    "report the model."
                )
    decided = qmodel.decisions(inputs[0]).profile
    agreement = float((decided == result.profile).mean())
    if agreement < _LEAST_AGREEMENT:
        raise VerificationError(
            f"{path}: the router chooses the policy's profile for {100 * agreement:.1f} % of "
            f"{len(decided)} inputs only (allowed: {100 * _LEAST_AGREEMENT:.0f} %). Pass data of "
            "every quality as data=..., by which its filters are scaled."
        )
    return AdaptiveReport(
        routing=kind,
        profile_bytes=tuple(len(own.contents) for own in files),
        router_bytes=len(routes.contents),
        router_ms=_milliseconds(routes),
        profile_ms=tuple(_milliseconds(own) for own in files),
        router_agreement=agreement,
        shares=_shares(result.profile, len(files), qualities(data, len(inputs[0]))),
    )


def qualities(data, samples):
    """Name of the quality of each input, or None where a data set does not tell.

    Args:
        data: What `convert` takes; a `tf.data.Dataset` whose elements end in `{"kind": …}`, as
            `quality.mixed_quality(..., with_quality=True)` makes them, tells.
        samples: How many inputs.
    """
    spec = getattr(data, "element_spec", None)
    if not (isinstance(spec, tuple) and isinstance(spec[-1], dict) and "kind" in spec[-1]):
        return None
    names, found = ["clean", *KINDS], []
    for element in data.as_numpy_iterator():
        found.extend(np.atleast_1d(element[-1]["kind"]))
        if len(found) >= samples:
            break
    return [names[int(kind)] for kind in found[:samples]]


def _shares(profile, count, names):
    """`{quality: share of its inputs per profile}`, `"all"` first."""
    groups = {"all": np.ones(len(profile), bool)}
    for name in dict.fromkeys(names or ()):
        groups[name] = np.array(names) == name
    return {
        name: tuple(float((profile[mask] == number).mean()) for number in range(count))
        for name, mask in groups.items()
    }


def _milliseconds(file):
    """Median time of one inference at one thread."""
    return in_process.median_milliseconds(in_process.interpreter(file.contents), _TIMED_RUNS)


def _sign_router(brain, input_name):
    """The router's signature: the model's first input; `profile` and `score`."""
    graph, (definition,) = brain.subgraphs[0], brain.signatureDefs
    definition.inputs[0].name = input_name
    entries = sorted(definition.outputs, key=lambda entry: (len(entry.name), entry.name))[:2]
    for entry, name in zip(entries, (quality_router.PROFILE, quality_router.SCORE)):
        entry.name = name.encode()
    definition.outputs = entries
    graph.outputs = np.array([entry.tensorIndex for entry in entries], np.int32)
