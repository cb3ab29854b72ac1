"""One step of the policy's search: the terms beside the task loss, and what moves with them."""

import numpy as np
from keras import ops

from dqmq_tf.policy import discrete_gaussian
from dqmq_tf.training import objective

# Bits by which a mean can move in a search in which all gradients agree. What does not agree moves it
# too, at random, and it starts near where it belongs. In bytes it starts at whole bits, and has to be
# moved by half of one to make another.
_REACH, _REACH_IN_BYTES = 1.5, 0.75


class PolicySearch:
    """Computes the policy's terms of the hybrid objective and applies their gradients.

    Args:
        parts: The `ModelParts`, for policy, cost model, budget and configuration.
    """

    def __init__(self, parts):
        self._parts = parts
        self.policy, self.costs, self.config = parts.policy, parts.costs, parts.config

    @property
    def term_names(self):
        """Names of the terms that `terms` returns."""
        on = self.config.terms
        names = ["score_function", "baseline"] if on.score_function else []
        return [*names, *["model_cost"] * on.model_cost, *["entropy"] * on.entropy]

    @property
    def budget(self):
        # A default budget is set once costs are known, and a keeper may raise it.
        return self._parts.budget

    def progress(self):
        """Returns the share of the training that is done; 0.5 where its length is unknown."""
        step, total = self.policy.search_step, self.policy.search_total
        return ops.where(total > 0, step / ops.maximum(total, 1.0), 0.5)

    def rate(self, total_steps):
        """Returns the learning rate that suits the policy to a training of so many steps."""
        searched = total_steps * (self.config.settle - self.config.warmup)
        reach = _REACH_IN_BYTES if self.costs.in_bytes else _REACH
        return float(np.clip(reach / searched, 0.002, 0.05))

    def terms(self, result, losses):
        """Returns `{name: scalar}` of the terms that are on, in the order of `objective`.

        Args:
            result: Output of the instrumented model in training.
            losses: Task loss `[B]` of each sample in the order of the batch as it came, or None.
        """
        policy, config = self.policy, self.config
        z, group = result["embedding"], result["group"]
        count = policy.activation_count
        log_p = policy.log_probabilities(policy.searched_means(z))[:, :count]
        group_log_p = policy.log_probabilities(policy.group_means(z))[:, count:]
        terms = {}
        if config.terms.score_function and losses is not None:
            if result["order"].shape[0] != 0:
                losses = ops.take(losses, result["order"], axis=0)
            by_group = _log_p_of(group_log_p, result["weights"], policy.bit_widths)
            drawn = _log_p_of(log_p, result["activations"], policy.bit_widths)
            drawn = drawn + ops.take(by_group, group, axis=0)
            term, error = objective.score_function(
                losses, drawn, policy.baseline(z), policy.advantage_scale
            )
            spread = ops.sqrt(ops.stop_gradient(error)) + 1e-6
            policy.advantage_scale.assign(0.95 * policy.advantage_scale + 0.05 * spread)
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
            warm = self.progress() >= config.warmup
            policy.multiplier.assign(ops.where(warm, ascended, policy.multiplier))
        if config.terms.entropy:
            both = ops.concatenate([log_p, ops.take(group_log_p, group, axis=0)], axis=1)
            entropies = discrete_gaussian.entropy(both)
            terms["entropy"] = objective.entropy_bonus(entropies, config.entropy_coefficient)
        return terms, expected

    def expected_cost(self, log_p, group_log_p, group):
        """Returns the expected cost of the batch under the distributions, differentiable."""
        grid = self.policy.bit_widths
        member = ops.one_hot(group, self.policy.groups, dtype="float32")
        share = ops.maximum(ops.sum(member, axis=0), 1.0)
        bits = ops.matmul(ops.transpose(member), discrete_gaussian.expectation(log_p, grid))
        return self.costs.expected(
            ops.exp(group_log_p),
            bits / ops.expand_dims(share, -1),
            grid,
            self.policy.byte_table.value,
        )

    def gated(self, pairs):
        """Returns `{id of variable: gradient}` of the pairs that have one.

        The policy waits for the end of the warm-up, and all else for the supervised term.
        """
        started = ops.cast(self.progress() >= self.config.warmup, "float32")
        policy = {id(variable) for variable in self.policy.trainable_variables}
        found = {id(variable): g for g, variable in pairs if g is not None}
        for key, gradient in found.items():
            if key in policy:
                found[key] = gradient * started
            elif not self.config.terms.supervised:
                found[key] = ops.zeros_like(gradient)
        return found

    def advance(self):
        """Moves the schedule of the search by one step."""
        policy, config = self.policy, self.config
        policy.search_step.assign(policy.search_step + 1.0)
        progress = self.progress()
        searched = (progress - config.warmup) / (config.settle - config.warmup)
        narrowed = 1.0 - ops.clip(searched, 0.0, 1.0) * (
            1.0 - config.final_sigma / config.initial_sigma
        )
        policy.temperature.assign(narrowed)


def mean_bits(result, costs):
    """Returns the executed bits of a decision, averaged over weights by their count."""
    sizes = ops.convert_to_tensor(costs.sizes, "float32")
    bits = ops.mean(result["weights"][:, :, 0], axis=0)
    return ops.sum(bits * sizes) / ops.sum(sizes)


def _log_p_of(log_p, decision, grid):
    """Sums the log-probability of the executed bit-widths over decision points: `[B]` or `[G]`."""
    executed = ops.expand_dims(ops.stop_gradient(decision[:, :, 0]), -1)
    hit = ops.cast(ops.equal(executed, grid), "float32")
    return ops.sum(ops.where(hit > 0, log_p, 0.0), axis=(1, 2))
