"""What `fit` does between settled bits and its end: bytes that drift are brought back in time."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.frozen_models import small_model
from helpers.small_networks import compiled, network

import dqmq_tf
from dqmq_tf.budget.budget_keeper import BudgetKeeper

_BUDGET = 6_500
_IMAGES = np.random.default_rng(0).random((64, 16, 16, 3)).astype("float32")
_LABELS = np.random.default_rng(1).integers(0, 10, 64)


class Drift(keras.callbacks.Callback):
    """Gives every weight a bit more once the bits are settled, and notes bits and bytes."""

    def __init__(self):
        super().__init__()
        self.bytes, self.bits = [], []

    def on_train_batch_end(self, batch, logs=None):
        policy = self.model._parts.policy
        if policy.phase != "settled":
            return
        if not self.bytes:
            policy.assigned.assign(np.minimum(policy.assigned.numpy() + 1, 8))
        self.model._training.keeper.measure()
        self.bytes.append(BudgetKeeper(self.model._parts).largest_file())
        self.bits.append(policy.assigned.numpy()[0])


def test_bits_over_the_budget_are_lowered_while_they_can_still_be_trained():
    budget = dqmq_tf.Budget(download_bytes=_BUDGET)
    config = dqmq_tf.DQMQConfig(settle=0.6)
    qmodel = compiled(
        dqmq_tf.quantize_model(network(), target="android", budget=budget, config=config)
    )
    drift = Drift()
    qmodel.fit(_IMAGES, _LABELS, batch_size=16, epochs=10, callbacks=[drift], verbose=0)
    steps = len(drift.bytes)
    assert 14 <= steps <= 17
    half = steps // 2
    assert min(drift.bytes[: half - 1]) > _BUDGET >= max(drift.bytes[half + 1 :])
    np.testing.assert_array_equal(qmodel.freeze()._parts.policy.assigned.numpy()[0], drift.bits[-1])


def test_bits_within_the_budget_stay():
    budget = dqmq_tf.Budget(download_bytes=_BUDGET)
    qmodel = compiled(dqmq_tf.quantize_model(network(), target="android", budget=budget))
    qmodel.fit(_IMAGES, _LABELS, batch_size=16, epochs=2, verbose=0)
    settled = qmodel._parts.policy.assigned.numpy()
    qmodel.fit(_IMAGES, _LABELS, batch_size=16, epochs=2, verbose=0)
    np.testing.assert_array_equal(qmodel._parts.policy.assigned.numpy(), settled)


class Growth(keras.callbacks.Callback):
    """Doubles the kernels after every epoch, so that step sizes of bits that do not run get stale."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.stop_at = stop_at

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.stop_at:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        for wrapper in self.model._parts.wrappers.values():
            wrapper.layer.kernel.assign(2 * wrapper.layer.kernel)


def test_step_sizes_that_follow_the_weights_are_resumed_too(tmp_path):
    def trained(*callbacks):
        config = dqmq_tf.DQMQConfig(settle=0.5)
        qmodel = dqmq_tf.quantize_model(small_model(), target="android", config=config)
        qmodel.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
        images, labels = _IMAGES[:32, :8, :8], _LABELS[:32] % 4
        options = {"batch_size": 16, "epochs": 4, "shuffle": False, "verbose": 0}
        qmodel.fit(images, labels, callbacks=list(callbacks), **options)
        return qmodel

    whole = trained(Growth())
    folder = str(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        trained(Growth(stop_at=1), keras.callbacks.BackupAndRestore(folder))
    resumed = trained(Growth(), keras.callbacks.BackupAndRestore(folder))
    for found, expected in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_search_begins_at_the_first_epoch_also_if_its_length_is_unknown(tmp_path):
    images, labels = _IMAGES[:32, :8, :8], _LABELS[:32] % 4

    def data():
        yield from zip(np.split(images, 2), np.split(labels, 2))

    class Progress(keras.callbacks.Callback):
        def __init__(self, stop_at=None):
            super().__init__()
            self.steps, self.stop_at = {}, stop_at

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == self.stop_at:
                raise KeyboardInterrupt

        def on_epoch_end(self, epoch, logs=None):
            policy = self.model._parts.policy
            self.steps[epoch] = policy.search_step.numpy(), policy.search_total.numpy()

    def searched(stop_at=None, callbacks=(), **options):
        qmodel = dqmq_tf.quantize_model(small_model(), target="simulation")
        qmodel.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
        progress = Progress(stop_at)
        dataset = tf.data.Dataset.from_generator(
            data, output_signature=(tf.TensorSpec((16, 8, 8, 3)), tf.TensorSpec((16,), "int64"))
        )
        qmodel.fit(dataset, verbose=0, callbacks=[*callbacks, progress], **options)
        return progress.steps

    assert searched(initial_epoch=5, epochs=8) == {5: (2, 6), 6: (4, 6), 7: (4, 6)}
    for stop_at in (1, 2):
        folder = str(tmp_path / f"backup_{stop_at}")
        with pytest.raises(KeyboardInterrupt):
            searched(stop_at, [keras.callbacks.BackupAndRestore(folder)], epochs=5)
        resumed = searched(None, [keras.callbacks.BackupAndRestore(folder)], epochs=5)
        planned = {1: (4, 10), 2: (6, 10), 3: (6, 10), 4: (6, 10)}
        assert resumed == {epoch: planned[epoch] for epoch in range(stop_at, 5)}


def test_a_search_that_starts_again_is_not_taken_for_one_that_was_interrupted():
    qmodel = dqmq_tf.quantize_model(small_model(), target="simulation")
    qmodel.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    data = {"x": _IMAGES[:32, :8, :8], "y": _LABELS[:32] % 4, "batch_size": 8, "verbose": 0}
    qmodel.fit(**data, epochs=4)
    qmodel.resume_search()
    qmodel.fit(**data, epochs=4, initial_epoch=2)
    # The search takes 60 % of the eight steps of these two epochs.
    assert qmodel._training.steps_searched == 5
