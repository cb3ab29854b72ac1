"""All steps from images of mixed quality to a mixed-precision `.tflite` file within a budget.

The script trains one network twice, from the same weights, on the same images in the same order, and
for the same number of steps: once in float, and once with learned bit-widths. Then it converts the
second one, and compares the file with both.

    python examples/quickstart.py
    python examples/quickstart.py --dataset=cifar10 --data_dir=~/tensorflow_datasets \
        --model=pretrainedResnet.h5

Without arguments it runs on scikit-learn's handwritten digits, which takes a few minutes on two CPU
cores and needs no download.
"""

import collections.abc
import dataclasses
import functools
import json
import math
import pathlib
import sys
import time

import keras
import rich.table
import tensorflow as tf
from absl import app, flags, logging

import dqmq_tf
from dqmq_tf import quality

_DATASET = flags.DEFINE_enum("dataset", "digits", ["digits", "cifar10"], "Images to train on.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of prepared tensorflow-datasets, for cifar10. None for the default folder of "
    "tensorflow-datasets, to which it downloads the data.",
)
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Trained float Keras model (.keras or .h5) to start from. It takes images of 32 x 32 x 3 with "
    "values from 0 to 255 and returns ten class probabilities. None builds a small network and trains "
    "it first.",
)
_TARGET = flags.DEFINE_string("target", "android", "Deployment target (see dqmq_tf.targets).")
_BUDGET_BYTES = flags.DEFINE_integer(
    "budget_bytes",
    None,
    "Budget: size of the file after deflate, in bytes. None for 50,000 (cifar10) or 28,000 (digits).",
    lower_bound=1,
)
_EPOCHS = flags.DEFINE_integer(
    "epochs", None, "Epochs of each training. None for 6 (cifar10) or 12 (digits).", lower_bound=1
)
_TRAIN_EXAMPLES = flags.DEFINE_integer(
    "train_examples",
    None,
    "Images per epoch. None for 25,600 (cifar10) or 1,437 (digits). Each epoch continues where the "
    "last one stopped, so the training sees the whole dataset even if an epoch is shorter.",
    lower_bound=1,
)
_TEST_EXAMPLES = flags.DEFINE_integer(
    "test_examples",
    None,
    "Test images. None for 10,000 (cifar10) or 1,800 (digits: each of its 360 test images five times, "
    "each time with another quality).",
    lower_bound=1,
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "Images per training step. None for 128 (cifar10) or 32 (digits).",
    lower_bound=2,
)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate",
    0.001,
    "Initial learning rate of Adam. It decays to 0 along a cosine.",
    lower_bound=0.0,
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the weights, the order of the data and the training degradations."
)
_OUTPUT = flags.DEFINE_string(
    "output", "build/quickstart", "Folder for model.tflite, model.keras and figures.json."
)
_PLOT = flags.DEFINE_bool("plot", False, "Also draw the summary to summary.png (needs matplotlib).")

# The mixture of qualities in the test set is fixed: it does not depend on --seed.
_TEST_SEED = 20_230_209
_TEST_BATCH = 200
_AGREEMENT_SAMPLES = 2_000


@dataclasses.dataclass(frozen=True)
class Preset:
    """Default values of the flags for one dataset."""

    budget_bytes: int
    epochs: int
    train_examples: int
    test_examples: int
    batch_size: int


