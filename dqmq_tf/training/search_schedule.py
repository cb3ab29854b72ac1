"""When the policy warms up, searches and settles within `fit`."""

import warnings

import keras

from dqmq_tf.policy.bit_width_policy import REMEMBERED, RESERVOIR, SEARCH

# Bytes still drift a little in the second half of the fine-tuning.
_DRIFT = 0.995


class SearchSchedule(keras.callbacks.Callback):
    """Tells a `DQMQModel` how long its training is, and settles the bits in time.

    Args:
        steps: Steps per epoch, or None if unknown: then progress is told by epochs.
        settle: Share of the training after which the bits are fixed for the last fine-tuning.
    """

    def __init__(self, steps, settle):
        super().__init__()
        self.steps, self.settle = steps, settle

    def on_train_begin(self, logs=None):
        total = (self.steps or 0) * (self.params["epochs"] or 1)
        searching = self.model.policy.phase == SEARCH
        if self.steps and searching:
            self.model.begin_search(total)
        elif self.steps:
            self.model.set_policy_rate(total)
        # Half-way through the fine-tuning, so that what has to lose a bit is still trained at it;
        # operations as soon as all that is remembered was seen by the encoder as it stays.
        self.total, self.settled_at = total, self.settle * total if searching else 0.0
        later = (total - self.settled_at) / 2
        if not self.model.costs.in_bytes:
            later = min(later, RESERVOIR // REMEMBERED)
        self.weigh_at = self.settled_at + later if self.steps else None

    def on_epoch_begin(self, epoch, logs=None):
        self.begun = epoch * (self.steps or 0)
        if self.model.policy.phase != SEARCH:
            return
        self.model.measure_cost()
        if not self.steps and epoch >= self.settle * (self.params["epochs"] or 1):
            self.model.settle()

    def on_train_batch_begin(self, batch, logs=None):
        if not self.steps:
            return
        if self.model.policy.phase == SEARCH:
            if self.model.progress() >= self.settle:
                self.model.settle()
            return
        faded = (self.begun + batch - self.settled_at) / (self.total - self.settled_at)
        self.model.set_policy_rate(self.total, min(max(faded, 0.0), 1.0))
        if self.weigh_at is not None and self.begun + batch >= self.weigh_at:
            self.model.keep_budget(_DRIFT)
            self.weigh_at = None

    def on_epoch_end(self, epoch, logs=None):
        if not self.steps and self.model.policy.phase == SEARCH:
            self.steps_seen = int(self.model.policy.search_step.numpy())
            self.model.policy.search_total.assign(
                self.steps_seen / (epoch + 1) * (self.params["epochs"] or 1)
            )

    def on_train_end(self, logs=None):
        if self.model.policy.phase == SEARCH:
            if not self.steps:
                warnings.warn(
                    "The length of the data is unknown, so the bit-widths were fixed only at the "
                    "end of fit, without fine-tuning at them: pass steps_per_epoch, or call fit "
                    "once more.",
                    stacklevel=2,
                )
            self.model.settle()
        self.model.keep_budget()
