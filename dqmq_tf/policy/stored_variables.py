"""How a `BitWidthPolicy` is saved: by the names of its variables."""

from typing import Any

import keras
from keras import ops

# The order in which files written before the names hold the variables: trainable ones first.
_TRAINED = ("mean", "log_sigma", "direction", "baseline_direction", "baseline_bias")
_STATE = (
    "byte_table", "loss_table", "temperature", "loss_scale", "multiplier", "advantage_scale",
    "search_step", "search_total", "shift", "thresholds", "centroids", "assigned",
)  # fmt: skip
_LATER = ("phase_index", "profile_count", "file_bytes")


def save(policy: Any, store: Any) -> None:
    """Writes all variables of a policy to a store of Keras's."""
    for name, variable in _variables(policy).items():
        store[name] = ops.convert_to_numpy(variable)


def load(policy: Any, store: Any) -> None:
    """Reads what `save` wrote, or what Keras wrote before, which had numbers for names."""
    variables = _variables(policy)
    if "mean" in store.keys():
        for name, variable in variables.items():
            variable.assign(store[name])
        return
    # Files that old hold no state of the draws: they begin at the seed again.
    first = [name for name in _TRAINED if name != "direction" or policy.quality_aware]
    rest = [name for name in ("direction", *_STATE) if name not in first]
    for index, name in enumerate([*first, *rest, "reservoir", "reservoir_fill"]):
        variables[name].assign(store[str(index)])


def _variables(policy: Any) -> dict[str, keras.Variable]:
    names = (*_TRAINED, *_STATE, *_LATER)
    # Keras does not save the state of a seed generator, and a resumed search draws on from it.
    random = {"random_state": policy.random.state}
    return {name: getattr(policy, name) for name in names} | policy.seen.variables | random
