"""Checks, when a model is calibrated, that it predicts at 8 bits what the float model predicts.

A model that lost something on its way into the quantized graph would otherwise train without an
error, from wrong values. Two comparisons on one small batch find that:

- The user's model with the copy that the quantized graph is built on. Both are in floating point,
  so they differ by rounding errors only.
- That copy with itself at 8 bits. If a training follows, new batch normalizations use the statistics
  of the calibration data, because that is what their ranges are for (see `range_calibration`).

If the outputs of the models differ, a warning names the first layer whose output does.
"""

import dataclasses
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from dqmq_tf import inputs
from dqmq_tf.graph import Graph, Node, trace
from dqmq_tf.graph.fusion import tensor_slots
from dqmq_tf.graph.hidden_inputs import RANDOM, hidden_input
from dqmq_tf.graph.kernels import is_float
from dqmq_tf.graph.rebuild import copy_model
from dqmq_tf.graph.trial_runs import call_at_inference
from dqmq_tf.training.range_calibration import State

_BITS = 8
# The most samples, and the most values of the first input, that are compared.
_SAMPLES, _VALUES = 8, 1 << 18
# The largest root mean square of a difference, relative to the standard deviation of the float
# values: between a model and its copy, of predictions at 8 bits, and of a single layer at 8 bits.
_COPY_LIMIT, _ROUNDING_LIMIT, _LAYER_LIMIT = 0.01, 0.5, 0.25
# Differences below this share of the largest value are errors of float arithmetic.
_FLOAT_ERROR = 1e-5
# At 8 bits, values that are almost constant have an error of up to this share of themselves.
_CONSTANT_ERROR = 0.01
_TINY = 1e-30


