"""What a policy knows and saves: its candidates, its variables and its phase."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.policy import stored_variables
from dqmq_tf.policy.levels import to_levels
from dqmq_tf.policy.seen_embeddings import SeenEmbeddings
from dqmq_tf.precision import KEEPS_PRECISION

MAX_PROFILES = 4
PHASES = SEARCH, SETTLED, FROZEN = "search", "settled", "frozen"


class PolicyState(keras.layers.Layer):
    """Holds the candidates and the variables of a policy. `BitWidthPolicy` decides with them.

    The shapes count P decision points (activations before weights, of which Pw are weights), K
    bit-widths and d entries of an embedding.

    Args: See `BitWidthPolicy`.

    Attributes:
        bit_widths: All candidate bit-widths, ascending, a float array of shape `[K]`.
        levels: The same on the scale of the means, see `dqmq_tf.policy.levels`.
        per_sample: Whether activation bits follow each sample while weight bits are settled. A file
            has one bit-width for each activation, so this is for simulation.
        allowed: 1 for the bit-widths that a decision point may have and 0 for the others, a float
            array of shape `[P, K]`.
        lowest, highest: The levels of the lowest and the highest candidate of each decision point,
            float arrays of shape `[P]`.
        mean, log_sigma: The static means and the logarithms of the widths, in levels, which are bits
            up to 8, shape `[P]`.
        direction: How many bits the means change with the embedding, shape `[P, d]`.
        baseline_direction, baseline_bias: The linear model of the expected task loss, shapes `[d]`
            and `[]`.
        byte_table: The bytes of each weight decision point at each bit-width, shape `[Pw, K]`. They
            are measured; see `dqmq_tf.budget.costs`.
        coded_byte_table: The same in files that use the decoder of the target, if it has one.
        activation_cycles: What `CostModel.activation_cycles` holds, which is saved with the policy.
        loss_table: The loss that each weight decision point adds at each bit-width, up to a common
            factor, shape `[Pw, K]`; see `dqmq_tf.budget.sensitivity`.
        temperature: The factor of the widths, which falls during the search.
        loss_scale: The factor by which the loss is multiplied before its gradient is computed.
        multiplier: The multiplier of the augmented Lagrangian, which prices the budget.
        advantage_scale: The spread of the advantages of the policy gradient.
        search_step: The number of training steps so far.
        search_total: The number of training steps planned, with fine-tuning; 0 if unknown.
        shift: The bits added to the means of settled activations to meet the budget.
        thresholds: The scores that separate the groups, ascending, shape `[MAX_PROFILES - 1]`.
        centroids: The mean embedding of each group, shape `[MAX_PROFILES, d]`.
        assigned: The bit-widths of each profile after the search, shape `[MAX_PROFILES, P]`.
        seen: The embeddings of the latest training samples.
    """

    per_sample = True

    def __init__(
        self,
        activations: Sequence[Sequence[int]],
        weights: Sequence[Sequence[int]],
        groups: int = 1,
        initial_sigma: float = 0.6,
        quality_aware: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, **KEEPS_PRECISION})
        self.activation_candidates = [tuple(int(b) for b in point) for point in activations]
        self.weight_candidates = [tuple(int(b) for b in point) for point in weights]
        self.groups, self.initial_sigma, self.seed = groups, initial_sigma, seed
        self.quality_aware = quality_aware
        points = self.activation_candidates + self.weight_candidates
        grid = sorted({b for point in points for b in point})
        self.bit_widths = np.array(grid, "float32")
        self.allowed = np.array([[b in point for b in grid] for point in points], "float32")
        self.levels = to_levels(grid).astype("float32")
        self.lowest = to_levels([min(point) for point in points]).astype("float32")
        self.highest = to_levels([max(point) for point in points]).astype("float32")
        self.activation_cycles: np.ndarray | None = None
        self.random = keras.random.SeedGenerator(seed)

    @property
    def activation_count(self) -> int:
        """The number of activation decision points."""
        return len(self.activation_candidates)

    @property
    def point_count(self) -> int:
        """The number of decision points."""
        return len(self.activation_candidates) + len(self.weight_candidates)

    @property
    def phase(self) -> str:
        """`"search"`, `"settled"` or `"frozen"`; stored in a variable, so that it is saved too."""
        return PHASES[int(_value(self.phase_index))] if self.built else SEARCH

    @phase.setter
    def phase(self, phase: str) -> None:
        self.phase_index.assign(float(PHASES.index(phase)))

    @property
    def profiles(self) -> int:
        """The number of precision profiles to which bit-widths are assigned."""
        return int(_value(self.profile_count)) if self.built else 1

    @profiles.setter
    def profiles(self, count: int) -> None:
        self.profile_count.assign(float(count))

    @property
    def file_constant(self) -> float | None:
        """The cost of the file beside its weights, or None before a file is measured.

        In cycles it may be negative, because operators of the NPU overlap.
        """
        return float(_value(self.file_bytes)) or None

    @file_constant.setter
    def file_constant(self, value: float | None) -> None:
        self.file_bytes.assign(0.0 if value is None else value)

    @property
    def graph_key(self) -> tuple[str, int]:
        """What a traced function depends on. If it changes, the function has to be traced again.

        Search and settled bits share one graph if there is one group and one replica. The graph reads
        the phase from its variable, so that settling the bits traces nothing. With several groups, a
        settled batch is not sorted; with several replicas, variables cannot be assigned on condition.
        """
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        if self.groups == self.profiles == replicas == 1 and self.phase != FROZEN:
            return "search or settled", 1
        return self.phase, self.profiles

    @property
    def is_searching(self) -> bool | tf.Tensor:
        """Whether the bits are still being learned: a scalar tensor in a graph of both phases."""
        if tf.executing_eagerly() or self.graph_key[0] in PHASES:
            return self.phase == SEARCH
        return ops.equal(self.phase_index, float(PHASES.index(SEARCH)))

    @property
    def bits_vary_by(self) -> str:
        """What bit-widths depend on in this phase: `"sample"`, `"profile"` or `"static"`."""
        if self.quality_aware and self.activation_candidates and self.phase != FROZEN:
            if self.per_sample or self.phase == SEARCH:
                return "sample"
        count = self.groups if self.phase == SEARCH else self.profiles
        return "profile" if count > 1 else "static"

    def build(self, input_shape: Sequence[int | None]) -> None:
        size, points = input_shape[-1], self.point_count
        assert size is not None, "an embedding has a known length"
        middle = (self.lowest + self.highest) / 2
        self.mean = self.add_weight(
            name="mean",
            shape=(points,),
            initializer=lambda shape, dtype: ops.convert_to_tensor(middle, dtype),
            constraint=_Between(self.lowest, self.highest),
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
        self.baseline_direction = self.add_weight(
            name="baseline_direction", shape=(size,), initializer="zeros", dtype="float32"
        )
        self.baseline_bias = self.add_weight(
            name="baseline_bias", shape=(), initializer="zeros", dtype="float32"
        )

        def state(
            name: str,
            shape: tuple[int, ...],
            initializer: str | Callable[..., np.ndarray] = "zeros",
            aggregation: str = "mean",
        ) -> keras.Variable:
            return self.add_weight(
                name=name, shape=shape, initializer=initializer, trainable=False, dtype="float32",
                aggregation=aggregation,
            )  # fmt: skip

        self.byte_table = state("byte_table", (len(self.weight_candidates), len(self.bit_widths)))
        self.coded_byte_table = state("coded_byte_table", tuple(self.byte_table.shape))
        # Before anything is measured, all kernels matter alike and one more bit divides the squared
        # error by four.
        added_loss = self.allowed[self.activation_count :] * 4.0**-self.bit_widths
        self.loss_table = state("loss_table", added_loss.shape, lambda shape, dtype: added_loss)
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

    def save_own_variables(self, store: Any) -> None:
        stored_variables.save(self, store)

    def load_own_variables(self, store: Any) -> None:
        stored_variables.load(self, store)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "activations": self.activation_candidates,
            "weights": self.weight_candidates,
            "groups": self.groups,
            "initial_sigma": self.initial_sigma,
            "quality_aware": self.quality_aware,
            "seed": self.seed,
        }


def _value(variable: keras.Variable) -> np.ndarray:
    """Returns the value of a variable, also while a TensorFlow function is traced."""
    with tf.init_scope():
        value = variable.value
        # Under a distribution strategy, `values` holds a copy of the variable for each replica.
        return ops.convert_to_numpy(value.values[0] if hasattr(value, "values") else value)


@keras.saving.register_keras_serializable(package="dqmq_tf")
class _Between(keras.constraints.Constraint):
    """Keeps a variable between two bounds."""

    def __init__(self, low: np.ndarray | float, high: np.ndarray | float) -> None:
        self.low, self.high = low, high

    def __call__(self, value: tf.Tensor) -> tf.Tensor:
        return ops.clip(value, self.low, self.high)
