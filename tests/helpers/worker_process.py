"""Trains a small model as one of two worker processes.

    python tests/helpers/worker_process.py INDEX PORTS FOLDER [--killed]

The worker stores a backup after each epoch, and goes on from there if it finds one. With `--killed`
it kills itself in the third of six epochs. Each worker writes its weights to `FOLDER`, and the first
one, the chief, also its model and what `convert` said.
"""

import json
import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

INDEX, PORTS, FOLDER = int(sys.argv[1]), sys.argv[2].split(","), pathlib.Path(sys.argv[3])
KILLED = "--killed" in sys.argv
_WORKERS = [f"localhost:{port}" for port in PORTS]
_CLUSTER = {"cluster": {"worker": _WORKERS}, "task": {"type": "worker", "index": INDEX}}
os.environ["TF_CONFIG"] = json.dumps(_CLUSTER)

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

# Worker processes meet when the strategy is created, before anything else runs on the devices.
strategy = tf.distribute.MultiWorkerMirroredStrategy()

import dqmq_tf  # noqa: E402


class Killed(keras.callbacks.Callback):
    """Ends the process in the middle of an epoch, as `kill -9` does."""

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 2 and batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def main():
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((images, np.arange(64) % 3)).batch(16)
    layers = keras.layers
    with strategy.scope():
        model = keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3, use_bias=False)])
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
        model.add(layers.GlobalAveragePooling2D())
        model.add(layers.Dense(3))
        qmodel = dqmq_tf.quantize_model(model, target="android")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        qmodel.compile("adam", loss, metrics=["accuracy"])
    callbacks = [keras.callbacks.BackupAndRestore(str(FOLDER / f"backup{INDEX}"))]
    callbacks += [Killed()] if KILLED else []
    history = qmodel.fit(data, epochs=6, verbose=0, callbacks=callbacks, validation_data=data)
    evaluated = qmodel.evaluate(data, verbose=0, return_dict=True)
    predicted = qmodel.predict(images, verbose=0)
    np.savez(FOLDER / f"weights{INDEX}.npz", *qmodel.get_weights())
    facts = {"history": history.history, "evaluated": evaluated, "shape": predicted.shape}
    if INDEX == 0:
        qmodel.save(FOLDER / "model.keras")
        try:
            dqmq_tf.convert(qmodel, FOLDER / "model.tflite", data=images)
        except ValueError as error:
            facts["convert"] = str(error)
    (FOLDER / f"facts{INDEX}.json").write_text(json.dumps(facts))
    # A worker that ended now would end the others.
    strategy.run(lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.ones(())))


main()
