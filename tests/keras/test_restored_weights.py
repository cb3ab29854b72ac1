"""Weights that a user saves, restores or swaps bring the phase and the bits with them."""

import keras
import numpy as np
import pytest
from helpers.frozen_models import small_model

import dqmq_tf

IMAGES = np.random.default_rng(0).uniform(0, 1, (32, 8, 8, 3)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 4, 32)


def quantized(optimizer="adam", **options):
    qmodel = dqmq_tf.quantize_model(small_model())
    qmodel.compile(optimizer, "sparse_categorical_crossentropy", **options)
    return qmodel


def fitted(epochs=4, **options):
    # Tracing would take longer than these few steps.
    qmodel = quantized(run_eagerly=True)
    qmodel.fit(IMAGES, LABELS, batch_size=16, epochs=epochs, verbose=0, **options)
    return qmodel


@pytest.fixture(scope="module")
def settled():
    return fitted()


def predictions(qmodel):
    return qmodel.predict(IMAGES, verbose=0)


def by_set_weights(qmodel, fresh, folder):
    fresh.set_weights(qmodel.get_weights())


def by_a_weights_file(qmodel, fresh, folder):
    qmodel.save_weights(folder / "model.weights.h5")
    fresh.load_weights(folder / "model.weights.h5")


def by_assigning_each(qmodel, fresh, folder):
    for variable, other in zip(fresh.weights, qmodel.weights, strict=True):
        variable.assign(other)


@pytest.mark.parametrize("restore", [by_set_weights, by_a_weights_file, by_assigning_each])
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "traced before"])
def test_settled_weights_make_another_model_the_settled_one(settled, restore, used, tmp_path):
    fresh = quantized()
    if used:
        fresh.calibrate(IMAGES)
        predictions(fresh)
    restore(settled, fresh, tmp_path)
    assert fresh._parts.policy.phase == "settled"
    np.testing.assert_array_equal(
        fresh._parts.policy.assigned.numpy(), settled._parts.policy.assigned.numpy()
    )
    np.testing.assert_allclose(predictions(fresh), predictions(settled), atol=1e-6)


def test_weights_of_the_search_take_a_settled_model_back(settled):
    searching = quantized()
    searching.calibrate(IMAGES)
    other = quantized()
    other.set_weights(settled.get_weights())
    predictions(other)
    other.set_weights(searching.get_weights())
    assert other._parts.policy.phase == "search"
    np.testing.assert_allclose(predictions(other), predictions(searching), atol=1e-6)


class BestIs(keras.callbacks.Callback):
    """Makes a metric best in one epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = float(epoch == self.epoch)


@pytest.mark.parametrize("best, warns", [(0, True), (3, False)])
def test_the_best_epoch_is_restored_whatever_its_phase(best, warns, tmp_path, recwarn):
    stop = keras.callbacks.EarlyStopping(
        monitor="score", mode="max", patience=10, restore_best_weights=True
    )
    qmodel = fitted(callbacks=[BestIs(best), stop])
    said = [str(w.message) for w in recwarn if "without fine-tuning" in str(w.message)]
    assert bool(said) == warns
    assert qmodel._parts.policy.phase == "settled"
    path = tmp_path / "model.tflite"
    report = dqmq_tf.convert(qmodel, path, data=IMAGES, verify=False)
    assert report.download_bytes <= qmodel.budget.value


def test_moving_averages_of_weights_pair_with_the_optimizer():
    qmodel = quantized(keras.optimizers.Adam(1e-3, use_ema=True), run_eagerly=True)
    swap = keras.callbacks.SwapEMAWeights()
    qmodel.fit(
        IMAGES, LABELS, batch_size=16, epochs=2, verbose=0, callbacks=[swap],
        validation_data=(IMAGES, LABELS),
    )  # fmt: skip
    pairs = zip(qmodel.trainable_variables, qmodel.optimizer._trainable_variables, strict=True)
    assert all(a is b for a, b in pairs)


def test_parameters_are_those_of_the_network(settled):
    assert settled.count_params() == small_model().count_params()


@pytest.mark.parametrize(
    "target, is_frozen", [("android", True), ("android_small", False), ("microcontroller", False)]
)
def test_a_loaded_model_whose_bits_are_fixed_trains_on(target, is_frozen, tmp_path):
    qmodel = dqmq_tf.quantize_model(small_model(), target=target)
    qmodel.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    qmodel.fit(IMAGES, LABELS, batch_size=16, epochs=4, verbose=0)
    if is_frozen:
        qmodel.freeze(profiles=1)
    qmodel.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded._training.figures()["cost"] == pytest.approx(
        qmodel._training.figures()["cost"], rel=0.02
    )
    assert len(loaded.fit(IMAGES, LABELS, batch_size=16, epochs=2, verbose=0).epoch) == 2
