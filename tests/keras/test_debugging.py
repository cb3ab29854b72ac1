"""Training without traced functions, as users debug it: every phase runs eagerly, step by step."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import dqmq_tf

IMAGES = np.random.default_rng(0).uniform(0, 1, (12, 8, 8, 3)).astype("float32")
LABELS = np.arange(12) % 3
TERMS = {"score_function", "baseline", "model_cost", "entropy", "pathwise", "cost", "multiplier"}


def network(outputs=1):
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, activation="relu")(x)
    y = layers.Dropout(0.2)(layers.BatchNormalization()(y))
    y = layers.GlobalAveragePooling2D()(y)
    heads = [layers.Dense(3, name=f"head_{i}")(y) for i in range(outputs)]
    return keras.Model(x, heads if outputs > 1 else heads[0])


def quantized(model, profiles=1, target="simulation", **options):
    config = dqmq_tf.DQMQConfig(profiles=profiles)
    qmodel = dqmq_tf.quantize_model(model, target=target, config=config)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics = [["accuracy"]] * len(qmodel.outputs)
    qmodel.compile(keras.optimizers.Adam(0.01), loss, metrics=metrics, **options)
    return qmodel


@contextlib.contextmanager
def functions_run_eagerly():
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize(
    "way, target, profiles",
    [
        ("argument of compile", "simulation", 2),
        ("argument of compile", "android", 1),
        ("setting of TensorFlow", "simulation", 1),
    ],
)
def test_every_phase_runs_eagerly(way, target, profiles):
    is_setting = way.startswith("setting")
    qmodel = quantized(network(), profiles, target, run_eagerly=not is_setting)
    with functions_run_eagerly() if is_setting else contextlib.nullcontext():
        history = qmodel.fit(
            IMAGES, LABELS, batch_size=4, epochs=2, validation_split=0.34, verbose=0
        ).history
        assert TERMS | {"loss", "accuracy", "val_loss", "mean_bits"} <= set(history)
        assert all(isinstance(value, float) for values in history.values() for value in values)
        assert qmodel._parts.policy.phase == "settled"
        qmodel.fit(IMAGES, LABELS, batch_size=6, verbose=0)
        eager = qmodel.predict(IMAGES, verbose=0)
        scores = qmodel.evaluate(IMAGES, LABELS, verbose=0)
        qmodel.freeze(profiles)
        qmodel.predict(IMAGES, verbose=0)
    assert eager.shape == (12, 3) and len(scores) == 2


def test_steps_can_be_taken_one_by_one():
    """A subclass prints or looks at what it likes: the values are there, also of two outputs."""
    qmodel = quantized(network(outputs=2), run_eagerly=True)
    losses, seen = [], []
    train_step = qmodel.train_step

    def step(data):
        logs = train_step(data)
        seen.append(float(tf.reduce_sum(data[0]).numpy()))
        losses.append({name: float(value) for name, value in logs.items()})
        return logs

    qmodel.train_step = step
    qmodel.fit(IMAGES, [LABELS, LABELS], batch_size=6, epochs=2, verbose=0)
    assert len(losses) == len(seen) == 4
    names = {"loss", "head_0_loss", "head_1_loss", "head_0_accuracy", "head_1_accuracy"}
    assert names <= set(losses[0]) and not set(losses[0]) & TERMS


@pytest.mark.parametrize("options", [{"class_weight": {0: 2.0, 1: 1.0, 2: 0.5}}, {}])
def test_batches_are_trained_and_tested_eagerly(options):
    qmodel = quantized(network(), run_eagerly=True)
    for _ in range(2):
        loss, accuracy = qmodel.train_on_batch(IMAGES, LABELS, **options)
    assert np.isfinite(loss) and 0 <= accuracy <= 1
    assert len(qmodel.test_on_batch(IMAGES, LABELS)) == 2
    assert qmodel.predict_on_batch(IMAGES).shape == (12, 3)


def test_a_loop_of_the_user_runs_eagerly():
    qmodel = quantized(network())
    optimizer = keras.optimizers.Adam(0.01)
    with functions_run_eagerly(), qmodel.custom_training(steps=4, data=IMAGES) as training:
        for _ in range(4):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(qmodel(IMAGES, training=True)))
            training.apply_gradients(tape, loss, IMAGES, optimizer)
    assert qmodel._parts.policy.phase == "settled"
