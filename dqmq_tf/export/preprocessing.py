"""`Preprocessing`: how an app turns a picture into an input, and what it calls the outputs."""

import dataclasses
import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from dqmq_tf.flatbuffer import metadata
from dqmq_tf.graph import Graph
from dqmq_tf.graph.kernels import PIXELS
from dqmq_tf.graph.plain_pixels import IMAGE_RANK
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.targets import COLORS, RESIZES

# Photographs seldom fill the whole range. A range that differs by more is another unit.
_LARGEST_RATIO = 8.0
_CHANNELS = {"RGB": 3, "BGR": 3, "GRAY": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an app turns a picture into the values that an image input takes.

    The app resizes the picture, puts its channels in order, and computes `(pixel - mean) / std` for
    pixels from 0 to 255. The defaults are those of a model that rescales pixels itself.

    Attributes:
        mean: What is subtracted from a pixel: one number, or one per channel in the order of `color`.
        std: What the difference is divided by, likewise. Images from 0 to 1 have `std=255`.
        color: The order of the channels: `"RGB"`, `"BGR"` or `"GRAY"`. None for `"RGB"` with three
            channels, as Keras loads pictures, and for `"GRAY"` with one.
        resize: The rule by which pictures were resized for training: `"nearest"`, `"bilinear"`, both
            as `keras.layers.Resizing` does it, or `"area"`, the mean over the pixels that an input
            pixel covers. None if the file does not say.

    Raises:
        ValueError: If a value is not valid.

    Example:

    >>> preprocessing = dqmq_tf.Preprocessing(mean=127.5, std=127.5, resize="bilinear")
    >>> dqmq_tf.convert(model, "model.tflite", preprocessing=preprocessing, labels=["cat", "dog"])
    """

    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    color: str | None = None
    resize: str | None = None

    def __post_init__(self) -> None:
        for field in ("mean", "std"):
            if not all(map(math.isfinite, _numbers(field, getattr(self, field)))):
                raise ValueError(
                    f"{field}={getattr(self, field)!r} of the preprocessing must hold finite numbers."
                )
        if any(value <= 0 for value in _numbers("std", self.std)):
            raise ValueError(
                f"std={self.std!r} of the preprocessing must be above 0: pixels are divided by it."
            )
        for field, choices in (("color", COLORS), ("resize", RESIZES)):
            value = getattr(self, field)
            if value is not None and value not in choices:
                raise ValueError(
                    f"{field}={value!r} of the preprocessing must be one of "
                    f"{', '.join(map(repr, choices))}, or None."
                )


def input_facts(
    graph: Graph,
    labels: Sequence[str] | None,
    preprocessing: Preprocessing | Mapping[str, Preprocessing] | None,
) -> dict[str, Any]:
    """Returns what the metadata of a file say about its inputs and outputs.

    Args:
        graph: The inlined `Graph` of the float model.
        labels: See `convert`.
        preprocessing: See `convert`.

    Returns:
        A dictionary with the entries `"inputs"` and `"labels"` that are given, for
        `metadata.with_input_facts`.

    Raises:
        ValueError: If labels or preprocessing do not suit the model.
    """
    facts: dict[str, Any] = {}
    if preprocessing is not None:
        facts["inputs"] = {
            name: _entry(graph, name, value)
            for name, value in _by_input(graph, preprocessing).items()
        }
    if labels is not None:
        facts["labels"] = _checked_labels(graph, labels)
    return facts


def warn_of_other_ranges(lowered: LoweredModel, facts: Mapping[str, Any], stacklevel: int) -> None:
    """Warns where an app that follows the preprocessing feeds values unlike those of the calibration.

    Args:
        lowered: The `LoweredModel`, whose inputs have the ranges of the calibration.
        facts: What `input_facts` returned.
        stacklevel: That of `warnings.warn`, seen from the caller.
    """
    keys = dict(zip(lowered.input_names, lowered.inputs))
    for name, entry in facts.get("inputs", {}).items():
        grid = lowered.quantization.get(keys[name])
        if grid is None:
            continue
        seen = grid.step * (2**grid.bit_width - 1)
        fed = 255.0 / max(entry["std"])
        if max(seen / fed, fed / seen) > _LARGEST_RATIO:
            low = 0.0 - grid.step * grid.zero_point
            ends = [f"{(pixel - entry['mean'][0]) / entry['std'][0]:g}" for pixel in (0, 255)]
            warnings.warn(
                f"Input {name!r}: an app that follows the preprocessing feeds values from "
                f"{' to '.join(ends)}, but the model was calibrated on values from {low:.3g} to "
                f"{low + seen:.3g}. Give the mean and std by which pixels became the values that the "
                "model was trained on, or leave preprocessing out if it takes pixels.",
                stacklevel=stacklevel + 1,
            )


def _by_input(
    graph: Graph, preprocessing: Preprocessing | Mapping[str, Preprocessing]
) -> dict[str, Preprocessing]:
    """Returns `{name of an image input: its preprocessing}`."""
    shapes = {name: graph.shapes[t] for name, t in zip(graph.input_names, graph.inputs)}
    images = [name for name, shape in shapes.items() if len(shape) == IMAGE_RANK]
    if isinstance(preprocessing, Preprocessing):
        if not images:
            raise ValueError(
                "preprocessing=... is for images [batch, height, width, channels], but the inputs of "
                f"the model have the shapes {shapes}. Leave it out."
            )
        return dict.fromkeys(images, preprocessing)
    if not isinstance(preprocessing, Mapping):
        raise ValueError(
            f"preprocessing={preprocessing!r} must be a `dqmq_tf.Preprocessing`, or a dictionary "
            "{name of an input: Preprocessing}."
        )
    for name, value in preprocessing.items():
        if name not in images:
            raise ValueError(
                f"preprocessing=... names {name!r}, which is not an image input of the model. Its "
                f"inputs are {shapes}; images have 4 axes."
            )
        if not isinstance(value, Preprocessing):
            raise ValueError(
                f"preprocessing=... has {value!r} for input {name!r}. Give a `dqmq_tf.Preprocessing`."
            )
    return dict(preprocessing)


def _entry(graph: Graph, name: str, given: Preprocessing) -> dict[str, Any]:
    """Returns the entry of one input, with a number per channel."""
    tensor = graph.inputs[graph.input_names.index(name)]
    channels = graph.shapes[tensor][-1]
    assert channels is not None
    entry: dict[str, Any] = {}
    for field in ("mean", "std"):
        values = _numbers(field, getattr(given, field))
        if len(values) not in (1, channels):
            raise ValueError(
                f"{field} of the preprocessing of input {name!r} has {len(values)} numbers, but the "
                f"input has {channels} channels. Give one number, or {channels}."
            )
        entry[field] = _short(values if len(values) == channels else values * channels)
    is_plain = not any(entry["mean"]) and set(entry["std"]) == {1}
    if graph.dtypes[tensor] == PIXELS and not is_plain:
        raise ValueError(
            f"Input {name!r} has dtype uint8, so it takes pixels as they are, but its preprocessing "
            f"has mean={given.mean!r} and std={given.std!r}. Leave both out."
        )
    color = given.color or metadata.DEFAULT_COLORS.get(channels)
    if color is not None and _CHANNELS[color] != channels:
        raise ValueError(
            f"color={color!r} of the preprocessing of input {name!r} has {_CHANNELS[color]} channels, "
            f"but the input has {channels}."
        )
    optional = {"color": color, "resize": given.resize}
    return entry | {key: value for key, value in optional.items() if value is not None}


def _checked_labels(graph: Graph, labels: Sequence[str]) -> list[str]:
    """Returns the labels as a list, after checking that they name the classes of the output."""
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise ValueError(
            f"labels={labels!r} must be a list of strings, one per class, in the order of the output."
        )
    names = list(labels)
    for number, name in enumerate(names):
        if not name.strip() or len(name.splitlines()) != 1:
            raise ValueError(
                f"Label {number} is {name!r}. A label must have text, on one line: label files have "
                "one a line."
            )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"labels=... has {', '.join(map(repr, repeated[:3]))} more than once. Give each class a "
            "name of its own."
        )
    if len(graph.outputs) != 1:
        raise ValueError(
            f"labels=... name the classes of one output, but the model has {len(graph.outputs)}. "
            "Leave them out."
        )
    shape = graph.shapes[graph.outputs[0]]
    if len(shape) < 2 or shape[-1] != len(names):
        raise ValueError(
            f"labels=... has {len(names)} names, but the output of the model has the shape {shape}: "
            "give one label per entry of the last axis."
        )
    return names


def _numbers(field: str, value: Any) -> list[float]:
    """Returns one number or a sequence of numbers as a list."""
    values = [value] if isinstance(value, (str, numbers.Real)) else value
    try:
        result = [] if isinstance(value, str) else [float(number) for number in values]
    except (TypeError, ValueError):
        result = []
    if not result:
        raise ValueError(
            f"{field}={value!r} of the preprocessing must be a number, or one number per channel."
        )
    return result


def _short(values: Sequence[float]) -> list[float]:
    """Returns numbers in the form that takes the fewest bytes as JSON: 0 instead of 0.0."""
    return [int(value) if value.is_integer() else value for value in values]
