"""How a policy is saved: by the names of its variables, so that their order may change."""

from __future__ import annotations

import typing
from typing import Any

import keras
import numpy as np
from keras import ops

if typing.TYPE_CHECKING:
    from dqmq_tf.policy.policy_state import PolicyState

# Older files have numbers in place of names. They hold the variables in this order: the trainable
# ones first, then the others.
_TRAINABLE = ("mean", "log_sigma", "direction", "baseline_direction", "baseline_bias")
_STATE = (
    "byte_table", "loss_table", "temperature", "loss_scale", "multiplier", "advantage_scale",
    "search_step", "search_total", "shift", "thresholds", "centroids", "assigned",
)  # fmt: skip
# Older files do not hold these.
_NEWER = ("phase_index", "profile_count", "file_bytes")
# Files from before there were two tables hold one, in which each weight tensor uses the decoder where
# this saves bytes.
_LATEST = ("coded_byte_table",)
# Only policies of models whose activations have 8 or 16 bits, and whose budget is in cycles, have it.
_CYCLES = "activation_cycles"


def save(policy: PolicyState, store: Any) -> None:
    """Writes all variables of a policy to a Keras store."""
    for name, variable in _variables(policy).items():
        store[name] = ops.convert_to_numpy(variable)
    if policy.activation_cycles is not None:
        store[_CYCLES] = policy.activation_cycles


def load(policy: PolicyState, store: Any) -> None:
    """Reads the variables of a policy from a Keras store, by name or in the order of older files."""
    variables = _variables(policy)
    if _CYCLES in store.keys():
        policy.activation_cycles = np.asarray(store[_CYCLES], "float32")
    if "mean" in store.keys():
        for name, variable in variables.items():
            if name not in _LATEST or name in store.keys():
                variable.assign(store[name])
            else:
                variable.assign(store[name.removeprefix("coded_")])
        return
    # Older files do not hold the state of the random generator, so draws start again at the seed.
    trainable = [name for name in _TRAINABLE if name != "direction" or policy.quality_aware]
    others = [name for name in ("direction", *_STATE) if name not in trainable]
    for index, name in enumerate([*trainable, *others, "reservoir", "reservoir_fill"]):
        variables[name].assign(store[str(index)])
    policy.coded_byte_table.assign(policy.byte_table)


def _variables(policy: PolicyState) -> dict[str, keras.Variable]:
    names = (*_TRAINABLE, *_STATE, *_NEWER, *_LATEST)
    # Keras does not save the state of a seed generator. A resumed search must continue its draws.
    random = {"random_state": policy.random.state}
    return {name: getattr(policy, name) for name in names} | policy.seen.variables | random
