"""`DQMQModel`: a Keras model that learns its bit-widths while it learns its task."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from dqmq_tf import assembly, inputs
from dqmq_tf.config import Budget, DQMQConfig
from dqmq_tf.errors import check_profile
from dqmq_tf.graph.deep_graphs import deep_graphs
from dqmq_tf.graph.rebuild import copy_model
from dqmq_tf.layers.trained_precision import precision_of
from dqmq_tf.policy.decision_table import DecisionTable
from dqmq_tf.policy.policy_state import FROZEN, SEARCH
from dqmq_tf.precision import Precision
from dqmq_tf.saving import QuantizedSaving, check_parts
from dqmq_tf.targets import Target
from dqmq_tf.terminal import silence
from dqmq_tf.training import bit_logs, fit_data, optimizers, steps
from dqmq_tf.training.bit_training import BitTraining
from dqmq_tf.training.custom_training import CustomTraining
from dqmq_tf.training.fit_callbacks import with_own_callbacks
from dqmq_tf.training.several_workers import SeveralWorkers

# Attributes that hold the optimizers of policy and encoder. Keras saves their state by these names.
_OPTIMIZER_NAMES = ("_policy_optimizer", "_encoder_optimizer")
# The names in files that do not list them.
_EARLIER_OPTIMIZER_NAMES = ("policy_optimizer", "encoder_optimizer")


@keras.saving.register_keras_serializable(package="dqmq_tf")
class DQMQModel(SeveralWorkers, QuantizedSaving):
    """A quantized functional model with a policy. `dqmq_tf.quantize_model` creates it.

    The model has the inputs, outputs and layer names of the original model. Layers with kernels are
    wrapped in `QuantizeWrapper`. `fit` trains in three phases: a warm-up, in which the network
    adapts to sampled bit-widths; a search, in which the policy learns them; and fine-tuning at
    fixed bit-widths that meet the budget. Fine-tuning begins after the share `config.settle` of
    the training. Another call of `fit` continues the fine-tuning at the same bit-widths.

    `calibrate` and `custom_training` are for training, `freeze` and `resume_search` for its phases,
    `decisions` and `precision` show what was decided.
    """

    def __init__(self, inputs: Any, outputs: Any, name: Any = None, *, parts: Any = None) -> None:
        check_parts(parts)
        with deep_graphs():
            super().__init__(inputs=inputs, outputs=outputs, name=name)
        self.output_names = list(parts.output_names)
        # Functions hide these objects from Keras's tracking, which would save them twice.
        self._get_parts: Callable[[], assembly.ModelParts] = lambda: parts
        training = BitTraining(self, parts)
        self._get_training: Callable[[], BitTraining] = lambda: training
        self._optimizer_names = _OPTIMIZER_NAMES
        self._traced: dict[str, tuple[str, int]] = {}

    @property
    def _training(self) -> BitTraining:
        return self._get_training()

    @property
    def _parts(self) -> assembly.ModelParts:
        return self._get_parts()

    @property
    def target(self) -> Target:
        """The deployment target."""
        return self._parts.target

    @property
    def budget(self) -> Budget:
        """The budget. If `quantize_model` got none, the default budget."""
        budget = self._parts.budget
        assert budget is not None
        return budget

    @property
    def config(self) -> DQMQConfig:
        """The configuration, with the defaults that depend on the kind of budget filled in."""
        return self._parts.config

    @property
    def frozen_profiles(self) -> int:
        """The number of precision profiles of a frozen model. 0 if the model is not frozen."""
        policy = self._parts.policy
        return policy.profiles if policy.phase == FROZEN else 0

    def float_model(self) -> keras.Model:
        """Returns a new float Keras model with the trained weights and no quantization."""
        return copy_model(self._parts.current_body())

    # Training.

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The variables that the user's optimizer trains: those of the network."""
        # The variables that decide the bits have their own optimizers. Keras pairs the variables
        # returned here with those of the user's optimizer, for example for moving averages.
        deciding = self._parts.deciding_ids()
        return [v for v in super().trainable_variables if id(v) not in deciding]

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        return self.trainable_variables

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        trained = {id(v) for v in self.trainable_variables}
        return [v for v in self.variables if id(v) not in trained]

    @property
    def non_trainable_weights(self) -> list[keras.Variable]:
        trained = {id(v) for v in self.trainable_variables}
        return [v for v in self.weights if id(v) not in trained]

    def count_params(self) -> int:
        """Returns the number of parameters of the network, without those that decide its bits."""
        return self._parts.body.count_params()

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Configures the training; the arguments are those of `keras.Model.compile`.

        `optimizer` trains the network. The policy and the encoder have their own optimizers, whose
        learning rate is `DQMQConfig.policy_learning_rate`. No metric may be named as a figure of `fit`.
        """
        bit_logs.check_metrics(self, *args[:2], **kwargs)
        super().compile(optimizer, loss, loss_weights, *args, **kwargs)
        self._loss_weights = loss_weights
        self._metrics_have_variables = False
        optimizers.compile_own(self)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains network and policy. Arguments and result are those of `keras.Model.fit`.

        In addition to the compiled metrics, `history` and the callbacks get `"mean_bits"`, `"cost"`
        (in the unit of the budget), `"multiplier"`, `"pathwise"` and the policy's terms of the
        objective in every epoch. The terms are 0 once the bits are settled.

        Raises:
            ValueError: If the data is empty or unbatched, or if inputs contain NaN or infinity.
        """
        x, y, kwargs = inputs.without_lists(self, x, y, kwargs)
        with silence(verbose == 0):
            if epochs and not self._training.is_prepared:
                x, first = fit_data.peek(x, self, self._training.calibration_samples)
                self._training.prepare(first)
            callbacks = with_own_callbacks(self, callbacks, epochs, kwargs.get("steps_per_epoch"))
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Trains on one batch. Arguments and result are those of `keras.Model.train_on_batch`.

        The first call calibrates the model on its batch.
        """
        self._training.prepare(x)
        before = self._training.steps_taken
        logs = super().train_on_batch(x, y, sample_weight, class_weight, return_dict)
        self._training.follow_values(before, self._training.steps_taken)
        return logs

    def calibrate(self, x: Any) -> None:
        """Sets the ranges of activations and the normalization of the encoder from data.

        Ranges are for the moving statistics of batch normalizations, with which the model predicts.
        For new ones, which a training follows, they are for the statistics of the data.

        For a budget on the file, it also estimates how much the rounding of each kernel increases the
        loss. Before the first search, the policy starts at the best bits by this measure. `fit`
        calibrates on its first batches.

        Args:
            x: The inputs, as arrays or as a dataset of any kind that `dqmq_tf.inputs` lists. At
                most 256 samples are used.

        Raises:
            ValueError: If there are no inputs, or if they contain NaN or infinity.

        Example:

        >>> qmodel.calibrate(images[:256])
        """
        self._training.calibrate(x)

    def custom_training(self, steps: int, data: Any = None) -> CustomTraining:
        """Returns a context for your own training loop, which searches and settles the bits.

        Args:
            steps: The total number of training steps, including the fine-tuning.
            data: The inputs for calibration (see `calibrate`). Not needed if the model is
                calibrated.

        Returns:
            A context manager. Its value has the method `apply_gradients(tape, loss, x, optimizer)`.
            The bits are settled during the loop, and brought to the budget at its end.

        Raises:
            ValueError: If the model is not calibrated and `data` is None.

        Example:

        >>> with qmodel.custom_training(steps=1000, data=images[:256]) as training:
        ...     for x, y in dataset.take(1000):
        ...         with tf.GradientTape() as tape:
        ...             loss = loss_function(y, qmodel(x, training=True))
        ...         training.apply_gradients(tape, loss, x, optimizer)
        """
        if data is not None:
            self._training.calibrate(data, for_training=True)
        elif not self._training.is_calibrated:
            raise ValueError(
                "custom_training needs `data`, inputs for calibration, because the model has not "
                "seen data yet. Pass custom_training(steps=..., data=images)."
            )
        return CustomTraining(self, steps)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        training = self._training
        if kwargs.get("training") and training.is_searching and not training.has_begun:
            raise ValueError(
                f"{self.name!r} was called with training=True, but its search of bit-widths has not "
                "begun, so the bits would never settle. Train with `fit` or `train_on_batch`, or put "
                "your loop into `with qmodel.custom_training(steps=..., data=...) as training:`."
            )
        with training.gradients.owned():
            return super().__call__(*args, **kwargs)

    def train_step(self, data: Any) -> dict[str, Any]:
        with self._training.gradients.owned():
            return steps.train_step(self, data)

    def test_step(self, data: Any) -> dict[str, Any]:
        with self._training.gradients.owned():
            return steps.test_step(self, data)

    # Phases.

    def freeze(self, profiles: int | None = None, data: Any = None) -> "DQMQModel":
        """Fixes all bits to precision profiles, which are clustered from the policy's decisions.

        One profile's biases are rounded as in a file. Output steps too fine for a kernel are raised.

        Args:
            profiles: The number of profiles, 1 to 4. None for `config.profiles`. If `fit` settled
                the weight bits for the same number of profiles, they are kept, so that the frozen
                network is the one that was fine-tuned.
            data: The inputs whose decisions are clustered, as arrays or as a dataset of any kind
                that `dqmq_tf.inputs` lists. None for the last inputs that training saw.

        Returns:
            The model itself.

        Raises:
            ValueError: If `profiles` is out of range, or if the model has not seen data yet.
            ConversionError: If a layer has weights that are NaN or infinity.

        Example:

        >>> qmodel.freeze(profiles=2, data=images)
        """
        count = self.config.profiles if profiles is None else profiles
        if not isinstance(count, int) or not 1 <= count <= 4:
            raise ValueError(f"profiles={count!r}: pass 1, 2, 3 or 4 precision profiles.")
        if not self._training.is_calibrated:
            raise ValueError(
                "The model cannot be frozen because it has not seen data. Call fit or calibrate."
            )
        self._parts.check_finite()
        self._training.warn_if_new()
        self._training.keeper.freeze(self._training.seen(data), count)
        self._training.refresh_functions()
        return self

    def resume_search(self) -> None:
        """Starts the search again: the next `fit` searches bit-widths and settles them."""
        self._parts.policy.phase = SEARCH
        self._parts.policy.profiles = 1
        # Without a length, the search of before is not one that a training could continue.
        self._parts.policy.search_total.assign(0.0)
        self._training.set_rate(0)
        self._training.refresh_functions()

    # A change of the phase, which is saved with the weights, has functions traced again.

    def make_train_function(self, force: bool = False) -> Any:
        return super().make_train_function(force or self._is_stale("train_function"))

    def make_test_function(self, force: bool = False) -> Any:
        return super().make_test_function(force or self._is_stale("test_function"))

    def make_predict_function(self, force: bool = False) -> Any:
        return super().make_predict_function(force or self._is_stale("predict_function"))

    def _is_stale(self, name: str) -> bool:
        """Returns whether a function was traced in another phase, and records the current one."""
        with self.distribute_strategy.scope():
            current = self._parts.policy.graph_key
        previous, self._traced[name] = self._traced.get(name, current), current
        return previous != current

    def decisions(self, images: Any) -> DecisionTable:
        """Returns the bit-width of each decision point for each input.

        Args:
            images: N inputs, as arrays or as a dataset of any kind that `dqmq_tf.inputs` lists.

        Returns:
            A `DecisionTable` with N rows.

        Raises:
            ValueError: If there are no inputs, or if they do not fit the model.

        Example:

        >>> table = qmodel.decisions(noisy)
        >>> table["conv2d:kernel"].mean()
        """
        data = inputs.batches(images, self, argument="images")
        decided = [self._parts.decide(batch[0]) for batch in data]
        return DecisionTable.of(decided, self.decision_points, self._parts.policy.bits_vary_by)

    @property
    def decision_points(self) -> tuple[str, ...]:
        """The names of the decision points, activations first."""
        return self._parts.decision_points()

    def precision(self, profile: int = 0) -> Precision:
        """Returns the integers, steps and zero points of a frozen model.

        Args:
            profile: The index of the precision profile.

        Raises:
            ValueError: If the model is not frozen, or if it has no such profile.
            ConversionError: If a layer has weights that are NaN or infinity.

        Example:

        >>> precision = qmodel.freeze().precision()
        >>> precision.weights["conv2d"]["kernel"].bit_width
        """
        if not self.frozen_profiles:
            raise ValueError("The model is not frozen. Call freeze() first.")
        check_profile(profile, self.frozen_profiles)
        self._parts.check_finite()
        return precision_of(self._parts, ops.convert_to_numpy(self._parts.policy.assigned)[profile])

    # Saving: the float architecture and how it was quantized. The model is built from these again.

    def get_config(self) -> dict[str, Any]:
        body = self._parts.current_body()
        return {"model": keras.saving.serialize_keras_object(body), **self._settings()}

    def _settings(self) -> dict[str, Any]:
        """Returns the config without the float model."""
        return {
            "name": self.name,
            **assembly.settings_of(self._parts),
            "optimizer_names": list(self._optimizer_names),
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> "DQMQModel":
        body = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        return cls._build_again(body, config)

    @classmethod
    def _build_again(cls, body: keras.Model, settings: Mapping[str, Any]) -> "DQMQModel":
        """Returns a model that quantizes a float model as `_settings` say, with new weights."""
        model_inputs, outputs, parts = assembly.build_again(body, settings)
        model = cls(model_inputs, outputs, settings["name"], parts=parts)
        model._optimizer_names = tuple(settings.get("optimizer_names", _EARLIER_OPTIMIZER_NAMES))
        return model
