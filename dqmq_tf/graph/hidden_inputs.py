"""Finds layers whose outputs at inference depend on more than their inputs.

Such a layer draws random numbers, or changes a variable at each call. A file can hold neither.
Keras's own layers do so in training only, so those are not looked at.
"""

from __future__ import annotations

import re
import typing
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from dqmq_tf.graph.cloning import layers_inside, runs_custom_code
from dqmq_tf.graph.trial_runs import call_at_inference, random_inputs

if typing.TYPE_CHECKING:
    from dqmq_tf.graph.graph import Graph, Node

RANDOM = "it draws random numbers at inference"
_RANDOM_OPERATOR = re.compile(r"Random|TruncatedNormal|StandardNormal|Multinomial|Rng")
_ASSIGNMENT = re.compile(r"Assign\w*Variable")
# A graph is looked at again whenever its file is measured.
_FOUND: weakref.WeakKeyDictionary[Any, str | None] = weakref.WeakKeyDictionary()


def hidden_input(graph: Graph, node: Node) -> str | None:
    """Returns what a node does at each call, besides computing outputs from its inputs.

    Args:
        graph: The graph.
        node: The node.

    Returns:
        `RANDOM`, a description of another change of state, or None if there is nothing.
    """
    if not any(map(runs_custom_code, layers_inside(node.layer))):
        return None
    if node.layer not in _FOUND:
        try:
            _FOUND[node.layer] = _trace(graph, node)
        except Exception:  # A layer of the user's own may not take such inputs.
            _FOUND[node.layer] = None
    return _FOUND[node.layer]


def _trace(graph: Graph, node: Node) -> str | None:
    """Returns what a call of a node does, see `hidden_input`. Its variables do not change."""
    changed: list[str] = []

    @tf.function(autograph=False)
    def call() -> Any:
        # The scope takes the values that Keras's variables would get, and the losses.
        with keras.StatelessScope(collect_losses=True) as scope:
            outputs = call_at_inference(node, random_inputs(graph, node))
        changed.extend(variable.name for variable in _updated(scope, node.layer))
        return outputs

    operators = list(_operators(call.get_concrete_function().graph))
    if any(map(_RANDOM_OPERATOR.search, operators)):
        return RANDOM
    if changed:
        return f"it changes its variable {changed[0]!r} at inference"
    if any(map(_ASSIGNMENT.match, operators)):
        return "it changes a variable at inference"
    return None


def _updated(scope: keras.StatelessScope, layer: Any) -> list[Any]:
    """Returns the variables of a layer that got a new value in a scope."""
    variables = (*layer.variables, *layer.metrics_variables)
    return [v for v in variables if scope.get_current_value(v) is not None]


def _operators(graph: Any) -> Iterator[str]:
    """Yields the kinds of all operators in a graph and in the functions that it calls."""
    definition = graph.as_graph_def()
    for node in definition.node:
        yield node.op
    for function in definition.library.function:
        for node in function.node_def:
            yield node.op
