"""What a file says about itself: JSON under the name `"dqmq_tf"` in its metadata."""

import json

import numpy as np

from dqmq_tf.errors import FileFormatError
from dqmq_tf.flatbuffer import editing, serialization
from dqmq_tf.version import __version__

NAME = "dqmq_tf"
FORMAT = 1
_OF_A_PROFILE = ("profile", "bits", "float")
_OF_NO_CONSEQUENCE = ("dtype", "trainable", "name")


def describe(lowered, target, profile, policy):
    """The facts that a file carries.

    Args:
        lowered: `LoweredModel`.
        target: `dqmq_tf.targets.Target`.
        profile: Index of the precision profile.
        policy: Configuration of the policy, a dict.

    Returns:
        Dict that JSON can hold.
    """
    return {
        "format": FORMAT,
        "version": __version__,
        "target": target.name,
        "profile": profile,
        "bits": {weights_label(weights): weights.bit_width for weights in lowered.weights},
        "float": list(lowered.float_layers),
        "policy": {k: v for k, v in policy.items() if k not in _OF_NO_CONSEQUENCE},
    }


def describe_adaptive(facts, routing):
    """The facts of an adaptive file, from those of its profiles.

    Args:
        facts: What `describe` returned for each profile.
        routing: `"signatures"` or `"graph"`.

    Returns:
        Dict: what all share, `"routing"`, and under `"profiles"` what differs.
    """
    shared = {key: value for key, value in facts[0].items() if key not in _OF_A_PROFILE}
    own = [{key: entry[key] for key in _OF_A_PROFILE} for entry in facts]
    return {**shared, "routing": routing, "profiles": own}


def profile_facts(facts, number):
    """The facts that a profile of an adaptive file would have in a file of its own."""
    shared = {key: value for key, value in facts.items() if key not in ("routing", "profiles")}
    return {**shared, **facts["profiles"][number]}


def weights_label(weights):
    """Name of weights in reports: the path, and the variable where it is not the kernel."""
    return weights.path if weights.variable == "kernel" else f"{weights.path}/{weights.variable}"


def attach(model, facts, min_runtime_version):
    """Writes facts and the oldest runtime into a model, and drops all other metadata.

    Args:
        model: `ModelT`; changed in place.
        facts: What `describe` returned.
        min_runtime_version: Such as `"2.11.0"`.
    """
    text = json.dumps(facts, separators=(",", ":"), default=_plain)
    entries = {
        "min_runtime_version": min_runtime_version.encode().ljust(16, b"\0"),
        NAME: text.encode(),
    }
    schema, model.metadata = serialization.schema(), []
    for name, data in entries.items():
        entry = schema.MetadataT()
        entry.name, entry.buffer = name.encode(), editing.add_buffer(model, data)
        model.metadata.append(entry)


def min_runtime_version_of(model):
    """Oldest TensorFlow Lite that a parsed file asks for, such as `"2.11.0"`."""
    for entry in model.metadata or ():
        if serialization.text(entry.name) == "min_runtime_version":
            return np.asarray(model.buffers[entry.buffer].data).tobytes().rstrip(b"\0").decode()
    return ""


def facts_of(model):
    """Facts of a parsed file, or None where dqmq_tf did not write it.

    Raises:
        FileFormatError: If they cannot be read.
    """
    for entry in model.metadata or ():
        if serialization.text(entry.name) == NAME:
            try:
                facts = json.loads(np.asarray(model.buffers[entry.buffer].data).tobytes())
            except ValueError as error:
                raise FileFormatError(
                    f"The file is corrupt: its metadata is no JSON ({error})."
                ) from error
            if not isinstance(facts, dict):
                raise FileFormatError("The file is corrupt: its metadata holds no facts.")
            return facts
    return None


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (np.ndarray, set, frozenset)):
        return list(value)
    return str(value)
