"""Comparison of a file with the model that it was written from, on LiteRT."""

import keras
import numpy as np

from dqmq_tf import graph as graphs
from dqmq_tf.export import (
    adaptive,
    checksum,
    compression,
    flatbuffer,
    inspection,
    metadata,
    runtime,
)
from dqmq_tf.export.errors import ConversionError, VerificationError
from dqmq_tf.export.progress import stages
from dqmq_tf.export.report import AdaptiveVerificationReport, VerificationReport
from dqmq_tf.export.skeleton import build_skeleton
from dqmq_tf.precision import ActivationPrecision

DEFAULT_AGREEMENT = 0.99
# Deep networks carry each rounding on: on an untrained MobileNetV2 two backends of LiteRT differ
# from each other by 4 quanta on average. A wrong scale costs tens.
DEFAULT_MEAN_QUANTA = 8.0
_DEPARTURE_QUANTA = 4.0
# An input is decided if its largest output leads by more than an eighth of the grid.
_DECIDED_QUANTA = 32.0


def verify(
    qmodel,
    path,
    data,
    *,
    samples=1000,
    agreement=DEFAULT_AGREEMENT,
    mean_quanta=DEFAULT_MEAN_QUANTA,
):
    """Checks that a file holds the model's numbers and computes what the model computes.

    The file runs on LiteRT with XNNPACK, as an app would run it. No two runtimes round alike, so
    outputs are compared with a tolerance; the integers, scales, zero points and biases in the
    file must be equal.

    Args:
        qmodel: The frozen `DQMQModel` that the file was converted from.
        path: Path of the `.tflite` file.
        data: Inputs: an array, a list of arrays for several inputs, or a `tf.data.Dataset` of
            inputs or of `(inputs, labels)`, batched or not.
        samples: At most so many inputs are compared.
        agreement: Least share of the decided inputs with the same largest output entry, for
            outputs of rank 2 with more than one column. An input is decided if the model's
            largest entry leads by more than an eighth of the output's grid: on the others,
            rounding alone may turn the order. So few inputs as make no case (three standard
            deviations) are let pass.
        mean_quanta: Largest mean difference, in steps of the output's grid.

    Returns:
        `VerificationReport`; `AdaptiveVerificationReport`, one for each profile, for an adaptive
        file.

    Raises:
        VerificationError: If the file cannot be read, belongs to another model, or departs from
            the model by more than the tolerance; the message has the figures.
        FileNotFoundError: If there is no such file.

    Example:

    >>> report = dqmq_tf.verify(model, "model.tflite", test_images)
    >>> report.top1_agreement
    0.997
    """
    try:
        model = flatbuffer.read(checksum.load(path))
    except ConversionError as error:
        raise VerificationError(str(error)) from error
    facts = metadata.facts_of(model)
    if facts is None:
        raise VerificationError(
            f"{path} holds no dqmq_tf metadata, so it was not written by dqmq_tf.convert."
        )
    networks = adaptive.networks(model) if "routing" in facts else [model]
    # LiteRT does not know lookup tables: their twin stands for them.
    networks = [flatbuffer.read(compression.decompress(flatbuffer.write(n))) for n in networks]
    inputs, reports = collect(data, samples), []
    with stages("Verifying") as stage:
        for network in networks:
            profile = metadata.facts_of(network)["profile"]
            if profile >= qmodel.frozen:
                raise VerificationError(
                    f"{path} holds precision profile {profile}, but the model is frozen to "
                    f"{qmodel.frozen} profiles: the file was written from another state of it."
                )
            skeleton, graph = skeleton_of(qmodel, profile)
            reports.append(
                check(
                    qmodel,
                    path,
                    flatbuffer.write(network),
                    network,
                    skeleton,
                    inputs,
                    graph,
                    agreement=agreement,
                    mean_quanta=mean_quanta,
                    stage=stage,
                )
            )
    return AdaptiveVerificationReport(profiles=tuple(reports)) if len(reports) > 1 else reports[0]


def skeleton_of(qmodel, profile, simulate=False):
    """Skeleton and graph of a frozen model's precision profile."""
    graph = graphs.trace(qmodel.float_model())
    return build_skeleton(graph, qmodel.precision(profile), simulate), graph


