"""Shows where `exposure="auto"` puts `layers.Exposure` in front of a float network, and where not.

Each case is a network that was trained on one kind of images, and images that it trains on further: in the
trial with `Exposure` in front and without. The signs need the dataset `gtsrb`, as `exposure.py` does.

    python examples/benchmarks/exposure_trials.py --output=examples/benchmarks/results/exposure_trials.json
"""

import dataclasses
import json
import pathlib

import keras
import rich.console
import rich.table
import tensorflow as tf
from absl import app, flags
from study import data_flags, datasets, signs

import dqmq_tf
from dqmq_tf import quality

_CACHE = flags.DEFINE_string("cache", "build/exposure", "Folder for images and float networks.")
_RATE = flags.DEFINE_float("learning_rate", 0.001, "The learning rate of the trials.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")
_START = "examples/benchmarks/starts/resnet8.keras"
# Batches of 128: at most 200 to train on, and 16 to compare.
_STEPS = 216


def compiled(model):
    """Returns a classifier with its loss."""
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def of_digits():
    """Yields the cases of digits: a network that has seen clean ones alone, then also degraded ones."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([layers.Input((16, 16, 1)), layers.Rescaling(1 / 255)])
    for filters in (16, 32):
        model.add(layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
    model.add(layers.Flatten())
    model.add(layers.Dense(10, activation="softmax"))
    images = quality.digits("train", size=16, channels=1).repeat(3)
    clean, mixed = images.batch(32), quality.mixed_quality(images.batch(32)).cache()
    compiled(model).fit(clean, epochs=3, verbose=0)
    yield "digits", "clean", "clean", model, clean, None
    yield "digits", "clean", "mixed", model, mixed, None
    model.fit(mixed, epochs=3, verbose=0)
    yield "digits", "mixed", "mixed", model, mixed, None


def of_cifar10():
    """Yields the cases of CIFAR-10: MLPerf Tiny's ResNet-8, and the same trained on degraded images."""
    mixtures = datasets.Mixtures(data_flags.DATA_DIR.value, _CACHE.value)
    mixed = mixtures.stream(0, _STEPS)
    for known, path in (("clean", data_flags.RESNET.value), ("mixed", _START)):
        model = compiled(keras.models.load_model(path, compile=False))
        yield "CIFAR-10", known, "mixed", model, mixed, None


def of_signs():
    """Yields the case of traffic signs, whose light varies by nature."""
    train, held_back = (signs.read(data_flags.DATA_DIR.value, n) for n in ("train", "validation"))
    start = {"body": data_flags.RESNET.value, "cache": _CACHE.value, "steps": 900}
    model = compiled(signs.float_start("nothing", 1000, train.x, train.y, **start))
    batches = signs.batches(train.x, train.y, 7, _STEPS)
    others = tf.data.Dataset.from_tensor_slices((held_back.x.astype("float32"), held_back.y))
    yield "traffic signs", "signs", "signs", model, batches, others.batch(128)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    rows = []
    table = rich.table.Table(
        "data", "trained on", "tried on", "loss without", "with", "gain", "pays"
    )
    for cases in (of_digits, of_cifar10, of_signs):
        for data, known, tried, model, batches, others in cases():
            trial = dqmq_tf.try_exposure(model, batches, others, learning_rate=_RATE.value)
            print(f"{data}, trained on {known}, tried on {tried}: {trial}", flush=True)
            row = {"data": data, "known": known, "tried": tried, "learning_rate": _RATE.value}
            fields = {field.name for field in dataclasses.fields(trial)} - {"model"}
            rows.append(row | {name: getattr(trial, name) for name in sorted(fields)})
            losses = f"{trial.loss:.4f}", f"{trial.exposed_loss:.4f}"
            gain = f"{trial.gain:.4f} ± {trial.error:.4f}"
            table.add_row(data, known, tried, *losses, gain, "yes" if trial.pays else "no")
    rich.console.Console(width=120).print(table)
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
