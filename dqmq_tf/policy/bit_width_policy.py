"""The policy: from the quality embedding to a bit-width for each decision point."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.policy import discrete_gaussian
from dqmq_tf.policy.curvature import follow_curvature
from dqmq_tf.policy.decision_tensor import FIELDS, SLOPE, draw_fields, without_contrast
from dqmq_tf.policy.int8_arithmetic import DECIDER_BITS, fake_int8
from dqmq_tf.policy.levels import to_bits
from dqmq_tf.policy.policy_state import FROZEN, MAX_PROFILES, SETTLED, PolicyState


@keras.saving.register_keras_serializable(package="dqmq_tf")
class BitWidthPolicy(PolicyState):
    """Draws the bit-widths of all decision points from learned distributions.

    Decision point p has a discretized Gaussian with mean `m_p + <v_p, z>`, where `z` is the quality
    embedding. Activation bits are drawn for each sample. Weight bits are drawn for each group of
    samples, at the mean embedding of the group. The samples are grouped by their score, the mean of
    `<v_p, z>` over all decision points: the number of bits that the policy gives them above the
    static mean.

    The method follows Wang et al. 2023, "Data Quality-aware Mixed-precision Quantization via Hybrid
    Reinforcement Learning", arXiv 2302.04453.

    The policy has three phases:

    - `"search"`: training draws bit-widths, inference takes the most likely ones.
    - `"settled"`: weight bits are assigned to each profile, activation bits follow each sample.
    - `"frozen"`: all bits are assigned to each profile.

    Args:
        activations: The candidates of each activation decision point, tuples of bit-widths.
        weights: The candidates of each weight decision point, tuples of bit-widths.
        groups: The number of groups of samples that draw their own weight bits during the search.
        initial_sigma: The width of the distributions at the start, in bits.
        quality_aware: Whether the means depend on the embedding.
        seed: The seed of the draws and of the initial directions `v_p`.

    Attributes:
        pathwise: Whether the task loss moves the means through the relaxation between neighbors.
        curvature: Whether the differences between samples follow the curvature of the loss; see
            `dqmq_tf.policy.curvature`.

    Input shape: the embedding `z`, `[B, d]`. Output: a dictionary with these tensors.

    - `activations`: the decision tensor `[B, Pa, fields]`; see `dqmq_tf.policy.decision_tensor`.
    - `weights`: the decision tensor `[G, Pw, fields]`.
    - `group`: the group of each sample, int32, `[B]`.
    - `order`: the permutation that the batch must be put in first, int32, `[B]`; empty if the batch
      keeps its order.
    - `embedding`: the embedding in that order, `[B, d]`.

    Example:

    >>> policy = BitWidthPolicy(activations=[(4, 8)], weights=[(2, 4, 8), (8,)])
    >>> decision = policy(encoder(images), training=True)
    """

    pathwise = True
    curvature = True

    def call(self, z: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        searching = self.is_searching
        if training:
            # Once bits are settled, embeddings matter only if activation bits still vary per sample.
            always = self.per_sample and self.bits_vary_by == "sample"
            self.seen.add(z, True if always else searching)
        if searching is False:
            return self._assigned_decision(z, self.phase)
        searched = self._drawn_decision(z) if training else self._most_likely_decision(z)
        if searching is True:
            return searched
        assigned = self._assigned_decision(z, SETTLED)
        for points in ("activations", "weights"):
            assigned[points] = without_contrast(assigned[points], searched[points].shape[-1])
        # All but the decisions and the embedding has the same values, as there is one group.
        selected = {
            name: ops.where(searching, searched[name], assigned[name])
            for name in ("activations", "weights", "embedding")
        }
        return searched | selected

    def compute_output_spec(self, z: Any, training: bool = False) -> dict[str, keras.KerasTensor]:
        batch = z.shape[0]
        return {
            "activations": keras.KerasTensor((batch, self.activation_count, FIELDS)),
            "weights": keras.KerasTensor((self.groups, len(self.weight_candidates), FIELDS)),
            "group": keras.KerasTensor((batch,), dtype="int32"),
            "order": keras.KerasTensor((None,), dtype="int32"),
            "embedding": keras.KerasTensor(z.shape),
        }

    def bit_operations(self, embedding_size: int, profiles: int) -> int:
        """Returns the bit operations per input for the activation means and the profile.

        Args:
            embedding_size: The length d of the embedding.
            profiles: The number of precision profiles. One needs no choice.
        """
        products = self.activation_count + (profiles > 1)
        return DECIDER_BITS**2 * embedding_size * products

    def means(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the mean levels, clipped to the candidates.

        Args:
            z: The embeddings, shape `[B, d]`.

        Returns:
            A tensor of shape `[B, P]`, activations before weights. Its gradient ignores the clip,
            so that a mean beyond the candidates can come back.
        """
        unclipped = self.mean + ops.matmul(z, ops.transpose(fake_int8(self.direction)))
        clipped = ops.clip(unclipped, self.lowest, self.highest)
        return unclipped + ops.stop_gradient(clipped - unclipped)

    def bits_at(self, levels: np.ndarray) -> np.ndarray:
        """Returns the bit-widths at levels, such as those of `means`, for reports."""
        return to_bits(levels)

    def searched_means(self, z: tf.Tensor) -> tf.Tensor:
        """Returns `means` with a gradient only to what the terms of the objective train.

        With `curvature`, that is the static part. The differences between samples then have a
        gradient of their own.
        """
        means = self.means(z)
        return self.mean + ops.stop_gradient(means - self.mean) if self.curvature else means

    def score(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the bits above the static mean, averaged over decision points, shape `[B]`."""
        return ops.matmul(z, ops.mean(self.direction, axis=0))

    def baseline(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the learned expected task loss, shape `[B]`, without a gradient to `z`."""
        z = ops.stop_gradient(z)
        return ops.sum(z * self.baseline_direction, axis=-1) + self.baseline_bias

    def sigma(self) -> tf.Tensor:
        """Returns the current widths of the distributions in bits, shape `[P]`."""
        return ops.exp(self.log_sigma) * self.temperature

    def log_probabilities(self, means: tf.Tensor) -> tf.Tensor:
        """Returns the log-probabilities, shape `[B, P, K]`, for means of shape `[B, P]`."""
        return discrete_gaussian.log_probabilities(means, self.sigma(), self.levels, self.allowed)

    def group_means(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the means at the mean embedding of each group, shape `[G, P]`.

        Args:
            z: The embeddings of a sorted batch, shape `[B, d]`.
        """
        return self.means(self.followed(self._group_embeddings(z), self.groups))

    def followed(self, z: tf.Tensor, groups: int) -> tf.Tensor:
        """Returns the embeddings that the weight bits of groups follow.

        They are zero if nothing differs between samples. The mean embedding of all samples does not
        describe a quality and would only shift static bits at random.

        Args:
            z: The mean embeddings of the groups, shape `[N, d]`.
            groups: The number of groups.
        """
        return z if groups > 1 or self.activation_count else ops.zeros_like(z)

    def _group_embeddings(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the mean embedding of each group of a sorted batch, shape `[G, d]`."""
        share = ops.shape(z)[0] // self.groups
        cuts = [g * share for g in range(self.groups)] + [None]
        parts = [z[start:stop] for start, stop in zip(cuts, cuts[1:])]
        counts = [ops.maximum(ops.cast(ops.shape(part)[0], "float32"), 1.0) for part in parts]
        return ops.stack([ops.sum(part, axis=0) / count for part, count in zip(parts, counts)])

    def _drawn_decision(self, z: tf.Tensor) -> dict[str, tf.Tensor]:
        order = ops.zeros((0,), "int32")
        if self.groups > 1:
            order = ops.cast(ops.argsort(ops.stop_gradient(self.score(z))), "int32")
            # No group may be empty, so a batch with fewer samples than groups repeats some.
            batch = ops.shape(z)[0]
            rows = ops.arange(ops.maximum(batch, self.groups)) % ops.maximum(batch, 1)
            order = ops.take(order, rows)
            z = ops.take(z, order, axis=0)
        count = self.activation_count
        share = ops.shape(z)[0] // self.groups
        # The same split as in `QuantizeWrapper`: equal shares, the last one takes the remainder.
        group = ops.minimum(ops.arange(ops.shape(z)[0]) // ops.maximum(share, 1), self.groups - 1)
        self._update_groups(z)
        return {
            "activations": self._draw(self.searched_means(z), slice(None, count), z),
            "weights": self._draw(self.group_means(z), slice(count, None)),
            "group": ops.cast(group, "int32"),
            "order": order,
            "embedding": z,
        }

    def _draw(self, means: tf.Tensor, points: slice, z: tf.Tensor | None = None) -> tf.Tensor:
        """Returns a decision tensor with all fields for some of the decision points.

        Args:
            means: The means of all decision points, shape `[B, P]`.
            points: The decision points to draw for.
            z: The embeddings, shape `[B, d]`, if the differences between samples may follow the
                curvature.
        """
        means, allowed = means[:, points], self.allowed[points]
        if allowed.shape[0] == 0:
            return ops.zeros((ops.shape(means)[0], 0, FIELDS))
        fixed = ops.stop_gradient(means)
        uniform = keras.random.uniform(ops.shape(means), seed=self.random)
        constants = draw_fields(
            fixed, self.sigma()[points], self.levels, allowed, uniform, self.bit_widths
        )
        mean = means if self.pathwise else fixed
        if self.curvature and self.quality_aware and z is not None:
            offset = (self.means(z) - self.mean)[:, points]
            followed = follow_curvature(offset, constants[SLOPE], self.loss_scale.value)
            # Adds zero, with the gradient of `follow_curvature`.
            mean = mean + followed - ops.stop_gradient(offset)
        return ops.stack([*constants, mean], axis=-1)

    def _most_likely_decision(self, z: tf.Tensor) -> dict[str, tf.Tensor]:
        count = self.activation_count
        followed = self.followed(self.centroids[: self.groups], self.groups)
        return {
            "activations": self._mode(self.means(z)[:, :count], slice(None, count)),
            "weights": self._mode(self.means(followed)[:, count:], slice(count, None)),
            "group": self.assign(z, self.groups),
            "order": ops.zeros((0,), "int32"),
            "embedding": z,
        }

    def _assigned_decision(self, z: tf.Tensor, phase: str) -> dict[str, tf.Tensor]:
        count, profiles = self.activation_count, self.profiles
        group = self.assign(z, profiles)
        assigned = ops.stop_gradient(self.assigned[:profiles])
        if phase == SETTLED and self.quality_aware and self.per_sample:
            activations = self._mode((self.means(z) + self.shift)[:, :count], slice(None, count))
        else:
            activations = ops.expand_dims(ops.take(assigned[:, :count], group, axis=0), -1)
        # The quality normalization gets the embedding of each sample, or of its frozen profile.
        embedding = ops.take(self.centroids, group, axis=0) if phase == FROZEN else z
        return {
            "activations": ops.stop_gradient(activations),
            "weights": ops.expand_dims(assigned[:, count:], -1),
            "group": group,
            "order": ops.zeros((0,), "int32"),
            "embedding": ops.stop_gradient(embedding),
        }

    def _mode(self, means: tf.Tensor, points: slice) -> tf.Tensor:
        """Returns the most likely bit-widths of some decision points, shape `[B, points, 1]`.

        Args:
            means: The means of these decision points, shape `[B, points]`.
            points: The decision points.
        """
        allowed = self.allowed[points]
        if allowed.shape[0] == 0:
            return ops.zeros((ops.shape(means)[0], 0, 1))
        index = discrete_gaussian.mode(means, self.levels, allowed)
        return ops.expand_dims(ops.take(self.bit_widths, index), -1)

    def assign(self, z: tf.Tensor, groups: int) -> tf.Tensor:
        """Assigns each sample to a group by the thresholds on its score.

        Args:
            z: The embeddings, shape `[B, d]`.
            groups: The number of groups.

        Returns:
            The index of the group of each sample, an int32 tensor of shape `[B]`.
        """
        if groups == 1:
            return ops.zeros((ops.shape(z)[0],), "int32")
        is_above = ops.expand_dims(self.score(z), -1) > self.thresholds[: groups - 1]
        return ops.sum(ops.cast(is_above, "int32"), axis=-1)

    def set_groups(self, thresholds: np.ndarray, centroids: np.ndarray) -> None:
        """Sets the groups of inference, from the lowest score to the highest.

        Args:
            thresholds: The scores that separate the groups, ascending, shape `[groups - 1]`.
            centroids: The mean embedding of each group, shape `[groups, d]`.
        """
        padded = np.full(MAX_PROFILES - 1, 1e9, "float32")
        padded[: len(thresholds)] = thresholds
        self.thresholds.assign(padded)
        self.centroids.assign(np.resize(np.asarray(centroids, "float32"), self.centroids.shape))

    def _update_groups(self, z: tf.Tensor) -> None:
        """Moves the groups of inference towards those of a sorted batch."""
        if self.groups == 1:
            return
        z = ops.stop_gradient(z)
        share = ops.shape(z)[0] // self.groups
        score = self.score(z)
        cuts = ops.stack([score[g * share] for g in range(1, self.groups)])
        padding = ops.full((MAX_PROFILES - self.groups,), 1e9)
        # The first batch sets the groups.
        momentum = 0.95 * ops.cast(ops.any(self.centroids != 0.0), "float32")
        thresholds = self.thresholds[: self.groups - 1] * momentum + cuts * (1.0 - momentum)
        self.thresholds.assign(ops.concatenate([thresholds, padding]))
        embeddings = self._group_embeddings(z)
        centroids = self.centroids[: self.groups] * momentum + embeddings * (1.0 - momentum)
        unused = self.centroids[self.groups :]
        self.centroids.assign(ops.concatenate([centroids, unused]))
