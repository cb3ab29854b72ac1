"""Trains a small model as one of two worker processes."""

import json
import os
import signal

import keras
import numpy as np


class Killed(keras.callbacks.Callback):
    """Ends the process in the middle of an epoch, as `kill -9` does."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 2 and batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train(index, ports, folder, killed=None):
    """Trains, and writes the weights to a folder; the chief also its model and what `convert` said.

    The worker stores a backup after each epoch, and goes on from there if it finds one.

    Args:
        index: Number of this worker; 0 is the chief.
        ports: A port for each worker.
        folder: Where the backups are, and what the workers write.
        killed: Number of the worker that kills itself in the third of six epochs; None for none.
    """
    workers = [f"localhost:{port}" for port in ports]
    cluster = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
    os.environ["TF_CONFIG"] = json.dumps(cluster)

    import tensorflow as tf

    # Worker processes meet when the strategy is created, before anything else runs on the devices.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    import dqmq_tf

    # Weights come from the chief, but each worker drops others.
    keras.utils.set_random_seed(index)
    images = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((images, np.arange(64) % 3)).batch(16)
    layers = keras.layers
    with strategy.scope():
        model = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3, use_bias=False)])
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
        model.add(layers.GlobalAveragePooling2D())
        model.add(layers.Dropout(0.3))
        model.add(layers.Dense(3))
        qmodel = dqmq_tf.quantize_model(model, target="android")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # Its graph is smaller than that of Adam, whose policy and encoder train here anyway.
        qmodel.compile(keras.optimizers.SGD(1e-3), loss, metrics=["accuracy"])
    callbacks = [keras.callbacks.BackupAndRestore(str(folder / f"backup{index}"))]
    callbacks += [Killed()] if index == killed else []
    # Only the run that is not killed reports what it validates; the other one need not trace that.
    validation = data if killed is None else None
    history = qmodel.fit(data, epochs=6, verbose=0, callbacks=callbacks, validation_data=validation)
    evaluated = qmodel.evaluate(data, verbose=0, return_dict=True)
    predicted = qmodel.predict(images, verbose=0)
    np.savez(folder / f"weights{index}.npz", *qmodel.get_weights())
    facts = {"history": history.history, "evaluated": evaluated, "shape": predicted.shape}
    if index == 0:
        qmodel.save(folder / "model.keras")
        try:
            dqmq_tf.convert(qmodel, folder / "model.tflite", data=images)
        except ValueError as error:
            facts["convert"] = str(error)
    (folder / f"facts{index}.json").write_text(json.dumps(facts))
    # A worker that ended now would end the others.
    strategy.run(lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.ones(())))
