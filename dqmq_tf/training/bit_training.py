"""The training of a model's bits: calibration, search, settling and the recorded figures."""

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf import inputs
from dqmq_tf.budget import sensitivity
from dqmq_tf.budget.budget_keeper import BudgetKeeper
from dqmq_tf.graph.samples_at_once import samples_at_once
from dqmq_tf.layers.custom_gradients import CustomGradients
from dqmq_tf.policy.policy_state import SEARCH, SETTLED
from dqmq_tf.terminal import stages
from dqmq_tf.training import fit_data, optimizers, range_calibration
from dqmq_tf.training.float_agreement import FloatAgreement
from dqmq_tf.training.pixel_values import warn_of_scaled_images
from dqmq_tf.training.policy_search import PolicySearch, mean_bits
from dqmq_tf.training.several_workers import agree

_CALIBRATION_SAMPLES = 256
# The same for `fit`, if its first batch is smaller.
_FIT_SAMPLES = 128
# The number of samples whose values ranges follow during training, and the fewest that they follow.
_FOLLOWED_SAMPLES, _FEWEST_FOLLOWED = 16, 8


class BitTraining:
    """Trains the bits of a model. `DQMQModel` creates it, `SearchSchedule` calls it during `fit`.

    Args:
        model: The `DQMQModel`.
        parts: The `ModelParts` of the model.

    Attributes:
        search: The `PolicySearch`, which computes the terms of a training step.
        keeper: The `BudgetKeeper`, which fixes bits within the budget.
        gradients: The `CustomGradients` of the graphs that are traced for the model.
        agreement: The `FloatAgreement`, which compares the model with the float one.
        figure_names: The names of the figures that `fit` adds to the logs.
        policy_optimizer: The optimizer of the policy and of the quality normalization. None before
            the model is compiled.
        encoder_optimizer: The optimizer of the quality encoder. None before the model is compiled.
    """

    def __init__(self, model: keras.Model, parts: Any) -> None:
        self.model, self.parts = model, parts
        self.search, self.keeper = PolicySearch(parts), BudgetKeeper(parts)
        self.gradients = CustomGradients(model)
        self.agreement = FloatAgreement(parts)
        self.figure_names = (*self.search.term_names, "pathwise", "cost", "multiplier", "mean_bits")
        self._figures = {name: keras.metrics.Mean(name=name) for name in self.figure_names}
        self._settled_cost: float | None = None
        self._begun = False
        self._is_calibrating = False
        self._followed: list[np.ndarray] = []
        # Set by `compile`, or by `DQMQModel.custom_training`.
        self.policy_optimizer: keras.optimizers.Optimizer | None = None
        self.encoder_optimizer: keras.optimizers.Optimizer | None = None

    @property
    def is_searching(self) -> bool:
        """Whether the bits are still being learned."""
        return self.parts.policy.phase == SEARCH

    @property
    def is_calibrated(self) -> bool:
        """Whether the step sizes of activations have been set from data, without an interruption."""
        return not self._is_calibrating and all(
            float(q.calibrated.numpy()) > 0 for q in self.parts.quantizers
        )

    @property
    def has_begun(self) -> bool:
        """Whether the search has begun, by `fit`, `train_on_batch` or a loop of the user's."""
        return self._begun or self.steps_searched > 0

    @property
    def steps_searched(self) -> float:
        """The number of training steps that the search has taken."""
        # The user may call the model in a `tf.function`.
        with tf.init_scope():
            return float(self.parts.policy.search_step.numpy())

    @property
    def total_steps(self) -> float:
        """The planned number of training steps, including the fine-tuning; 0 if unknown."""
        return float(self.parts.policy.search_total.numpy())

    def calibration_samples(self, arrays: list[np.ndarray]) -> int:
        """Returns the number of samples that `fit` calibrates on, or that it follows after loading.

        Args:
            arrays: The inputs of a batch, which tell sizes that the model leaves open.
        """
        wanted = _FOLLOWED_SAMPLES if self.is_calibrated else _FIT_SAMPLES
        return min(samples_at_once(self.parts.graph, arrays), wanted)

    def calibrate(self, x: Any, for_training: bool = False) -> None:
        """Sets ranges and step sizes from data; see `DQMQModel.calibrate`.

        Args:
            x: Inputs: an array, a list or dictionary of arrays, or a dataset.
            for_training: Whether a training follows at once (see `range_calibration`).
        """
        parts = self.parts
        with stages("Calibrating") as stage:
            stage("reading data")
            arrays = inputs.collect(x, self.model, samples=_CALIBRATION_SAMPLES)
            arrays = fit_data.checked_finite(arrays, parts.graph.input_names)
            x = inputs.structured(arrays, self.model)
            if not self.has_begun:
                warn_of_scaled_images(parts.graph, arrays, stacklevel=3)
            # It stays so if an error or the user stops what follows.
            self._is_calibrating = True
            self._followed = []
            self._remember(arrays)
            stage("fitting the ranges of activations")
            state = range_calibration.set_ranges(parts, x, for_training)
            if not self.has_begun:
                stage("comparing 8 bits with floating point")
                self.agreement.check(arrays, state)
            parts.encoder.calibrate(arrays[0])
            stage("measuring each kernel at each bit-width")
            self.keeper.measure()
            if parts.costs.in_bytes:
                if any(len(point.bit_widths) > 1 for point in parts.costs.weights):
                    losses = sensitivity.added_losses(parts, x, parts.policy.bit_widths)
                    parts.policy.loss_table.assign(losses)
                if not self.steps_searched:
                    self.keeper.place_means()
            self._is_calibrating = False

    @property
    def is_prepared(self) -> bool:
        """Whether ranges are set, and there are enough inputs whose values they follow."""
        has_samples = bool(self._followed) and len(self._followed[0]) >= _FOLLOWED_SAMPLES
        return has_samples and self.is_calibrated

    def prepare(self, x: Any) -> None:
        """Calibrates before a training. If ranges are set, as after loading, it keeps inputs to follow.

        Args:
            x: The first inputs of the training, as `calibrate` takes them.
        """
        if self.is_prepared:
            return
        if self.is_calibrated:
            self._remember(inputs.collect(x, self.model, samples=_FOLLOWED_SAMPLES))
        else:
            self.calibrate(x, for_training=True)

    def _remember(self, arrays: list[np.ndarray]) -> None:
        """Keeps the first inputs of a training, whose values ranges follow."""
        joined = [np.concatenate(pair) for pair in zip(self._followed, arrays)] or arrays
        self._followed = [array[:_FOLLOWED_SAMPLES] for array in joined]

    @property
    def steps_taken(self) -> int:
        """The number of steps that the optimizer has taken."""
        # Keras says what to do with a model that is not compiled.
        return int(self.model.optimizer.iterations.numpy()) if self.model.compiled else 0

    def follow_values(self, before: int, after: int) -> None:
        """Fits ranges and steps again that suit the values no more, whenever the steps have doubled.

        Args:
            before, after: The number of steps that training had taken, and has taken now.
        """
        count = len(self._followed[0]) if self._followed else 0
        # Of one or two samples, a batch normalization leaves nothing.
        if count < _FEWEST_FOLLOWED or not range_calibration.is_followed(before, after):
            return
        range_calibration.follow_values(self.parts, inputs.structured(self._followed, self.model))
        self.keeper.fit_stale_steps()

    def begin(self, total_steps: float) -> None:
        """Starts a new search at step 0.

        Args:
            total_steps: The total number of training steps, including the fine-tuning. 0 if it is
                unknown.
        """
        self._begun = True
        self.parts.policy.search_step.assign(0.0)
        self.parts.policy.search_total.assign(float(total_steps))
        self.set_rate(total_steps)

    def set_rate(self, total_steps: float, faded: float = 0.0) -> None:
        """Sets the learning rates of policy, quality normalization and encoder.

        Args:
            total_steps: The number of steps of this training. 0 if it is unknown.
            faded: The share by which the rates are reduced, 0 to 1. It rises during the fine-tuning
                at settled bits.
        """
        if self.policy_optimizer is None:
            return
        rate = self.parts.config.policy_learning_rate or self.search.rate(total_steps)
        optimizers.set_rate(self.model, rate * (1.0 - faded))

    def progress(self) -> float:
        """Returns the share of the training that is done, 0.5 if its length is unknown."""
        return float(ops.convert_to_numpy(self.search.progress()))

    def warn_if_new(self) -> None:
        """Warns that a network whose batch normalizations are new was not trained."""
        if not self.has_begun and range_calibration.has_new_statistics(self.parts):
            warnings.warn(
                f"{self.model.name!r} was not trained, and the moving statistics of its batch "
                "normalizations are those of new layers (mean 0 and variance 1). Ranges are for the "
                "statistics of the calibration data instead, so predictions are not those of the "
                "float model. Call fit, or quantize a trained model.",
                stacklevel=3,
            )

    def measure(self) -> None:
        """Measures the files of the current weights again; see `BudgetKeeper.measure`."""
        agree(self.model)
        self.keeper.measure()

    def settle(self) -> None:
        """Ends the search: fixes the weight bits within the budget, for the fine-tuning."""
        agree(self.model)
        self.keeper.settle(self.seen())
        self._settled_cost = None
        self.refresh_functions()

    def keep_budget(self, share: float = 1.0) -> None:
        """Brings settled bits back within the budget; see `BudgetKeeper.keep`.

        Args:
            share: The share of a byte budget that may be used.
        """
        if self.parts.policy.phase == SETTLED:
            agree(self.model)
            self.keeper.keep(self.seen(), share)
            self._settled_cost = None

    def forget_costs(self) -> None:
        """Forgets what was measured, because weights and bits were replaced."""
        self._settled_cost = None
        self.parts.costs.bytes.tables = ()

    def refresh_functions(self) -> None:
        """Traces the compiled functions again if they were traced in another phase."""
        if self.model.compiled:
            self.model.make_train_function()
            self.model.make_test_function()
        self.model.make_predict_function()

    def record(self, result: Any, terms: dict[str, Any], expected: Any) -> None:
        """Records the figures of a training step.

        Args:
            result: The output of the instrumented model.
            terms: A dictionary `{name: scalar}` of the terms that were added to the loss.
            expected: The expected cost, or None once the bits are settled.
        """
        figures = dict.fromkeys(self.search.term_names, 0.0) | terms
        figures["mean_bits"] = mean_bits(result, self.parts.costs)
        figures["multiplier"] = self.parts.policy.multiplier.value
        figures["cost"] = 0.0 if expected is None else expected
        for name, value in figures.items():
            self._figures[name].update_state(value)

    def reset_figures(self) -> None:
        """Resets the recorded figures."""
        for metric in self._figures.values():
            metric.reset_state()

    def figures(self) -> dict[str, float]:
        """Returns the means of the recorded figures; bits that are settled and their cost as they are."""
        means = {name: float(metric.result()) for name, metric in self._figures.items()}
        if not self.is_searching:
            if self._settled_cost is None:
                self._settled_cost = self.keeper.assigned_cost(self.seen())
            means["cost"] = self._settled_cost
            # In the epoch in which bits settle, the mean over steps would be that of other bits.
            decision = self.parts.policy(ops.convert_to_tensor(self.seen()), training=False)
            means["mean_bits"] = float(mean_bits(decision, self.parts.costs))
        return means

    def seen(self, data: Any = None) -> np.ndarray:
        """Returns quality embeddings, shape `[N, d]`.

        Args:
            data: Inputs to embed. None for the embeddings that training saw last.
        """
        if data is not None:
            return np.concatenate(
                [ops.convert_to_numpy(self.parts.encoder(ops.convert_to_tensor(part[0])))
                 for part in inputs.batches(data, self.model)]
            )  # fmt: skip
        seen = self.parts.policy.seen.values()
        return seen if len(seen) else np.zeros((1, self.parts.config.embedding_size), "float32")
