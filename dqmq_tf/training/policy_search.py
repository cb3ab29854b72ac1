"""One step of the policy's search: the terms beside the task loss, and what each step updates."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.budget.costs import CostModel
from dqmq_tf.config import Budget
from dqmq_tf.policy import discrete_gaussian
from dqmq_tf.training import objective

# How far a mean can move during the search, in bits, if all gradients agree. Noise moves it as well,
# and it starts close to its optimum, so little is needed. Under a byte budget it starts at whole
# bits, so it has to move by half a bit to change a choice.
_REACH, _REACH_IN_BYTES = 1.5, 0.75
# The learning rate for a training of unknown length.
_UNPLANNED_RATE = 0.01


class PolicySearch:
    """Computes the policy's terms of the hybrid objective and advances the schedule of the search.

    Args:
        parts: The `ModelParts`. Policy, cost model, budget and configuration are read from it.
    """

    def __init__(self, parts: Any) -> None:
        self._parts = parts
        self.policy, self.config = parts.policy, parts.config
        self.costs: CostModel = parts.costs

    @property
    def term_names(self) -> list[str]:
        """The names of the terms that `terms` returns."""
        terms = self.config.terms
        names = ["score_function", "baseline"] if terms.score_function else []
        if terms.model_cost:
            names.append("model_cost")
        if terms.entropy:
            names.append("entropy")
        return names

    @property
    def budget(self) -> Budget:
        # Read each time: a default budget is set only once costs are known, and `BudgetKeeper` may
        # raise it.
        return self._parts.budget

    def progress(self) -> Any:
        """Returns the share of the training that is done, 0.5 if its length is unknown."""
        step, total = self.policy.search_step, self.policy.search_total
        return ops.where(total > 0, step / ops.maximum(total, 1.0), 0.5)

    def rate(self, total_steps: float) -> float:
        """Returns the learning rate of the policy for a training of `total_steps` steps, 0 if unknown."""
        if not total_steps:
            return _UNPLANNED_RATE
        search_steps = total_steps * (self.config.settle - self.config.warmup)
        reach = _REACH if self.costs.counts_activations else _REACH_IN_BYTES
        return float(np.clip(reach / search_steps, 0.002, 0.05))

    def terms(
        self, result: dict[str, Any], losses: tf.Tensor | None, searching: bool | tf.Tensor = True
    ) -> tuple[dict[str, Any], Any]:
        """Returns the terms of the objective that are switched on, and the expected cost.

        Args:
            result: The output of the instrumented model in training.
            losses: The task loss of each sample, shape `[B]`, in the order in which the batch came
                in, or a scalar that holds for all of them. None if it is unknown, which leaves out the
                score function.
            searching: Whether the bits are still being learned, a bool or a scalar tensor. If not,
                the terms are 0.

        Returns:
            `(terms, expected cost)`: a dictionary `{name: scalar}` in the order of `objective`, and a
            scalar.
        """
        policy, config = self.policy, self.config
        z, group = result["embedding"], result["group"]
        count = policy.activation_count
        log_p = policy.log_probabilities(policy.searched_means(z))[:, :count]
        group_log_p = policy.log_probabilities(policy.group_means(z))[:, count:]
        terms: dict[str, Any] = {}
        if config.terms.score_function and losses is not None:
            # A loss that reduces a batch to one value is the same for all samples, in any order.
            if result["order"].shape[0] != 0 and len(losses.shape):
                losses = ops.take(losses, result["order"], axis=0)
            weights_log_p = _executed_log_p(group_log_p, result["weights"], policy.bit_widths)
            decision_log_p = _executed_log_p(log_p, result["activations"], policy.bit_widths)
            decision_log_p = decision_log_p + ops.take(weights_log_p, group, axis=0)
            term, error = objective.score_function(
                losses, decision_log_p, policy.baseline(z), policy.advantage_scale
            )
            spread = ops.sqrt(ops.stop_gradient(error)) + 1e-6
            moved = 0.95 * policy.advantage_scale + 0.05 * spread
            policy.advantage_scale.assign(ops.where(searching, moved, policy.advantage_scale))
            terms["score_function"] = config.score_coefficient * term
            terms["baseline"] = error
        expected = self.expected_cost(log_p, group_log_p, group)
        if config.terms.model_cost:
            terms["model_cost"] = objective.model_cost(
                expected, self.budget.value, policy.multiplier
            )
            ascended = objective.dual_ascent(
                policy.multiplier, ops.stop_gradient(expected), self.budget.value
            )
            is_warm = ops.logical_and(self.progress() >= config.warmup, searching)
            policy.multiplier.assign(ops.where(is_warm, ascended, policy.multiplier))
        if config.terms.entropy:
            all_log_p = ops.concatenate([log_p, ops.take(group_log_p, group, axis=0)], axis=1)
            entropies = discrete_gaussian.entropy(all_log_p)
            terms["entropy"] = objective.entropy_bonus(entropies, config.entropy_coefficient)
        return {name: ops.where(searching, term, 0.0) for name, term in terms.items()}, expected

    def expected_cost(self, log_p: tf.Tensor, group_log_p: tf.Tensor, group: tf.Tensor) -> Any:
        """Returns the expected cost of the batch under the distributions, differentiable.

        Args:
            log_p: Log-probabilities of the activation bits, shape `[B, Pa, K]`.
            group_log_p: Log-probabilities of the weight bits of each group, shape `[G, Pw, K]`.
            group: The group of each sample, shape `[B]`.
        """
        grid = self.policy.bit_widths
        member = ops.one_hot(group, self.policy.groups, dtype="float32")
        group_sizes = ops.maximum(ops.sum(member, axis=0), 1.0)
        bits = ops.matmul(ops.transpose(member), discrete_gaussian.expectation(log_p, grid))
        return self.costs.expected(
            ops.exp(group_log_p),
            bits / ops.expand_dims(group_sizes, -1),
            grid,
            self.policy.byte_table.value,
            self.policy.coded_byte_table.value,
        )

    def gated(self, pairs: Iterable[tuple[Any, Any]]) -> dict[int, Any]:
        """Returns `{id of variable: gradient}` of the variables that have a gradient.

        The policy's gradients are zero during the warm-up. All others are zero if the supervised
        term is switched off.

        Args:
            pairs: `(gradient, variable)` for each variable. The gradient may be None.
        """
        started = ops.cast(self.progress() >= self.config.warmup, "float32")
        policy_ids = {id(variable) for variable in self.policy.trainable_variables}
        gradients = {id(variable): g for g, variable in pairs if g is not None}
        for key, gradient in gradients.items():
            if key in policy_ids:
                gradients[key] = gradient * started
            elif not self.config.terms.supervised:
                gradients[key] = ops.zeros_like(gradient)
        return gradients

    def advance(self, searching: bool | tf.Tensor = True) -> None:
        """Advances the search by one step and narrows the distributions accordingly.

        Args:
            searching: Whether the search goes on, a bool or a scalar tensor.
        """
        policy, config = self.policy, self.config
        policy.search_step.assign(policy.search_step + ops.cast(searching, "float32"))
        progress = self.progress()
        search_share = (progress - config.warmup) / (config.settle - config.warmup)
        temperature = 1.0 - ops.clip(search_share, 0.0, 1.0) * (
            1.0 - config.final_sigma / config.initial_sigma
        )
        policy.temperature.assign(ops.where(searching, temperature, policy.temperature))


def mean_bits(result: dict[str, Any], costs: CostModel) -> tf.Tensor:
    """Returns the weight bits of a decision, averaged over all weights of the network.

    Args:
        result: The output of the instrumented model.
        costs: The `CostModel`, for the number of weights of each point.
    """
    sizes = ops.convert_to_tensor(costs.sizes, "float32")
    bits = ops.mean(result["weights"][:, :, 0], axis=0)
    return ops.sum(bits * sizes) / ops.sum(sizes)


def _executed_log_p(log_p: tf.Tensor, decision: tf.Tensor, grid: np.ndarray) -> tf.Tensor:
    """Returns the log-probability of the executed bits, summed over points: `[B]` or `[G]`."""
    executed = ops.expand_dims(ops.stop_gradient(decision[:, :, 0]), -1)
    is_executed = ops.cast(ops.equal(executed, grid), "float32")
    return ops.sum(ops.where(is_executed > 0, log_p, 0.0), axis=(1, 2))
