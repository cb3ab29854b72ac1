"""A model that is dropped takes its traced graphs with it."""

import gc
import weakref

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tensorflow.python.framework.ops import gradient_registry

import dqmq_tf
from dqmq_tf.layers.custom_gradients import CustomGradients

IMAGES = np.random.default_rng(0).uniform(size=(16, 8, 8, 3)).astype("float32")
LABELS = np.arange(16) % 4


def trained_model(target="simulation"):
    model = keras.Sequential(
        [layers.Input((8, 8, 3)), layers.Conv2D(4, 3, activation="relu"), layers.Flatten()]
        + [layers.Dense(4)]
    )
    qmodel = dqmq_tf.quantize_model(model, target=target)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    qmodel.compile("adam", loss)
    qmodel.fit(IMAGES, LABELS, batch_size=8, epochs=2, verbose=0)
    qmodel.evaluate(IMAGES, LABELS, verbose=0)
    qmodel.predict(IMAGES, verbose=0)
    return qmodel


def registered():
    return {name for name in gradient_registry.list() if name.startswith("CustomGradient-")}


def step_graphs():
    gc.collect()  # Models; they release their graphs.
    gc.collect()
    graphs = (o for o in gc.get_objects() if isinstance(o, tf.Graph))
    return sum(getattr(graph, "name", "").startswith("one_step") for graph in graphs)


def test_a_dropped_model_leaves_no_graph_behind():
    graphs = step_graphs()
    trained_model()  # With the functions that all models share, which stay.
    assert step_graphs() == graphs
    before = registered()
    qmodel = trained_model()
    model = weakref.ref(qmodel)
    assert step_graphs() > graphs and registered() > before
    del qmodel
    assert step_graphs() == graphs
    assert model() is None and registered() == before


def test_a_living_model_can_be_differentiated_after_another_was_dropped():
    kept = trained_model()
    trained_model()
    gc.collect()

    @tf.function
    def outputs(x):
        return kept(x)

    @tf.function
    def gradient(x):
        return tf.gradients(outputs(x), x)

    assert np.abs(gradient(tf.constant(IMAGES))[0].numpy()).sum() > 0


def test_a_model_trains_eagerly_after_a_traced_one_was_dropped():
    trained_model()
    gc.collect()
    model = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Flatten()])
    qmodel = dqmq_tf.quantize_model(model, target="simulation")
    qmodel.compile("adam", "mse", run_eagerly=True)
    qmodel.fit(IMAGES[:8], np.zeros((8, 144)), verbose=0)


def test_only_what_is_registered_within_the_context_is_removed():
    class Owner:
        pass

    @tf.custom_gradient
    def identity(x):
        return tf.identity(x), lambda upstream: upstream

    owner = Owner()
    gradients = CustomGradients(owner)
    with tf.Graph().as_default():
        before = registered()
        identity(tf.constant(1.0))
        outside = registered() - before
        with gradients.owned():
            identity(tf.constant(1.0))
        inside = registered() - before - outside
    assert len(outside) == len(inside) == 1
    del owner
    gc.collect()
    assert outside <= registered() and not inside & registered()
