"""The schedule of the search follows the steps that are really trained."""

import keras
import numpy as np
import pytest
from helpers.frozen_models import small_model

import dqmq_tf

IMAGES = np.random.default_rng(0).uniform(0, 1, (32, 8, 8, 3)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 4, 32)


def quantized():
    config = dqmq_tf.DQMQConfig(settle=0.5)
    qmodel = dqmq_tf.quantize_model(small_model(), target="simulation", config=config)
    # Tracing would take longer than these few steps.
    qmodel.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=True)
    return qmodel


class Phases(keras.callbacks.Callback):
    """Notes the phase of every step."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_batch_end(self, batch, logs=None):
        self.found.append(self.model._parts.policy.phase)


@pytest.mark.parametrize(
    "options, steps, searched",
    [
        ({"epochs": 4}, 8, 4),
        ({"epochs": 4, "validation_split": 0.5}, 4, 2),
        ({"epochs": 10, "initial_epoch": 8}, 4, 2),
        ({"epochs": 4, "steps_per_epoch": 1}, 4, 2),
    ],
    ids=["plain", "validation split", "initial epoch", "steps per epoch"],
)
def test_half_of_the_trained_steps_are_searched(options, steps, searched):
    phases, qmodel = Phases(), quantized()
    qmodel.fit(IMAGES, LABELS, batch_size=16, verbose=0, callbacks=[phases], **options)
    assert phases.found == ["search"] * searched + ["settled"] * (steps - searched)


def test_no_epochs_change_nothing():
    qmodel = quantized()
    qmodel.fit(IMAGES, LABELS, epochs=0, verbose=0)
    assert qmodel._parts.policy.phase == "search"


class Interrupt(keras.callbacks.Callback):
    """Ends the training as a killed process does, at the beginning of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def train(*callbacks):
    qmodel = quantized()
    options = {"batch_size": 16, "epochs": 4, "shuffle": False, "verbose": 0}
    qmodel.fit(IMAGES, LABELS, callbacks=list(callbacks), **options)
    return qmodel


@pytest.fixture(scope="module")
def whole():
    """A model whose training was not interrupted."""
    return train()


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_training_that_is_resumed_ends_as_the_one_that_was_not(epoch, whole, tmp_path):
    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    with pytest.raises(KeyboardInterrupt):
        train(backup(), Interrupt(epoch))
    phases = Phases()
    resumed = train(backup(), phases)
    assert len(phases.found) == 2 * (4 - epoch)
    for one, other in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


def test_a_stop_during_the_search_says_that_nothing_was_fine_tuned():
    qmodel = quantized()
    with pytest.warns(UserWarning, match="25 % of the training.*Call fit once more") as said:
        qmodel.fit(IMAGES, LABELS, batch_size=16, epochs=4, verbose=0, callbacks=[Stop()])
    assert len([w for w in said if "fine-tuning" in str(w.message)]) == 1
    assert qmodel._parts.policy.phase == "settled"


def test_logs_have_the_same_names_in_every_epoch(tmp_path):
    qmodel = quantized()
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}-{cost:.1f}.weights.h5",
                                                 save_weights_only=True)  # fmt: skip
    history = qmodel.fit(
        IMAGES, LABELS, 16, 4, 0, [checkpoint, keras.callbacks.CSVLogger(tmp_path / "log.csv")]
    ).history
    assert {"loss", "accuracy", "cost", "mean_bits", "multiplier"} <= set(history)
    assert {len(values) for values in history.values()} == {4}
    assert history["cost"][-1] <= qmodel.budget.value
    assert len(list(tmp_path.glob("*.h5"))) == 4
    loss, accuracy = qmodel.train_on_batch(IMAGES, LABELS)
    assert np.isfinite([loss, accuracy]).all()


def test_losses_and_metrics_go_by_the_names_of_the_outputs():
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(x))
    boxes = keras.layers.Dense(4, name="boxes")(x)
    scores = keras.layers.Dense(10, activation="softmax", name="scores")(x)
    qmodel = dqmq_tf.quantize_model(keras.Model(inputs, [scores, boxes]))
    assert qmodel.output_names == ["scores", "boxes"]
    qmodel.compile(
        "sgd",
        loss={"boxes": "mse", "scores": "sparse_categorical_crossentropy"},
        metrics={"scores": ["accuracy"]},
        run_eagerly=True,
    )
    history = qmodel.fit(IMAGES, [LABELS, np.zeros((32, 4))], verbose=0).history
    assert {"scores_loss", "boxes_loss", "scores_accuracy"} <= set(history)