_PRESETS = {
    "digits": Preset(
        budget_bytes=28_000,
        epochs=12,
        train_examples=1_437,
        test_examples=1_800,
        batch_size=32,
    ),
    "cifar10": Preset(
        budget_bytes=50_000,
        epochs=6,
        train_examples=25_600,
        test_examples=10_000,
        batch_size=128,
    ),
}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured value and the bound that it should meet.

    Attributes:
        name: What was measured.
        value: The measured value as text, with its unit.
        bound: The bound as text.
        kept: Whether the value meets the bound.
    """

    name: str
    value: str
    bound: str
    kept: bool


def settings() -> Preset:
    """Returns the `Preset` of the dataset, overridden by the flags that were given."""
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Preset)}
    given = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(_PRESETS[_DATASET.value], **given)


@functools.cache
def images(split: str) -> tf.data.Dataset:
    """Returns a dataset of `(uint8 image [32, 32, 3], label)`, kept in memory."""
    if _DATASET.value == "digits":
        return quality.digits(split, size=32)
    dataset, _ = quality.load(_DATASET.value, split=split, data_dir=_DATA_DIR.value)
    return dataset.cache()


def as_floats(image: tf.Tensor, label: tf.Tensor, *drawn: dict) -> tuple:
    """Casts images to float32. Values stay between 0 and 255, as the networks here expect them."""
    return (tf.cast(image, tf.float32), label, *drawn)


def training_batches(batch_size: int) -> tf.data.Dataset:
    """Returns an endless dataset of mixed-quality batches. Each iteration yields the same batches."""
    data = images("train")
    data = data.shuffle(50_000, seed=_SEED.value, reshuffle_each_iteration=False).repeat()
    # An image's degradation depends on its position, which keeps counting when the dataset repeats.
    # So each pass over the images degrades them differently.
    mixed = quality.mixed_quality(data.batch(batch_size), seed=_SEED.value)
    return mixed.map(as_floats).prefetch(tf.data.AUTOTUNE)


def test_batches(count: int) -> tf.data.Dataset:
    """Returns batches of `(image, label, quality)` with a fixed mixture of qualities."""
    data = images("test").repeat().take(count).batch(_TEST_BATCH)
    return quality.mixed_quality(data, seed=_TEST_SEED, with_quality=True).map(as_floats).cache()


def small_network() -> keras.Model:
    """Returns an untrained convolutional network for 32 x 32 images and ten classes."""
    x = inputs = keras.Input((32, 32, 3), name="image")
    for index, (filters, strides) in enumerate([(16, 2), (32, 1), (48, 2), (64, 1)]):
        x = keras.layers.Conv2D(
            filters, 3, strides=strides, padding="same", use_bias=False, name=f"conv_{index}"
        )(x)
        # The training is short, so the moving averages must adapt quickly.
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"norm_{index}")(x)
        x = keras.layers.ReLU(name=f"relu_{index}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = keras.layers.Dense(10, activation="softmax", name="classes")(x)
    return keras.Model(inputs, outputs, name="small_network")


def train(model: keras.Model, chosen: Preset) -> None:
    """Trains a model in place. Float and quantized models use the same recipe."""
    steps = math.ceil(chosen.train_examples / chosen.batch_size)
    rate = keras.optimizers.schedules.CosineDecay(_LEARNING_RATE.value, steps * chosen.epochs)
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    started = time.perf_counter()
    model.fit(
        training_batches(chosen.batch_size),
        steps_per_epoch=steps,
        epochs=chosen.epochs,
        shuffle=False,  # The dataset is shuffled.
        verbose=1 if sys.stdout.isatty() else 2,
    )
    print(f"{time.perf_counter() - started:.0f} s")


def accuracy(model: keras.Model, test: tf.data.Dataset) -> float:
    """Returns the share of test images that a model classifies correctly."""
    correct, count = 0, 0
    for image, label, *_ in test:
        predicted = tf.argmax(model.predict_on_batch(image), axis=-1)
        correct += int(tf.reduce_sum(tf.cast(predicted == label, tf.int32)))
        count += len(label)
    return correct / count


def starting_model() -> keras.Model:
    """Returns the float model that both trainings start from."""
    if _MODEL.value:
        return keras.models.load_model(_MODEL.value, compile=False)
    rich.print("\n[bold]Training a small float network on mixed-quality images[/bold]")
    model = small_network()
    train(model, settings())
    return model


def figures(
    report: dqmq_tf.ConversionReport,
    agreement: float,
    samples: int,
    float_accuracy: float,
    dqmq_accuracy: float,
    budget_bytes: int,
) -> list[Figure]:
    """Returns the `Figure`s that show whether the run met its goals."""
    widths = sorted({tensor.bit_width for tensor in report.weights})
    lost = 100 * (float_accuracy - dqmq_accuracy)
    return [
        Figure(
            "file under deflate",
            f"{report.download_bytes:,} bytes",
            f"<= {budget_bytes:,} bytes",
            report.download_bytes <= budget_bytes,
        ),
        Figure(
            "distinct weight bit-widths",
            f"{len(widths)} ({', '.join(map(str, widths))})",
            ">= 3",
            len(widths) >= 3,
        ),
        Figure(
            "accuracy lost against float",
            f"{lost:.2f} points",
            "<= 1.0 points",
            lost <= 1.0,
        ),
        Figure(
            f"the file agrees with Keras, {samples:,} images",
            f"{100 * agreement:.2f} %",
            ">= 99 %",
            agreement >= 0.99,
        ),
    ]


def print_table(rows: collections.abc.Iterable[Figure]) -> None:
    """Prints the figures as a table."""
    table = rich.table.Table("figure", "measured", "bound", "", title="What came out")
    for row in rows:
        table.add_row(row.name, row.value, row.bound, "kept" if row.kept else "MISSED")
    rich.print(table)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    # TensorFlow's exporter logs its progress at the level INFO.
    logging.set_verbosity(logging.ERROR)
    chosen = settings()
    output = pathlib.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(_SEED.value)
    test = test_batches(chosen.test_examples)

    model = starting_model()
    print(f"float model at the start: {100 * accuracy(model, test):.2f} % of the test images")
    qmodel = dqmq_tf.quantize_model(
        model,
        target=_TARGET.value,
        budget=dqmq_tf.Budget(download_bytes=chosen.budget_bytes),
        config=dqmq_tf.DQMQConfig(seed=_SEED.value),
    )
    rich.print("\n[bold]Training the float model further[/bold]")
    train(model, chosen)
    float_accuracy = accuracy(model, test)
    print(f"float: {100 * float_accuracy:.2f} %")

    rich.print("\n[bold]Training with DQMQ, from the same weights and for as long[/bold]")
    train(qmodel, chosen)
    qmodel.freeze()
    dqmq_accuracy = accuracy(qmodel, test)
    print(f"DQMQ, frozen to one precision profile: {100 * dqmq_accuracy:.2f} %")

    summary = dqmq_tf.summary(qmodel, test)
    print(summary)
    if _PLOT.value:
        summary.plot(output / "summary.png")

    test_images = test.map(lambda image, label, drawn: image)
    report = dqmq_tf.convert(qmodel, output / "model.tflite", data=test_images)
    rich.print(report)
    samples = min(_AGREEMENT_SAMPLES, chosen.test_examples)
    verified = dqmq_tf.verify(qmodel, output / "model.tflite", test_images, samples=samples)
    qmodel.save(output / "model.keras")

    print(
        f"float {100 * float_accuracy:.2f} %, DQMQ {100 * dqmq_accuracy:.2f} % of the test images"
    )
    print(f"{report.path}: {report.size_bytes:,} bytes, {report.download_bytes:,} under deflate")
    rows = figures(
        report,
        verified.primary.top1_agreement,
        samples,
        float_accuracy,
        dqmq_accuracy,
        chosen.budget_bytes,
    )
    print_table(rows)
    record = {
        "float_accuracy": float_accuracy,
        "dqmq_accuracy": dqmq_accuracy,
        "file_bytes": report.size_bytes,
        "download_bytes": report.download_bytes,
        "figures": [dataclasses.asdict(row) for row in rows],
        "flags": {name: flags.FLAGS[name].value for name in ("dataset", "model", "target", "seed")},
        "settings": dataclasses.asdict(chosen),
    }
    (output / "figures.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