class FloatAgreement:
    """Compares a model at 8 bits with the float model.

    Args:
        parts: The `ModelParts` of the model.
    """

    def __init__(self, parts: Any) -> None:
        self._parts = parts
        self._source: keras.Model | None = None
        self._digests: tuple[int, int] = (0, 0)
        self._has_warned = False

    def remember(self, source: keras.Model) -> None:
        """Keeps the user's model until the first check.

        Args:
            source: The float model that was quantized.
        """
        self._source, self._digests = source, (_digest(source), _digest(self._parts.body))

    def check(self, arrays: list[np.ndarray], state: State) -> None:
        """Warns, once, if predictions at 8 bits depart from those of the float model.

        The variables of the models do not change.

        Args:
            arrays: The calibration data, one array `[N, ...]` per input of the model.
            state: The moving statistics that the ranges of the quantized model are for, where they
                are not those that it has.
        """
        parts, source = self._parts, self._source
        self._source = None
        if self._has_warned:
            return
        size = max(int(np.prod(arrays[0].shape[1:])), 1)
        count = parts.body.inputs[0].shape[0] or min(max(_VALUES // size, 2), _SAMPLES)
        arrays = [array[:count] for array in arrays]
        # A model that was trained or got other weights since is not the one that was quantized.
        is_current = self._digests == (_digest(source), _digest(parts.body)) if source else False
        of_copy = at_8_bits = None
        with keras.StatelessScope():
            if source and is_current:
                of_copy = _departure_of_copy(source, parts.body, arrays)
            # Two runs of a model that draws random numbers differ, whatever is rounded.
            if not of_copy and not _is_random(parts.graph):
                at_8_bits = _departure_at_8_bits(parts, arrays, state)
        self._has_warned = bool(of_copy or at_8_bits)
        if of_copy:
            warnings.warn(
                f"Before anything is rounded, {of_copy}. The layer was copied without some of its "
                "state, or it gives other outputs at each call. Keep the state of a layer in "
                "variables, restore what it derives from them in load_own_variables, and draw "
                "random numbers only if training=True.",
                stacklevel=4,
            )
        if at_8_bits:
            warnings.warn(
                f"At 8 bits and on the calibration data, {at_8_bits[0]}, and so do the predictions. "
                "Check that the data is like that of training. If the values of "
                f"{at_8_bits[1]!r} spread over several orders of magnitude, keep it in floating "
                f"point with dqmq_tf.LayerRule(pattern={at_8_bits[1]!r}, quantize=False).",
                stacklevel=4,
            )


def _is_random(graph: Graph) -> bool:
    return any(hidden_input(graph, node) == RANDOM for node in graph.nodes)


def _departure_of_copy(
    source: keras.Model, body: keras.Model, arrays: list[np.ndarray]
) -> str | None:
    """Returns a description of how a copy departs from a model, or None if it does not."""
    expected, found = (
        keras.tree.flatten(model(inputs.structured(arrays, model), training=False))
        for model in (source, body)
    )
    worst = max(map(_relative_error, expected, found))
    if worst <= _COPY_LIMIT:
        return None
    # In a plain copy, no layer is split, so that its graph is that of the source.
    graph, copied = trace(source), trace(copy_model(source))
    runs = zip(_run(graph, arrays), _run(copied, arrays))
    for (node, values), (_, others) in runs:
        error = max(map(_relative_error, values, others), default=0.0)
        if error > _COPY_LIMIT:
            return _described(node, error)
    return (
        "the predictions of the quantized model differ from those of the float model by "
        f"{_percent(worst)} of their spread"
    )


def _departure_at_8_bits(
    parts: Any, arrays: list[np.ndarray], state: State
) -> tuple[str, str] | None:
    """Returns how a model at 8 bits departs from itself, and which layer or input is to blame.

    The error of predictions decides whether it does. The description names the first layer that
    causes a large error by itself: the many small errors of a deep network may add up to a large
    one before it is trained, and no layer is to blame then: it returns None.
    """
    graph = parts.graph
    rounding = _Rounding.of(parts, graph, state)
    judged = _judged_tensors(graph)
    outputs: dict[int, Any] = {}
    for (node, values), (_, others) in zip(
        _run(graph, arrays, state), _run(graph, arrays, rounding.state, rounding)
    ):
        outputs |= {t: pair for t, *pair in zip(node.outputs, values, others) if t in judged}
    if all(rounding.error(tensor, *pair) <= _ROUNDING_LIMIT for tensor, pair in outputs.items()):
        return None
    inputs_of_nodes = dict(_inputs(graph, arrays))
    for node, values in _run(graph, arrays, state):
        rounded = {t: rounding(t, inputs_of_nodes[t]) for t in node.inputs}
        error = _error_at_8_bits(node, rounded, values, rounding)
        if error > _LAYER_LIMIT:
            names = [n for t, n in zip(graph.inputs, graph.input_names) if t in node.inputs]
            exact = _error_at_8_bits(node, inputs_of_nodes, values, rounding)
            if names and exact <= _LAYER_LIMIT:
                culprit = f"input {', '.join(map(repr, names))} is rounded too coarsely"
                return f"{culprit}: {_described(node, error)}", "|".join(names)
            return _described(node, error), node.path
        inputs_of_nodes |= zip(node.outputs, values)
    return None


def _judged_tensors(graph: Graph) -> set[int]:
    """Returns the outputs of a graph, with the tensors that they are computed from for integers.

    An index of a class has no spread, and the smallest error changes it where two classes tie.
    """
    judged, waiting = set(), [*graph.outputs]
    while waiting:
        tensor = waiting.pop()
        if is_float(graph.dtypes[tensor]):
            judged.add(tensor)
        elif tensor in graph.producers:
            waiting += graph.producers[tensor].inputs
    return judged


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rounding:
    """The kernels and the grids of a graph at 8 bits.

    Attributes:
        state: The values of variables. Kernels are rounded.
        grids: `{tensor: (step, zero point)}`.
        fixed: The tensors whose grid does not follow their values, such as that of a softmax.
    """

    state: State
    grids: Mapping[int, tuple[float, int]]
    fixed: frozenset[int]

    @classmethod
    def of(cls, parts: Any, graph: Graph, state: State) -> "_Rounding":
        """Returns the rounding of a model, with other variables as in `state`."""
        kernels = {
            id(wrapper.kernel(name)): wrapper.integers(name, _BITS) * wrapper.step(name, _BITS)
            for wrapper in parts.wrappers.values()
            for name, bit_widths in ((p["variable"], p["bit_widths"]) for p in wrapper.points)
            if _BITS in bit_widths
        }
        quantizers = {
            slot: quantizer
            for point, quantizer in zip(parts.costs.activations, parts.quantizers)
            for slot in point.slots
            # What quantizers of the user's own do is not a fault of the quantization.
            if _BITS in point.bit_widths and not point.user_quantizers
        }
        slots = tensor_slots(graph).items()
        of_tensors = {tensor: quantizers[slot] for tensor, slot in slots if slot in quantizers}
        return cls(
            state={**state, **kernels},
            grids={tensor: quantizer.values(_BITS) for tensor, quantizer in of_tensors.items()},
            fixed=frozenset(t for t, q in of_tensors.items() if q.range != "affine"),
        )

    def __call__(self, tensor: int, value: Any) -> Any:
        """Rounds the value of a tensor to its grid, if it has one."""
        if tensor not in self.grids:
            return value
        step, zero_point = self.grids[tensor]
        integers = ops.round(ops.cast(value, "float32") / step) + zero_point
        integers = ops.clip(integers, 0, 2**_BITS - 1)
        # Some layers return integers where their output is declared as floating point.
        dtype = value.dtype if value.dtype.is_floating else "float32"
        return ops.cast((integers - zero_point) * step, dtype)

    def error(self, tensor: int, expected: Any, found: Any) -> float:
        """Returns the relative error of a tensor beyond what 8 bits cannot avoid.

        Integers have none: see `_judged_tensors`.
        """
        if not is_float(expected.dtype):
            return 0.0
        step = self.grids[tensor][0] if tensor in self.fixed else 0.0
        return _relative_error(expected, found, step, _CONSTANT_ERROR)


def _run(
    graph: Graph,
    arrays: Iterable[np.ndarray],
    state: State | None = None,
    rounding: Callable[[int, Any], Any] = lambda tensor, value: value,
) -> Iterator[tuple[Node, list[Any]]]:
    """Runs a graph in inference mode, and yields each node with its outputs.

    Args:
        graph: An inlined graph.
        arrays: The values of its inputs.
        state: The values of variables that differ from their own.
        rounding: A function of a tensor and its value, which returns the value to go on with.
    """
    values = {tensor: rounding(tensor, value) for tensor, value in _inputs(graph, arrays)}
    for node in graph.nodes:
        outputs = list(map(rounding, node.outputs, _call(node, values, state)))
        values.update(zip(node.outputs, outputs))
        yield node, outputs


def _error_at_8_bits(
    node: Node, tensors: Mapping[int, Any], values: Iterable[Any], rounding: _Rounding
) -> float:
    """Returns the relative error of the outputs of a node, given its inputs and exact outputs."""
    found = map(rounding, node.outputs, _call(node, tensors, rounding.state))
    return max(map(rounding.error, node.outputs, values, found), default=0.0)


def _inputs(graph: Graph, arrays: Iterable[np.ndarray]) -> Iterator[tuple[int, Any]]:
    """Yields the input tensors of a graph with their values."""
    for tensor, array in zip(graph.inputs, arrays):
        yield tensor, ops.convert_to_tensor(array, graph.dtypes[tensor])


def _call(node: Node, values: Mapping[int, Any], state: State | None) -> list[Any]:
    """Returns the outputs of a node, with some values of variables. No variable changes."""
    variables = getattr(node.layer, "variables", ())
    changed = [(v, state[id(v)]) for v in variables if id(v) in state] if state else []
    if not changed:
        # In the scope of the caller, random numbers differ from call to call.
        return call_at_inference(node, values)
    with keras.StatelessScope(state_mapping=changed):
        return call_at_inference(node, values)


def _relative_error(
    expected: Any, found: Any, allowed: float = 0.0, allowed_share: float = 0.0
) -> float:
    """Returns the root mean square of a difference, relative to the spread of the expected values.

    Args:
        expected: The values of the float model. Of values that are no floating-point numbers, the
            result is the share that differs.
        found: The values to compare.
        allowed: The part of the difference that does not count.
        allowed_share: The same, as a share of the median absolute value.
    """
    if expected.shape != found.shape:
        return np.inf
    expected, found = ops.convert_to_numpy(expected), ops.convert_to_numpy(found)
    if expected.dtype.kind in "biuSUO":
        return float(np.mean(expected != found)) if expected.size else 0.0
    is_finite = np.isfinite(expected.astype("float32"))
    if not is_finite.any():
        return 0.0
    expected, found = (
        np.where(is_finite, x, 0).astype("float32").reshape(len(x), -1) for x in (expected, found)
    )
    noise = _FLOAT_ERROR * float(np.abs(expected).max())
    allowed = max(allowed, allowed_share * float(np.median(np.abs(expected)))) + noise
    errors = np.square(found - expected).mean(axis=1)
    spreads = np.square(expected - np.median(expected)).mean(axis=1)
    if allowed_share and float(spreads.max(initial=0.0)) ** 0.5 <= noise:
        return 0.0  # Where terms cancel, a constant is small, and an error beside it says nothing.
    # The median sample shows an error that samples of much larger values would hide.
    ratios = []
    for average in (np.mean, np.median):
        excess = float(average(errors)) ** 0.5 - allowed
        ratios.append(max(excess, 0.0) / max(float(average(spreads)) ** 0.5, noise, _TINY))
    return np.inf if np.isnan(ratios[0]) else max(ratios)


def _described(node: Node, error: float) -> str:
    kind = type(node.layer).__name__
    return (
        f"the outputs of layer {node.path!r} ({kind}) in the quantized model differ from those in "
        f"the float model by {_percent(error)} of their spread"
    )


def _percent(error: float) -> str:
    return f"{100 * error:,.0f} %" if error < 100 else "more than 100 times"


def _digest(model: keras.Model) -> int:
    """Returns a checksum of the weights of a model."""
    checksum = 0
    for weight in model.get_weights():
        checksum = zlib.crc32(weight.tobytes(), checksum)
    return checksum
