"""Functions that run one training step at a time, on random images, for both Keras 3 and tf_keras."""

import numpy as np
import tensorflow as tf


def random_batch(model, batch_size):
    """Returns a batch of random images, with values from 0 to 255, and random labels."""
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (batch_size, *model.input_shape[1:])).astype("float32")
    return images, random.integers(0, model.output_shape[-1], batch_size)


def compiled(model):
    """Compiles a model in the most common way, and returns it."""
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def step_function(model, batch, warmup):
    """Returns a function that runs one training step to its end, after `warmup` such steps."""
    if model.train_function is None:
        model.make_train_function()
    endless = iter(tf.data.Dataset.from_tensors(batch).repeat())

    def step():
        logs = model.train_function(endless)
        float(logs["loss"])

    for _ in range(warmup):
        step()
    return step
