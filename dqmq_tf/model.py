"""`DQMQModel`: a Keras model that learns its bit-widths while it learns its task."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf import assembly, inputs, targets
from dqmq_tf.budget import assignment, sensitivity
from dqmq_tf.budget.budget_keeper import BudgetKeeper
from dqmq_tf.config import Budget, DQMQConfig
from dqmq_tf.graph.rebuild import copy_model
from dqmq_tf.layers.trained_precision import precision_of
from dqmq_tf.policy.bit_width_policy import FROZEN, SEARCH, SETTLED
from dqmq_tf.policy.decision_table import DecisionTable
from dqmq_tf.training import objective, optimizers, policy_search
from dqmq_tf.training.batch_statistics import BatchStatistics
from dqmq_tf.training.search_schedule import SearchSchedule

_CALIBRATION_SAMPLES = 256


@keras.saving.register_keras_serializable(package="dqmq_tf")
class DQMQModel(keras.Model):
    """A quantized functional model with a policy; made by `dqmq_tf.quantize_model`.

    It has the inputs, outputs and layer names of the model it was made from; layers with kernels
    are wrapped in `QuantizeWrapper`. `fit` trains in three phases: a warm-up in which the network
    gets used to drawn bit-widths, the search in which the policy moves, and, from `config.settle`
    of the training on, fine-tuning at bits that meet the budget. A `fit` after that goes on
    fine-tuning at these bits.

    Attributes:
        parts: A `Parts`; its entries are also attributes of the model (`policy`, `target`, …).
    """

    def __init__(self, inputs, outputs, parts, name=None):
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        # A function hides the parts from Keras's tracking: they would be saved twice.
        self._get_parts = lambda: parts

    @property
    def _search(self):
        return policy_search.PolicySearch(self.policy, self.costs, self.budget, self.config)

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

    @property
    def _has_searched(self):
        return float(self.policy.search_step.numpy()) > 0

    @property
    def is_calibrated(self):
        """Whether activation step sizes have been set from data."""
        return all(float(q.calibrated.numpy()) > 0 for q in self._parts.quantizers)

    def float_model(self):
        """Returns a new float Keras model with the trained weights and no quantization."""
        return copy_model(self._parts.body)

    # Training.

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

    def fit(self, x=None, y=None, batch_size=None, epochs=1, callbacks=None, **kwargs):
        """Trains network and policy; arguments and result are those of `keras.Model.fit`.

        Raises:
            ValueError: If the data are empty or the images hold NaN or infinity.
        """
        steps = kwargs.get("steps_per_epoch") or inputs.steps_per_epoch(x, batch_size)
        if steps == 0:
            raise ValueError("The dataset is empty: there is no batch to train on.")
        if not self.is_calibrated:
            x, first = inputs.peek(x)
            self.calibrate(first)
        own = SearchSchedule(steps, self.config.settle), BatchStatistics(self._parts.norms, steps)
        if isinstance(callbacks, keras.callbacks.CallbackList):
            for callback in own:
                callbacks.append(callback)
        else:
            callbacks = [*keras.tree.flatten(callbacks or []), *own]
        return super().fit(
            x, y, batch_size=batch_size, epochs=epochs, callbacks=callbacks, **kwargs
        )

    def train_on_batch(self, x, y=None, **kwargs):
        if not self.is_calibrated:
            self.calibrate(x)
        return super().train_on_batch(x, y, **kwargs)

    def calibrate(self, x):
        """Sets activation step sizes and zero points, and the encoder's normalisation, on images.

        For a budget in bytes it also measures what rounding each kernel adds to the loss, and puts
        the policy there before its first search. `fit` does this on its first batch.

        Args:
            x: Images, or whatever the model takes, `[batch, ...]`.

        Raises:
            ValueError: If there are no images, or if they hold NaN or infinity.
        """
        x = inputs.checked_batch(x, _CALIBRATION_SAMPLES)
        layers = [*self._parts.quantizers, *self._parts.wrappers.values()]
        for layer in layers:
            layer.observe()
        try:
            # In training mode for batch statistics, in a scope that drops what would be assigned:
            # the moving statistics of a new network say nothing of what training will see.
            with keras.StatelessScope():
                self(x, training=True)
        finally:
            for layer in layers:
                layer.calibrate()
        self.encoder.calibrate(keras.tree.flatten(x)[0])
        self.measure_cost()
        if self.costs.in_bytes:
            losses = sensitivity.added_losses(self._parts, x, self.policy.bit_widths)
            self.policy.loss_table.assign(losses)
            if not self._has_searched:
                self.start_at_budget()

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        searching = self.policy.phase == SEARCH
        trained = self.trainable_variables
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        terms, expected = {}, None
        scale = self.optimizer.scale_loss(ops.ones(()))
        self.policy.loss_scale.assign(scale / replicas)
        with tf.GradientTape() as tape:
            result = self._parts.instrumented(inputs.finite(x), training=True)
            loss = self._task_loss(x, y, result["outputs"], sample_weight, training=True)
            total = loss
            if searching:
                losses = None
                if self.loss is not None:
                    losses = objective.per_sample_losses(
                        self.loss,
                        y,
                        result["outputs"],
                        sample_weight,
                        self._loss_weights,
                        self.output_names,
                    )
                terms, expected = self._search.terms(result, losses)
                total = total + sum(terms.values()) / replicas
            total = total * scale
        decided = [result["activations"], result["weights"]]
        gradients = tape.gradient(total, trained + decided)
        optimizers.apply(self, self._search.gated(zip(gradients, trained)), scale)
        logs = self._logs(x, y, result["outputs"], sample_weight, loss * replicas)
        if searching:
            self._search.advance()
            self.encoder.adapt(keras.tree.flatten(x)[0])
            pulls = [ops.sum(ops.abs(g[..., -1])) for g in gradients[-2:] if g is not None]
            logs |= {**terms, "pathwise": sum(pulls, ops.zeros(())) / scale, "cost": expected}
            logs["multiplier"] = self.policy.multiplier.value
        logs["mean_bits"] = policy_search.mean_bits(result, self.costs)
        return logs

    def test_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(inputs.finite(x), training=False)
        loss = self._task_loss(x, y, y_pred, sample_weight, training=False)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return self._logs(x, y, y_pred, sample_weight, loss * replicas)

    def _task_loss(self, x, y, y_pred, sample_weight, training):
        return self.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )

    def _logs(self, x, y, y_pred, sample_weight, loss):
        for metric in self.metrics:
            if metric.name == "loss":
                batch = ops.shape(keras.tree.flatten(x)[0])[0]
                metric.update_state(loss, sample_weight=batch)
        return dict(self.compute_metrics(x, y, y_pred, sample_weight=sample_weight))

    # Phases.

    def start_at_budget(self):
        """Puts the means where they meet the budget, by what is known of the layers."""
        self.policy.mean.assign(assignment.starting_means(self.policy, self.costs, self.budget))

    def begin_search(self, total_steps):
        """Starts the clock of the search: how many training steps `fit` will take in all."""
        if self.costs.in_bytes and not self._has_searched:
            self._scales(None).start()
        self.policy.search_step.assign(0.0)
        self.policy.search_total.assign(float(total_steps))
        self.set_policy_rate(total_steps)

    def set_policy_rate(self, total_steps, faded=0.0):
        """Sets the rates of what sees the quality.

        Args:
            total_steps: Steps of this `fit`.
            faded: Share by which it has fallen in the fine-tuning at settled bits.
        """
        rate = self.config.policy_learning_rate or self._search.rate(total_steps)
        optimizers.set_rate(self, rate * (1.0 - faded))

    def progress(self):
        """Returns the share of the training that is done, 0.5 where its length is unknown."""
        return float(ops.convert_to_numpy(self._search.progress()))

    def measure_cost(self):
        """Measures again what each bit-width of each kernel costs, for budgets in bytes."""
        wrappers, points = self._parts.wrappers, self.costs.weights
        self.costs.measure(
            lambda i, bits: wrappers[points[i].path].integers(points[i].variable, bits)
        )
        if self.costs.in_bytes:
            self.policy.byte_table.assign(self.costs.table_array(self.policy.bit_widths))

    def settle(self):
        """Fixes weight bits to the budget and ends the search; `fit` goes on training at them."""
        self._scales(None).settle()
        self._rebuild_functions()

    def keep_budget(self, share=1.0):
        """Brings settled bits back to the budget.

        Bytes drift with the integers that are trained; bit operations are known better from what
        was seen since than when the encoder was still learning.

        Args:
            share: Of a budget in bytes that they may take.
        """
        if self.policy.phase == SETTLED:
            self._scales(None).keep(share)

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
        if not self.is_calibrated:
            raise ValueError("The model has not seen data: call fit, or calibrate(images), first.")
        self._scales(data).freeze(count)
        self._rebuild_functions()
        return self

    def resume_search(self):
        """Lets the policy move again: the next `fit` searches and settles anew."""
        self.policy.phase = SEARCH
        self.policy.profiles = 1
        self._rebuild_functions()

    def _scales(self, data):
        """Returns the `Scales` for data, or for what training saw last."""
        if data is None:
            seen = self.policy.observed()
            seen = seen if len(seen) else np.zeros((1, self.config.embedding_size), "float32")
        else:
            each = [ops.convert_to_numpy(self._embed(x)) for x in inputs.batches(data)]
            seen = np.concatenate(each)
        return BudgetKeeper(self, seen)

    def _rebuild_functions(self):
        # The phase is part of the traced graph.
        for make in (self.make_train_function, self.make_test_function, self.make_predict_function):
            if self.compiled or make == self.make_predict_function:
                make(force=True)

    # What was decided.

    def decisions(self, images):
        """Returns the bit-widths per sample and decision point as a `DecisionTable`.

        Args:
            images: Images `[batch, ...]`, or a dataset of images or `(image, label)`.

        Example:

        >>> table = qmodel.decisions(noisy)
        >>> table["conv2d:kernel"].mean()
        """
        found = [self._decide(x) for x in inputs.batches(images)]
        if not found:
            raise ValueError("There are no images to decide on.")
        return DecisionTable.of(found, self.decision_points, self.policy.bits_vary_by)

    @property
    def decision_points(self):
        """Names of the decision points, activations first."""
        activations = [self.costs.activations[i].name for i in self.costs.decided]
        return (*activations, *(point.name for point in self.costs.weights))

    def _embed(self, x):
        return self.encoder(ops.convert_to_tensor(keras.tree.flatten(x)[0]))

    def _decide(self, x):
        result = self.policy(self._embed(x), training=False)
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
            "phase": self.policy.phase,
            "profiles": self.policy.profiles,
            "file_constant": self.costs.file_constant,
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
        )
        model = cls(*made, name=config["name"])
        model.policy.phase, model.policy.profiles = config["phase"], config["profiles"]
        model.costs.file_constant = config["file_constant"]
        return model
