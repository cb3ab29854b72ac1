"""Assignments of bits to the decision points of a network, and models that are fixed at them."""

import re

import dqmq_tf
from dqmq_tf import graph as graphs
from dqmq_tf import targets
from dqmq_tf.budget.costs import CostModel
from dqmq_tf.graph import decision_points, splitting

END_BITS = 8


def cost_model(model, kind="mean_bit_width", target="simulation"):
    """Returns the `CostModel` of a float network, which knows its points and the cost of their bits.

    Args:
        model: A float Keras model.
        kind: Kind of budget.
        target: Name of a deployment target.
    """
    body, _ = splitting.split_layers(model)
    graph = graphs.inline(graphs.trace_nested(body))
    place = targets.get(target)
    activations, weights = decision_points.find_points(graph, place, dqmq_tf.DQMQConfig())
    return CostModel(kind, place, activations, weights)


def uniform(costs, weight_bits, activation_bits):
    """Returns an assignment of uniform bits, with the first and the last layer at 8 bits.

    Args:
        costs: The `CostModel` of the network.
        weight_bits, activation_bits: Bits of the weights and inputs of all other layers.

    Returns:
        `{point name: bits}`. Weights are named `"layer:kernel"`, activations by the layer or the model
        input that produces them. The inputs of the first and the last layer have 8 bits as well.
    """
    ends = costs.weights[0], costs.weights[-1]
    bits = {costs.activations[i].name: activation_bits for i in costs.decided}
    bits |= {point.name: weight_bits for point in costs.weights}
    for point in ends:
        bits[point.name] = END_BITS
        if costs.activations[point.input].decided:
            bits[costs.activations[point.input].name] = END_BITS
    return bits


def cost(costs, bits):
    """Returns the cost of an assignment, in the unit of the cost model."""
    return costs.exact(*ordered(costs, bits))


def rules(bits):
    """Returns `LayerRule`s that allow each point only the bits assigned to it."""
    found = {}
    for name, width in bits.items():
        path, _, variable = name.partition(":")
        kind = "weight_bits" if variable else "activation_bits"
        found.setdefault(path, {})[kind] = (int(width),)
    return tuple(
        dqmq_tf.LayerRule(pattern=re.escape(path), **candidates)
        for path, candidates in found.items()
    )


def ordered(costs, bits):
    """Returns an assignment as `(weight bits, activation bits)`, two lists in the cost model's order."""
    activations = [bits[costs.activations[i].name] for i in costs.decided]
    return [bits[point.name] for point in costs.weights], activations


def fixed(model, bits, target, seed):
    """Returns a `DQMQModel` that trains by LSQ (arXiv 1902.08153) at fixed bits.

    Args:
        model: A float Keras model.
        bits: `{point name: bits}`.
        target: Name of a deployment target.
        seed: Seed of the configuration.
    """
    config = dqmq_tf.DQMQConfig(
        rules=rules(bits), quality_aware=False, warmup=0.0, settle=0.01, seed=seed
    )
    # Each point has one candidate, so any budget that is large enough will do.
    budget = dqmq_tf.Budget(bit_ops=1e18)
    return dqmq_tf.quantize_model(model, target=target, budget=budget, config=config)
