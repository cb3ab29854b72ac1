"""`fit` is called in the ways that Keras allows, for a few steps."""

import keras
import numpy as np
import pytest
from helpers.frozen_models import small_model
from helpers.new_process import in_new_process

import dqmq_tf

IMAGES = np.random.default_rng(0).random((33, 8, 8, 3)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 4, 33)


def eager_model():
    """Tracing would take longer than the few steps of these tests."""
    qmodel = dqmq_tf.quantize_model(small_model(), target="simulation")
    qmodel.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    return qmodel


def test_fit_takes_arrays_and_sample_weights_and_can_be_compiled_by_xla():
    # XLA is slow: the model has one layer of each kind, and no smaller last batch, for which XLA
    # would compile the whole step again.
    qmodel = dqmq_tf.quantize_model(small_model(), target="simulation")
    qmodel.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
    weights = np.linspace(0, 1, 32)
    data = {"x": IMAGES[:32], "y": LABELS[:32], "sample_weight": weights}
    history = qmodel.fit(**data, batch_size=16, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert qmodel._parts.policy.phase == "settled"


def test_fit_takes_a_generator_of_unknown_length_with_a_warning():
    def batches():
        for _ in range(3):
            yield IMAGES[:16], LABELS[:16]

    qmodel = eager_model()
    with pytest.warns(UserWarning, match="steps_per_epoch"):
        qmodel.fit(batches(), verbose=0)
    assert qmodel._parts.policy.phase == "settled"


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_data_without_labels_is_an_error_that_says_so(run_eagerly):
    qmodel = dqmq_tf.quantize_model(small_model(), target="simulation")
    loss, metrics = "sparse_categorical_crossentropy", ["accuracy"]
    qmodel.compile("sgd", loss, metrics=metrics, run_eagerly=run_eagerly)
    for use in (qmodel.fit, qmodel.train_on_batch, qmodel.evaluate):
        with pytest.raises(ValueError, match="needs labels, but found none in the data"):
            use(IMAGES)


def test_train_on_batch_moves_the_policy_also_after_the_search_is_resumed():
    qmodel = eager_model()
    before = qmodel._parts.policy.mean.numpy()
    qmodel.train_on_batch(IMAGES, LABELS)
    assert (qmodel._parts.policy.mean.numpy() != before).any()
    qmodel._training.settle()
    qmodel.resume_search()
    settled = qmodel._parts.policy.mean.numpy()
    qmodel.train_on_batch(IMAGES, LABELS)
    assert (qmodel._parts.policy.mean.numpy() != settled).any()


def test_a_callback_list_is_used_again_as_it_was():
    qmodel, history = eager_model(), keras.callbacks.History()
    callbacks = keras.callbacks.CallbackList([history])
    options = {"batch_size": 16, "steps_per_epoch": 2, "epochs": 2, "verbose": 0}
    for epochs in (2, 4):
        qmodel.fit(IMAGES[:32], LABELS[:32], callbacks=callbacks, **options)
        assert len(history.history["mean_bits"]) == epochs
        assert callbacks.callbacks == [history]
    assert qmodel._parts.policy.phase == "settled"


def test_train_on_batch_before_compile_is_the_error_of_keras():
    qmodel = dqmq_tf.quantize_model(small_model(), target="simulation")
    with pytest.raises(ValueError, match="compile"):
        qmodel.train_on_batch(IMAGES, LABELS)


def test_fit_runs_under_a_mirrored_strategy():
    code = (
        "import tempfile, tensorflow as tf, numpy as np, keras\n"
        "cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "two = [tf.config.LogicalDeviceConfiguration()] * 2\n"
        "tf.config.set_logical_device_configuration(cpu, two)\n"
        "import dqmq_tf\n"
        "L = keras.layers\n"
        "strategy = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])\n"
        "x = np.random.rand(32, 8, 8, 3).astype('float32'); y = np.arange(32) % 3\n"
        "for target in ('simulation', 'android'):\n"
        "    with strategy.scope():\n"
        "        m = keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(4, 3, activation='relu'),\n"
        "                              L.GlobalAveragePooling2D(), L.Dense(3)])\n"
        "        q = dqmq_tf.quantize_model(m, target=target)\n"
        "        q.compile('sgd', keras.losses.SparseCategoricalCrossentropy(from_logits=True))\n"
        "        inside = target == 'android'\n"
        "        if inside:\n"
        "            h = q.fit(x, y, batch_size=8, epochs=2, verbose=0, validation_data=(x, y))\n"
        "    if not inside:\n"
        "        h = q.fit(x, y, batch_size=8, epochs=2, verbose=0, validation_data=(x, y))\n"
        "    assert np.isfinite(h.history['loss']).all(), h.history\n"
        "    assert q._parts.policy.phase == 'settled'\n"
        "    print('steps', float(q._parts.policy.search_step.numpy()), target)\n"
        "    assert q(x[:4]).shape == (4, 3)\n"
        "    assert 'accuracy' in str(dqmq_tf.summary(q, (x, y)))\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    dqmq_tf.convert(q, folder + '/model.tflite', data=x)\n"
        "assert q._parts.policy.file_constant\n"
    )
    found = in_new_process(code).split("steps")[1:]
    assert len(found) == 2 and all(float(part.split()[0]) > 0 for part in found)