def check(
    qmodel,
    path,
    contents,
    model,
    skeleton,
    inputs,
    graph,
    *,
    agreement,
    mean_quanta,
    stage=lambda name: None,
):
    """`verify` on what is already in memory."""
    stage("comparing numbers")
    figures, messages = inspection.differences(model, skeleton)
    if messages:
        raise VerificationError(
            f"{path} does not hold the numbers of this model, so it was written from another model "
            f"or from another state of it: {messages[0]}"
            + (f" (and {len(messages) - 1} more)." if len(messages) > 1 else ".")
        )
    _check_shapes(path, model, inputs)
    stage(f"running {len(inputs[0])} inputs")
    found = ordered_outputs(model, contents, inputs)
    expected = _predictions(qmodel, model, inputs)
    report = _compare(model, figures, inputs, found, expected)
    allowed = _allowed(agreement, report.decided)
    wrong = round((1 - report.decided_agreement) * report.decided)
    if wrong > allowed or not report.mean_quanta <= mean_quanta:
        departed = _first_departure(qmodel, model, contents, inputs, graph)
        raise VerificationError(
            f"{path} departs from the model on {report.runtime}: {wrong} of {report.decided} "
            f"decided inputs have another top entry (allowed: {allowed}), top-1 agreement of all "
            f"{report.samples} is {100 * report.top1_agreement:.2f} %, mean difference "
            f"{report.mean_quanta:.3g} quanta (allowed: {mean_quanta:g}), largest "
            f"{report.largest_quanta:.3g}. {departed}"
        )
    return report


def collect(data, samples):
    """Inputs of a data set as a list of float arrays, one per model input.

    Args:
        data: Array, list of arrays, or `tf.data.Dataset`, as `verify` takes it.
        samples: At most so many inputs are taken.

    Returns:
        List of arrays with a batch dimension.
    """
    if hasattr(data, "as_numpy_iterator"):
        return _from_dataset(data, samples)
    arrays = data if isinstance(data, (list, tuple)) else [data]
    arrays = [np.asarray(array, np.float32)[:samples] for array in arrays]
    if not arrays or not len(arrays[0]):
        raise ValueError("data holds no inputs: pass at least one.")
    return arrays


def ordered_outputs(model, contents, inputs):
    """Runs a file and returns its outputs in the order of the model's."""
    runner = runtime.interpreter(contents)
    results = runtime.run(runner, _in_file_order(model, inputs))
    by_index = {
        details["index"]: result for details, result in zip(runner.get_output_details(), results)
    }
    return [by_index[int(entry.tensorIndex)] for entry in model.signatureDefs[0].outputs]


def _in_file_order(model, inputs):
    """Inputs in the order of the file's first subgraph; the signature has the model's order."""
    places = {int(e.tensorIndex): i for i, e in enumerate(model.signatureDefs[0].inputs)}
    return [inputs[places[int(index)]] for index in model.subgraphs[0].inputs]


def _from_dataset(data, samples):
    spec, batches, count = data.element_spec, [], 0
    first = spec[0] if isinstance(spec, tuple) else spec
    inner = first[0] if isinstance(first, (list, tuple)) else first
    batched = len(inner.shape) and inner.shape[0] is None or len(inner.shape) >= 4
    for element in data.as_numpy_iterator():
        images = element[0] if isinstance(spec, tuple) else element
        arrays = list(images) if isinstance(images, (list, tuple)) else [images]
        arrays = [array if batched else array[None] for array in arrays]
        batches.append(arrays)
        count += len(arrays[0])
        if count >= samples:
            break
    if not batches:
        raise ValueError("data holds no inputs: pass at least one.")
    return [np.concatenate(parts)[:samples].astype(np.float32) for parts in zip(*batches)]


def _check_shapes(path, model, inputs):
    graph = model.subgraphs[0]
    if len(graph.inputs) != len(inputs):
        raise VerificationError(
            f"{path} takes {len(graph.inputs)} inputs, but data has {len(inputs)}."
        )
    expected = [tuple(int(n) for n in graph.tensors[i].shape[1:]) for i in graph.inputs]
    found = [array.shape[1:] for array in _in_file_order(model, inputs)]
    if expected != found:
        raise VerificationError(f"{path} takes inputs of shape {expected}, but data has {found}.")


