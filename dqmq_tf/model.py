"""`DQMQModel`: a Keras model that learns its bit-widths while it learns its task."""

import keras
from keras import ops

from dqmq_tf import assembly, inputs, targets
from dqmq_tf.config import Budget, DQMQConfig
from dqmq_tf.graph.rebuild import copy_model
from dqmq_tf.layers.trained_precision import precision_of
from dqmq_tf.policy.decision_table import DecisionTable
from dqmq_tf.policy.policy_state import FROZEN, SEARCH
from dqmq_tf.training import optimizers, steps
from dqmq_tf.training.batch_statistics import BatchStatistics
from dqmq_tf.training.bit_logs import BitLogs
from dqmq_tf.training.bit_training import BitTraining
from dqmq_tf.training.custom_training import CustomTraining
from dqmq_tf.training.search_schedule import SearchSchedule


@keras.saving.register_keras_serializable(package="dqmq_tf")
class DQMQModel(keras.Model):
    """A quantized functional model with a policy; made by `dqmq_tf.quantize_model`.

    It has the inputs, outputs and layer names of the original model. Layers with kernels are wrapped
    in `QuantizeWrapper`. `fit` trains in three phases: a warm-up in which the network adapts to
    sampled bit-widths, a search in which the policy learns them, and fine-tuning at fixed bits that
    meet the budget, which begins after the share `config.settle` of the training. Another `fit`
    goes on fine-tuning at these bits.
    """

    def __init__(self, inputs, outputs, parts, name=None):
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        self.output_names = list(parts.output_names)
        # Functions hide these from Keras's tracking: they would be saved twice.
        self._get_parts = lambda: parts
        training = BitTraining(self, parts)
        self._get_training = lambda: training
        self._traced: dict[str, tuple[str, int]] = {}

    @property
    def _training(self):
        return self._get_training()

    @property
    def _parts(self):
        return self._get_parts()

    @property
    def policy(self):
        return self._parts.policy

    @property
    def encoder(self):
        return self._parts.encoder

    @property
    def target(self):
        return self._parts.target

    @property
    def budget(self):
        return self._parts.budget

    @property
    def config(self):
        return self._parts.config

    @property
    def costs(self):
        return self._parts.costs

    @property
    def frozen_profiles(self):
        """Number of precision profiles that the bits are frozen to; 0 while they are not."""
        return self.policy.profiles if self.policy.phase == FROZEN else 0

    def float_model(self):
        """Returns a new float Keras model with the trained weights and no quantization."""
        return copy_model(self._parts.body)

    # Training.

    @property
    def trainable_variables(self):
        # What decides the bits has optimizers of its own. Keras pairs these variables with those
        # of the user's optimizer, for moving averages and the like.
        deciding = self._deciding_ids()
        return [v for v in super().trainable_variables if id(v) not in deciding]

    @property
    def trainable_weights(self):
        return self.trainable_variables

    @property
    def non_trainable_variables(self):
        trained = {id(v) for v in self.trainable_variables}
        return [v for v in self.variables if id(v) not in trained]

    @property
    def non_trainable_weights(self):
        trained = {id(v) for v in self.trainable_variables}
        return [v for v in self.weights if id(v) not in trained]

    def _deciding_ids(self):
        """Ids of the variables that decide the bits: of policy, encoder and normalization."""
        parts = self._parts
        layers = [parts.policy, parts.encoder, *parts.affines]
        return {id(v) for layer in layers for v in layer.variables}

    def count_params(self):
        """Returns the number of parameters of the network, without those that decide its bits."""
        return self._parts.body.count_params()

    def compile(self, optimizer="rmsprop", loss=None, loss_weights=None, *args, **kwargs):
        """Compiles like any Keras model; what sees the quality gets optimizers of its own."""
        super().compile(optimizer, loss, loss_weights, *args, **kwargs)
        self._loss_weights = loss_weights
        optimizers.compile_own(self)

    def get_compile_config(self):
        # Keras records the arguments of `compile` itself; our override only adds to it.
        return super().get_compile_config()

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        *args,
        **kwargs,
    ):
        """Trains network and policy; arguments and result are those of `keras.Model.fit`.

        Beside the compiled metrics, `history` and the callbacks get `"mean_bits"`, `"cost"` (in the
        unit of the budget), `"multiplier"`, `"pathwise"` and the policy's terms of the objective, in
        every epoch. Once the bits are settled, the terms are 0.

        Raises:
            ValueError: If the data are empty or the images hold NaN or infinity.
        """
        if not self._training.is_calibrated and epochs:
            x, first = inputs.peek(x)
            self.calibrate(first)
        before = [BitLogs()]
        per_epoch = kwargs.get("steps_per_epoch")
        after = [
            SearchSchedule(self.config.settle, epochs, per_epoch),
            BatchStatistics(self._parts.norms, epochs, per_epoch),
        ]
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.callbacks[:0] = before
            for callback in after:
                callbacks.append(callback)
            callbacks.set_model(self)
        else:
            callbacks = [*before, *keras.tree.flatten(callbacks or []), *after]
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        if not self._training.is_calibrated:
            self.calibrate(x)
        return super().train_on_batch(x, y, sample_weight, class_weight, return_dict)

    def calibrate(self, x):
        """Sets the ranges of activations, and the encoder's normalization, from data.

        For a budget in bytes it also measures what rounding each kernel adds to the loss, and
        moves the policy to the best bits by that before its first search. `fit` does this on its
        first batch.

        Args:
            x: Inputs: an array, a list or dictionary of arrays, or a dataset (see
                `dqmq_tf.inputs`). At most 256 samples are used.

        Raises:
            ValueError: If there are no images, or if they hold NaN or infinity.
        """
        self._training.calibrate(x)

    def custom_training(self, steps, data=None):
        """Returns a context for a training loop of your own, which searches and settles the bits.

        Args:
            steps: Training steps in all, the fine-tuning at settled bits included.
            data: Inputs to calibrate on (see `calibrate`); not needed if the model is calibrated.

        Returns:
            A context manager whose value has `apply_gradients(tape, loss, x, optimizer)`. The bits
            are settled in time, and brought to the budget at the end.

        Raises:
            ValueError: If the model is not calibrated and there are no data.

        Example:

        >>> with qmodel.custom_training(steps=1000, data=images[:256]) as training:
        ...     for x, y in dataset.take(1000):
        ...         with tf.GradientTape() as tape:
        ...             loss = loss_function(y, qmodel(x, training=True))
        ...         training.apply_gradients(tape, loss, x, optimizer)
        """
        if data is not None:
            self.calibrate(data)
        elif not self._training.is_calibrated:
            raise ValueError(
                "custom_training needs data=..., inputs to calibrate on, as the model has not seen "
                "data yet."
            )
        return CustomTraining(self, steps)

    def __call__(self, *args, **kwargs):
        training = self._training
        if kwargs.get("training") and training.is_searching and not training.has_begun:
            raise ValueError(
                f"{self.name!r} was called with training=True, but its search of bit-widths has not "
                "begun, so that it would never settle. Train with `fit` or `train_on_batch`, or put "
                "your loop into `with qmodel.custom_training(steps=..., data=...) as training:`."
            )
        return super().__call__(*args, **kwargs)

    def train_step(self, data):
        return steps.train_step(self, data)

    def test_step(self, data):
        return steps.test_step(self, data)

    # Phases.

    def freeze(self, profiles=None, data=None):
        """Fixes all bits to N precision profiles, clustered from the policy's decisions.

        With one profile biases are rounded to the int32 grid on which a file holds them.

        Args:
            profiles: N, 1 to 4; None for `config.profiles`. Weight bits that `fit` settled for as
                many profiles are kept, so that the fine-tuned network is what is frozen.
            data: Images, or a `tf.data.Dataset` of images or `(image, label)`, whose decisions
                are clustered; None for what training saw last.

        Returns:
            The model itself.

        Raises:
            ValueError: If `profiles` is out of range or the model has not seen data yet.
        """
        count = self.config.profiles if profiles is None else profiles
        if count not in (1, 2, 3, 4):
            raise ValueError(f"profiles={count!r}: give 1, 2, 3 or 4 precision profiles.")
        if not self._training.is_calibrated:
            raise ValueError("The model has not seen data: call fit, or calibrate(images), first.")
        self._training.keeper.freeze(self._training.seen(data), count)
        self.refresh_functions()
        return self

    def resume_search(self):
        """Lets the policy move again: the next `fit` searches and settles anew."""
        self.policy.phase = SEARCH
        self.policy.profiles = 1
        self.refresh_functions()

    # The phase is part of the traced functions, and travels with the weights.

    def refresh_functions(self):
        """Traces the compiled functions anew if they were traced in another phase."""
        if self.compiled:
            self.make_train_function()
            self.make_test_function()
        self.make_predict_function()

    def make_train_function(self, force=False):
        return super().make_train_function(force or self._is_stale("train_function"))

    def make_test_function(self, force=False):
        return super().make_test_function(force or self._is_stale("test_function"))

    def make_predict_function(self, force=False):
        return super().make_predict_function(force or self._is_stale("predict_function"))

    def _is_stale(self, name):
        now = (self.policy.phase, self.policy.profiles)
        before, self._traced[name] = self._traced.get(name, now), now
        return before != now

    # What was decided.

    def decisions(self, images):
        """Returns the bit-widths per sample and decision point as a `DecisionTable`.

        Args:
            images: Images `[batch, ...]`, or a dataset of images or `(image, label)`.

        Example:

        >>> table = qmodel.decisions(noisy)
        >>> table["conv2d:kernel"].mean()
        """
        found = [self._decide(part[0]) for part in inputs.batches(images, self, argument="images")]
        return DecisionTable.of(found, self.decision_points, self.policy.bits_vary_by)

    @property
    def decision_points(self):
        """Names of the decision points, activations first."""
        activations = [self.costs.activations[i].name for i in self.costs.decided]
        return (*activations, *(point.name for point in self.costs.weights))

    def _decide(self, x):
        result = self.policy(self.encoder(ops.convert_to_tensor(x)), training=False)
        return {key: ops.convert_to_numpy(value) for key, value in result.items()}

    def precision(self, profile=0):
        """Returns the `Precision` of a frozen model: integers, steps and zero points.

        Raises:
            ValueError: If the model is not frozen or has no such profile.
        """
        if not self.frozen_profiles:
            raise ValueError("The model is not frozen: call freeze() first.")
        if not 0 <= profile < self.frozen_profiles:
            raise ValueError(
                f"profile={profile}: the model is frozen to {self.frozen_profiles} profiles."
            )
        return precision_of(self._parts, ops.convert_to_numpy(self.policy.assigned)[profile])

    # Saving: the float architecture and how it was quantized, from which all is built again.

    def get_config(self):
        return {
            "name": self.name,
            "model": keras.saving.serialize_keras_object(self._parts.body),
            "target": targets.serialize(self.target),
            "budget": {self.budget.kind: self.budget.value},
            "config": self.config.to_dict(),
            "bit_ops": self._parts.bit_ops,
            "output_names": list(self.output_names),
            "aliases": self._parts.aliases,
            "budget_is_default": self._parts.budget_is_default,
            "phase": self.policy.phase,
            "profiles": self.policy.profiles,
            "file_constant": self.policy.file_constant,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        body = keras.saving.deserialize_keras_object(config["model"], custom_objects=custom_objects)
        made = assembly.build(
            body,
            targets.get(config["target"]),
            Budget(**config["budget"]),
            DQMQConfig.from_dict(config["config"]),
            config["bit_ops"],
            config.get("output_names"),
            config.get("aliases", ()),
        )
        model = cls(*made, name=config["name"])
        model._parts.budget_is_default = config.get("budget_is_default", False)
        model.policy.phase, model.policy.profiles = config["phase"], config["profiles"]
        model.policy.file_constant = config["file_constant"]
        return model
