"""What a file says about itself: JSON under the name `"dqmq_tf"` in its metadata."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dqmq_tf.errors import FileFormatError
from dqmq_tf.flatbuffer import editing, serialization, standard_metadata
from dqmq_tf.flatbuffer.serialization import ModelT
from dqmq_tf.targets import Target
from dqmq_tf.version import __version__

NAME = "dqmq_tf"
FORMAT = 1
_RUNTIME_VERSION = "min_runtime_version"
_INPUTS = "inputs"
# The order of the channels of an image, by their number, if nobody says so. Keras loads RGB.
DEFAULT_COLORS = {1: "GRAY", 3: "RGB"}
_PER_PROFILE = ("profile", "bits", "float")
# Entries of every Keras layer's configuration, which say nothing about the policy.
_IGNORED_CONFIG = ("dtype", "trainable", "name")


class Weights(Protocol):
    """What metadata and reports need to know of a weight tensor."""

    @property
    def path(self) -> str:
        """Path of the layer."""

    @property
    def variable(self) -> str:
        """Name of the variable in the layer."""

    @property
    def bit_width(self) -> int:
        """Bits per weight."""


class Network(Protocol):
    """What metadata need to know of a lowered model."""

    @property
    def weights(self) -> Sequence[Weights]:
        """Weight tensors in the order of execution."""

    @property
    def float_layers(self) -> Mapping[str, str]:
        """`{path of a layer that computes in floating point: why}`."""

    @property
    def plain_pixels(self) -> Mapping[str, int]:
        """`{name of an image input that takes pixels from 0 to 255: number of channels}`."""


def describe(
    lowered: Network, target: Target, profile: int, policy: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the facts that a file carries.

    Args:
        lowered: A `LoweredModel`.
        target: The `Target` of the file.
        profile: Index of the precision profile.
        policy: Configuration of the policy.

    Returns:
        A dict that JSON can hold.
    """
    facts = {
        "format": FORMAT,
        "version": __version__,
        "target": target.name,
        "profile": profile,
        "bits": {weights_label(weights): weights.bit_width for weights in lowered.weights},
        "float": list(lowered.float_layers),
        "policy": {k: v for k, v in policy.items() if k not in _IGNORED_CONFIG},
    }
    inputs = {name: _plain_pixels(count) for name, count in lowered.plain_pixels.items()}
    # Without knowledge about its inputs, a file has no entry, which would take bytes.
    return facts | ({_INPUTS: inputs} if inputs else {})


def _plain_pixels(channels: int) -> dict[str, Any]:
    """Returns the entry of an input that takes pixels from 0 to 255 as they are."""
    color = {"color": DEFAULT_COLORS[channels]} if channels in DEFAULT_COLORS else {}
    return {"mean": [0] * channels, "std": [1] * channels, **color}


def with_input_facts(facts: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the facts of a file with what the caller of `convert` says about inputs and outputs.

    Args:
        facts: What `describe` or `describe_adaptive` returned.
        given: `"inputs"`, `{name of an input: {"mean": [...], "std": [...], "color": ...,
            "resize": ...}}`, where the last two are optional, and `"labels"`, a list of strings. An
            app computes `(pixel - mean) / std` of pixels from 0 to 255. What is given replaces what
            was found in the model.
    """
    inputs = {**facts.get(_INPUTS, {}), **given.get(_INPUTS, {})}
    return {**facts, **given} | ({_INPUTS: inputs} if inputs else {})


def describe_adaptive(facts: Sequence[Mapping[str, Any]], routing: str) -> dict[str, Any]:
    """Returns the facts of an adaptive file.

    Args:
        facts: What `describe` returned for each profile.
        routing: `"signatures"` or `"graph"`.

    Returns:
        A dict with the facts that all profiles share, `"routing"`, and a list of the other facts
        under `"profiles"`.
    """
    shared = {key: value for key, value in facts[0].items() if key not in _PER_PROFILE}
    profiles = [{key: entry[key] for key in _PER_PROFILE} for entry in facts]
    return {**shared, "routing": routing, "profiles": profiles}


def profile_facts(facts: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Returns the facts that one profile of an adaptive file would have in a file of its own.

    Args:
        facts: Facts of the adaptive file.
        number: Number of the profile.
    """
    shared = {key: value for key, value in facts.items() if key not in ("routing", "profiles")}
    return {**shared, **facts["profiles"][number]}


def weights_label(weights: Weights) -> str:
    """Returns the name of weights in reports: the layer, and the variable if it is no kernel."""
    return weights.path if weights.variable == "kernel" else f"{weights.path}/{weights.variable}"


def attach(
    model: ModelT, facts: Mapping[str, Any], min_runtime_version: str, standard: bool = False
) -> None:
    """Writes the metadata of a model, and drops what was there.

    Args:
        model: A `ModelT`, changed in place.
        facts: What `describe`, `describe_adaptive` or `with_input_facts` returned.
        min_runtime_version: Oldest TensorFlow Lite that runs the file, such as `"2.11.0"`.
        standard: Whether to write TFLite's standard metadata too.
    """
    text = json.dumps(facts, separators=(",", ":"), default=_plain)
    entries = {
        _RUNTIME_VERSION: min_runtime_version.encode().ljust(16, b"\0"),
        NAME: text.encode(),
    }
    if standard:
        entries[standard_metadata.NAME] = standard_metadata.build(model, facts)
    schema, model.metadata = serialization.schema(), []
    for name, data in entries.items():
        entry = schema.MetadataT()
        entry.name, entry.buffer = name.encode(), editing.add_buffer(model, data)
        model.metadata.append(entry)


def min_runtime_version_of(model: ModelT) -> str:
    """Returns the oldest TensorFlow Lite that runs a file, such as `"2.11.0"`, or `""`."""
    data = _entry(model, _RUNTIME_VERSION)
    return "" if data is None else data.rstrip(b"\0").decode()


def facts_of(model: ModelT) -> dict[str, Any] | None:
    """Returns the facts of a parsed file, or None if dqmq_tf did not write it.

    Raises:
        FileFormatError: If they cannot be read.
    """
    data = _entry(model, NAME)
    if data is None:
        return None
    try:
        facts = json.loads(data)
    except ValueError as error:
        raise FileFormatError(
            f"The file is corrupt: its dqmq_tf metadata is not JSON ({error})."
        ) from error
    if not isinstance(facts, dict):
        raise FileFormatError("The file is corrupt: its dqmq_tf metadata is not a JSON object.")
    return facts


def _entry(model: ModelT, name: str) -> bytes | None:
    """Returns the bytes of a metadata entry, or None if there is no such entry."""
    for entry in model.metadata or ():
        if serialization.text(entry.name) == name:
            return np.asarray(model.buffers[entry.buffer].data).tobytes()
    return None


def _plain(value: Any) -> Any:
    """Converts what JSON does not know: NumPy's numbers and arrays, and sets."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (np.ndarray, set, frozenset)):
        return list(value)
    return str(value)
