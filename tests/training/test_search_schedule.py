"""What `fit` does between settled bits and its end: bytes that drift are brought back in time."""

import keras
import numpy as np
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