def _predictions(qmodel, model, inputs):
    if qmodel.frozen > 1:
        # The model would choose a profile for each input, and the file holds one.
        simulated, _ = skeleton_of(qmodel, metadata.facts_of(model)["profile"], simulate=True)
        results = simulated.model.predict(inputs, verbose=0)
    else:
        results = qmodel.predict(inputs if len(inputs) > 1 else inputs[0], verbose=0)
    return [np.asarray(result) for result in keras.tree.flatten(results)]


def _compare(model, figures, inputs, found, expected):
    quanta, samples = [], len(inputs[0])
    agrees, decided = np.ones(samples, bool), np.ones(samples, bool)
    classification = False
    for position, (file, reference) in enumerate(zip(found, expected)):
        step = _output_step(model, position, reference)
        quanta.append((np.abs(file.astype(np.float64) - reference) / step).ravel())
        if reference.ndim == 2 and reference.shape[1] > 1:
            classification = True
            agrees &= file.argmax(-1) == reference.argmax(-1)
            ranked = np.sort(reference, axis=-1)
            decided &= (ranked[:, -1] - ranked[:, -2]) / step > _DECIDED_QUANTA
    quanta = np.concatenate(quanta)
    return VerificationReport(
        runtime=f"LiteRT {runtime.version()} (XNNPACK)",
        samples=samples,
        classification=classification,
        top1_agreement=float(agrees.mean()),
        decided=int(decided.sum()),
        decided_agreement=float(agrees[decided].mean()) if decided.any() else 1.0,
        largest_quanta=float(quanta.max()),
        mean_quanta=float(quanta.mean()),
        checked_numbers=sum(count for kind, count in figures.items() if kind != "different"),
        different_numbers=figures["different"],
    )


def _allowed(agreement, decided):
    """Disagreements that are no evidence against a share of agreement: three deviations."""
    expected = (1 - agreement) * decided
    return max(1, int(expected + 3 * np.sqrt(expected * agreement)))


def _output_step(model, position, reference):
    """Step of an output's grid; that of 8 bits over its range where it is in floating point."""
    graph = model.subgraphs[0]
    index = model.signatureDefs[0].outputs[position].tensorIndex
    for operator in graph.operators:
        name = flatbuffer.operator_name(model, operator)
        if index in operator.outputs and name == "DEQUANTIZE":
            index = operator.inputs[0]
    quantization = graph.tensors[index].quantization
    if quantization is not None and quantization.scale is not None and len(quantization.scale):
        return float(quantization.scale[0])
    return max(float(np.ptp(reference)), 1e-6) / 255


def _first_departure(qmodel, model, contents, inputs, graph):
    """Names the first tensor of a file that departs from the simulation."""
    facts = metadata.facts_of(model)
    simulated, _ = skeleton_of(qmodel, facts["profile"], simulate=True)
    few = [array[:1] for array in inputs]
    expected = simulated.values(few)
    runner = runtime.interpreter(contents, delegates=False, all_tensors=True)
    runtime.run(runner, _in_file_order(model, few))
    sites = {f"a{tensor}": node.site for node in graph.nodes for tensor in node.outputs}
    for details in runner.get_tensor_details():
        key = details["name"]
        scale, zero_point = details["quantization"]
        if key in expected and scale and expected[key].shape == tuple(details["shape"]):
            grid = ActivationPrecision(step=scale, zero_point=zero_point + 128, bit_width=8)
            values = runtime.dequantized(details, runner.get_tensor(details["index"]))
            quanta = np.abs(values - np.clip(expected[key], *_ends(grid))) / scale
            if quanta.mean() > _DEPARTURE_QUANTA:
                site = sites.get(key.rstrip("p"), "the input")
                return (
                    f"The first tensor to depart is {key!r}, made by {site!r}, by "
                    f"{quanta.mean():.3g} quanta on average."
                )
    return "No single tensor departs by much: small differences add up."


def _ends(grid):
    low = -grid.step * grid.zero_point
    return low, low + grid.step * (2**grid.bit_width - 1)
