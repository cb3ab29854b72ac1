"""The policy: from the quality embedding to a bit-width per decision point."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.policy import discrete_gaussian, stored_variables
from dqmq_tf.policy.curvature import follow_curvature
from dqmq_tf.policy.decision_tensor import FIELDS, SLOPE, draw_fields
from dqmq_tf.policy.int8_arithmetic import DECIDER_BITS, fake_int8
from dqmq_tf.policy.seen_embeddings import SeenEmbeddings

MAX_PROFILES = 4
PHASES = SEARCH, SETTLED, FROZEN = "search", "settled", "frozen"


@keras.saving.register_keras_serializable(package="dqmq_tf")
class BitWidthPolicy(keras.layers.Layer):
    """Owns the bit-width distributions and draws the decisions.

    Decision point p has a discretised Gaussian around `m_p + <v_p, z>`: activations per sample,
    weights per group of samples, around the group's mean embedding. Samples are put in groups by
    their score, the mean over all points of `<v_p, z>`: how many bits more than the static mean
    the policy gives them.

    Phases: `"search"`: draws in training, modes at inference. `"settled"`: weight bits are those
    assigned to each profile, activation bits follow the sample. `"frozen"`: all bits are assigned
    per profile.

    Args:
        activations, weights: Candidates of each decision point, tuples of bit-widths.
        groups: Groups of samples that draw weight bits of their own during the search.
        initial_sigma: Width of the distributions at the start, in bits.
        quality_aware: Whether the means depend on the embedding.
        seed: Of the draws.

    Input shape: embedding `[B, d]`. Output: a dictionary with
        `activations` `[B, Pa, fields]` and `weights` `[G, Pw, fields]`, decision tensors (see
        `dqmq_tf.policy.decision_tensor`); `group` `[B]`; `order` `[B]`, the permutation that the batch
        has to be put in first, empty for none; `embedding` `[B, d]` in that order.
    """

    def __init__(
        self,
        activations,
        weights,
        groups=1,
        initial_sigma=0.6,
        quality_aware=True,
        seed=0,
        **kwargs,
    ):
        super().__init__(**{**kwargs, "autocast": False})
        self.activation_candidates = [tuple(int(b) for b in point) for point in activations]
        self.weight_candidates = [tuple(int(b) for b in point) for point in weights]
        self.groups, self.initial_sigma, self.seed = groups, initial_sigma, seed
        self.quality_aware = quality_aware
        self.pathwise = self.curvature = True
        points = self.activation_candidates + self.weight_candidates
        grid = sorted({b for point in points for b in point})
        self.bit_widths = np.array(grid, "float32")
        self.allowed = np.array([[b in point for b in grid] for point in points], "float32")
        self.random = keras.random.SeedGenerator(seed)

    @property
    def activation_count(self):
        return len(self.activation_candidates)

    @property
    def point_count(self):
        return len(self.activation_candidates) + len(self.weight_candidates)

    @property
    def phase(self):
        """`"search"`, `"settled"` or `"frozen"`; a weight, so that it travels with the others."""
        return PHASES[int(_value(self.phase_index))] if self.built else SEARCH

    @phase.setter
    def phase(self, phase):
        self.phase_index.assign(float(PHASES.index(phase)))

    @property
    def profiles(self):
        """Number of precision profiles that bits are assigned to."""
        return int(_value(self.profile_count)) if self.built else 1

    @profiles.setter
    def profiles(self, count):
        self.profile_count.assign(float(count))

    @property
    def file_constant(self):
        """Bytes of the file that are not weights, or None until a file was measured."""
        found = float(_value(self.file_bytes))
        return found if found > 0 else None

    @file_constant.setter
    def file_constant(self, value):
        self.file_bytes.assign(0.0 if value is None else value)

    @property
    def bits_vary_by(self):
        """What bits differ by now: `"sample"`, `"profile"` or `"static"`."""
        if self.quality_aware and self.activation_candidates and self.phase != FROZEN:
            return "sample"
        return (
            "profile" if (self.groups if self.phase == SEARCH else self.profiles) > 1 else "static"
        )

    def build(self, input_shape):
        size, points = input_shape[-1], self.point_count
        low = np.array(
            [min(p) for p in self.activation_candidates + self.weight_candidates], "float32"
        )
        high = np.array(
            [max(p) for p in self.activation_candidates + self.weight_candidates], "float32"
        )
        self.mean = self.add_weight(
            name="mean",
            shape=(points,),
            initializer=lambda shape, dtype: ops.convert_to_tensor((low + high) / 2, dtype),
            constraint=_Between(low, high),
            dtype="float32",
        )
        self.log_sigma = self.add_weight(
            name="log_sigma",
            shape=(points,),
            initializer=keras.initializers.Constant(float(np.log(self.initial_sigma))),
            constraint=_Between(np.log(0.1), np.log(1.0)),
            dtype="float32",
        )
        self.direction = self.add_weight(
            name="direction",
            shape=(points, size),
            initializer=(
                keras.initializers.RandomNormal(stddev=0.05, seed=self.seed)
                if self.quality_aware
                else "zeros"
            ),
            trainable=self.quality_aware,
            dtype="float32",
        )

        def state(name, shape, initializer="zeros", aggregation="mean"):
            return self.add_weight(
                name=name, shape=shape, initializer=initializer, trainable=False, dtype="float32",
                aggregation=aggregation,
            )  # fmt: skip

        self.baseline_direction = self.add_weight(
            name="baseline_direction", shape=(size,), initializer="zeros", dtype="float32"
        )
        self.baseline_bias = self.add_weight(
            name="baseline_bias", shape=(), initializer="zeros", dtype="float32"
        )
        # Bytes of each weight point and candidate: measured, see `dqmq_tf.budget.costs`.
        self.byte_table = state("byte_table", (len(self.weight_candidates), len(self.bit_widths)))
        # What each of them adds to the loss, up to a factor; as long as nothing is known all kernels
        # matter alike, and a bit divides the error by four. See `dqmq_tf.budget.sensitivity`.
        alike = self.allowed[self.activation_count :] * 4.0**-self.bit_widths
        self.loss_table = state("loss_table", alike.shape, lambda shape, dtype: alike)
        self.temperature = state("temperature", (), "ones")
        self.loss_scale = state("loss_scale", (), "ones")
        self.multiplier = state("multiplier", ())
        self.advantage_scale = state("advantage_scale", (), "ones")
        self.search_step = state("search_step", (), aggregation="only_first_replica")
        self.search_total = state("search_total", (), aggregation="only_first_replica")
        self.shift = state("shift", ())
        self.thresholds = state("thresholds", (MAX_PROFILES - 1,))
        self.centroids = state("centroids", (MAX_PROFILES, size))
        self.assigned = state("assigned", (MAX_PROFILES, points))
        self.phase_index = state("phase", (), aggregation="only_first_replica")
        self.profile_count = state("profiles", (), "ones", aggregation="only_first_replica")
        self.file_bytes = state("file_bytes", (), aggregation="only_first_replica")
        self.seen = SeenEmbeddings(size)

    def call(self, z, training=False):
        # Settled bits hang on what is seen only where they follow each sample.
        if training and (self.phase == SEARCH or self.bits_vary_by == "sample"):
            self.seen.add(z)
        if self.phase != SEARCH:
            return self._assigned_decision(z)
        return self._drawn_decision(z) if training else self._likeliest_decision(z)

    def compute_output_spec(self, z, training=False):
        batch = z.shape[0]
        return {
            "activations": keras.KerasTensor((batch, self.activation_count, FIELDS)),
            "weights": keras.KerasTensor((self.groups, len(self.weight_candidates), FIELDS)),
            "group": keras.KerasTensor((batch,), dtype="int32"),
            "order": keras.KerasTensor((None,), dtype="int32"),
            "embedding": keras.KerasTensor(z.shape),
        }

    def bit_operations(self, embedding_size, profiles):
        """Returns the bit operations per input: of the activations' means and of the profile."""
        products = self.activation_count + (profiles > 1)
        return DECIDER_BITS**2 * embedding_size * products

    def means(self, z):
        """Returns the mean bit-width `[B, P]` of every decision point, activations first."""
        raw = self.mean + ops.matmul(z, ops.transpose(fake_int8(self.direction)))
        limits = [np.where(self.allowed > 0, self.bit_widths, fill) for fill in (99.0, -99.0)]
        inside = ops.clip(raw, limits[0].min(axis=1), limits[1].max(axis=1))
        # The gradient passes the clip, so that a sample at the end can come back.
        return raw + ops.stop_gradient(inside - raw)

    def searched_means(self, z):
        """Returns `means` with a gradient to what the terms of the objective move.

        With `curvature` that is the static part alone: how bits differ between images is its own.
        """
        means = self.means(z)
        return self.mean + ops.stop_gradient(means - self.mean) if self.curvature else means

    def score(self, z):
        """Returns the bits `[B]` that samples get above the static mean, averaged over points."""
        return ops.matmul(z, ops.mean(self.direction, axis=0))

    def baseline(self, z):
        """Returns the learned expected task loss `[B]`; its error does not train the embedding."""
        z = ops.stop_gradient(z)
        return ops.sum(z * self.baseline_direction, axis=-1) + self.baseline_bias

    def sigma(self):
        return ops.exp(self.log_sigma) * self.temperature

    def log_probabilities(self, means):
        """Returns `log p` `[B, P, K]` for the means of all decision points."""
        return discrete_gaussian.log_probabilities(
            means, self.sigma(), self.bit_widths, self.allowed
        )

    def group_means(self, z):
        """Returns means `[G, P]` at the mean embedding of each group of a sorted batch."""
        return self.means(self.followed(self._group_embeddings(z), self.groups))

    def followed(self, z, groups):
        """Returns the embeddings that the weights of groups follow, `[groups or N, d]`.

        The mean of all is no quality: where nothing differs between samples it would move static
        bits at random.
        """
        return z if groups > 1 or self.activation_count else ops.zeros_like(z)

    def _group_embeddings(self, z):
        share = ops.shape(z)[0] // self.groups
        cuts = [g * share for g in range(self.groups)] + [None]
        parts = [z[start:stop] for start, stop in zip(cuts, cuts[1:])]
        counts = [ops.maximum(ops.cast(ops.shape(part)[0], "float32"), 1.0) for part in parts]
        return ops.stack([ops.sum(p, axis=0) / n for p, n in zip(parts, counts)])

    def _drawn_decision(self, z):
        order = ops.zeros((0,), "int32")
        if self.groups > 1:
            order = ops.cast(ops.argsort(ops.stop_gradient(self.score(z))), "int32")
            # No group may be empty: a batch of fewer samples than groups holds some twice.
            batch = ops.shape(z)[0]
            rows = ops.arange(ops.maximum(batch, self.groups)) % ops.maximum(batch, 1)
            order = ops.take(order, rows)
            z = ops.take(z, order, axis=0)
        count = self.activation_count
        share = ops.shape(z)[0] // self.groups
        # As the wrapper cuts: equal shares, what is over in the last one.
        group = ops.minimum(ops.arange(ops.shape(z)[0]) // ops.maximum(share, 1), self.groups - 1)
        self._move_groups(z)
        return {
            "activations": self._draw(self.searched_means(z), slice(None, count), z),
            "weights": self._draw(self.group_means(z), slice(count, None)),
            "group": ops.cast(group, "int32"),
            "order": order,
            "embedding": z,
        }

    def _draw(self, means, which, z=None):
        """A decision tensor with all fields for some of the decision points.

        With embeddings `z` what they add to the means follows the curvature.
        """
        means, allowed = means[:, which], self.allowed[which]
        if allowed.shape[0] == 0:
            return ops.zeros((ops.shape(means)[0], 0, FIELDS))
        fixed = ops.stop_gradient(means)
        uniform = keras.random.uniform(ops.shape(means), seed=self.random)
        constants = draw_fields(fixed, self.sigma()[which], self.bit_widths, allowed, uniform)
        carried = means if self.pathwise else fixed
        if self.curvature and self.quality_aware and z is not None:
            offset = (self.means(z) - self.mean)[:, which]
            followed = follow_curvature(offset, constants[SLOPE], self.loss_scale.value)
            carried = carried + followed - ops.stop_gradient(offset)
        return ops.stack([*constants, carried], axis=-1)

    def _likeliest_decision(self, z):
        count = self.activation_count
        followed = self.followed(self.centroids[: self.groups], self.groups)
        return {
            "activations": self._mode(self.means(z)[:, :count], slice(None, count)),
            "weights": self._mode(self.means(followed)[:, count:], slice(count, None)),
            "group": self.assign(z, self.groups),
            "order": ops.zeros((0,), "int32"),
            "embedding": z,
        }

    def _assigned_decision(self, z):
        count, profiles = self.activation_count, self.profiles
        group = self.assign(z, profiles)
        assigned = ops.stop_gradient(self.assigned[:profiles])
        if self.phase == SETTLED and self.quality_aware:
            activations = self._mode((self.means(z) + self.shift)[:, :count], slice(None, count))
        else:
            activations = ops.expand_dims(ops.take(assigned[:, :count], group, axis=0), -1)
        return {
            "activations": ops.stop_gradient(activations),
            "weights": ops.expand_dims(assigned[:, count:], -1),
            "group": group,
            "order": ops.zeros((0,), "int32"),
            "embedding": ops.stop_gradient(self._assigned_embedding(z, group)),
        }

    def _assigned_embedding(self, z, group):
        """What the network is told of the quality: of each sample, or of its frozen profile."""
        return ops.take(self.centroids, group, axis=0) if self.phase == FROZEN else z

    def _mode(self, means, which):
        """The likeliest bits of some of the decision points, for their means `[B, points]`."""
        allowed = self.allowed[which]
        if allowed.shape[0] == 0:
            return ops.zeros((ops.shape(means)[0], 0, 1))
        return ops.expand_dims(
            ops.take(self.bit_widths, discrete_gaussian.mode(means, self.bit_widths, allowed)), -1
        )

    def assign(self, z, groups):
        """Returns the group `[B]` of each sample, by the thresholds on its score."""
        if groups == 1:
            return ops.zeros((ops.shape(z)[0],), "int32")
        above = ops.expand_dims(self.score(z), -1) > self.thresholds[: groups - 1]
        return ops.sum(ops.cast(above, "int32"), axis=-1)

    def set_groups(self, thresholds, centroids):
        """Sets the score thresholds and the mean embeddings of groups, from lowest to highest."""
        padded = np.full(MAX_PROFILES - 1, 1e9, "float32")
        padded[: len(thresholds)] = thresholds
        self.thresholds.assign(padded)
        self.centroids.assign(np.resize(np.asarray(centroids, "float32"), self.centroids.shape))

    def _move_groups(self, z):
        """Moves the groups of inference towards those of a sorted batch."""
        if self.groups == 1:
            return
        z = ops.stop_gradient(z)
        share = ops.shape(z)[0] // self.groups
        score = self.score(z)
        cuts = ops.stack([score[g * share] for g in range(1, self.groups)])
        padding = ops.full((MAX_PROFILES - self.groups,), 1e9)
        started = ops.cast(ops.any(self.centroids != 0.0), "float32")
        momentum = 0.95 * started
        moved = self.thresholds[: self.groups - 1] * momentum + cuts * (1.0 - momentum)
        self.thresholds.assign(ops.concatenate([moved, padding]))
        embeddings = self._group_embeddings(z)
        embeddings = self.centroids[: self.groups] * momentum + embeddings * (1.0 - momentum)
        spare = self.centroids[self.groups :]
        self.centroids.assign(ops.concatenate([embeddings, spare]))

    def save_own_variables(self, store):
        stored_variables.save(self, store)

    def load_own_variables(self, store):
        stored_variables.load(self, store)

    def get_config(self):
        return {
            **super().get_config(),
            "activations": self.activation_candidates,
            "weights": self.weight_candidates,
            "groups": self.groups,
            "initial_sigma": self.initial_sigma,
            "quality_aware": self.quality_aware,
            "seed": self.seed,
        }


def _value(variable):
    """The value of a variable, which can also be read while a TensorFlow function is traced."""
    with tf.init_scope():
        value = variable.value
        return ops.convert_to_numpy(value.values[0] if hasattr(value, "values") else value)


@keras.saving.register_keras_serializable(package="dqmq_tf")
class _Between(keras.constraints.Constraint):
    """Keeps a variable between two bounds."""

    def __init__(self, low, high):
        self.low, self.high = low, high

    def __call__(self, value):
        return ops.clip(value, self.low, self.high)
