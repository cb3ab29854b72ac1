"""Measures how often a file and its Keras model predict the same class, on each runtime.

The networks are MLPerf Tiny's ResNet-8 and a small MobileNetV2, which is first trained in float. Each
is trained briefly with learned bit-widths on CIFAR-10 images of mixed quality, once for Android and
once for microcontrollers. Then it is converted, and the file runs the first 2,000 test images on every
runtime of its target. The benchmark takes about half an hour on two cores.

    python examples/benchmarks/agreement.py --output=agreement.json

`--networks` also takes the names of `networks.NETWORKS`. These have random weights of 4 bits on average
and random images, so their classes lie close together, and the differences in steps say more.

`tflite-runtime` 2.14 is measured if `DQMQ_TFLITE_RUNTIME_PYTHON` is set to the Python of an environment
that has it. TFLite Micro is measured if the wheel `tflite-micro` is installed. The exit code is 1 if a
bound is missed.
"""

import dataclasses
import math
import pathlib
import sys
import tempfile
import time

import keras
import networks
import numpy as np
import rich.table
import tensorflow as tf
from absl import app, flags, logging
from recorded_rows import RecordedRows

import dqmq_tf
from dqmq_tf import quality

_RESNET = flags.DEFINE_string(
    "resnet",
    "../shared/models/mlperf_tiny/pretrainedResnet.h5",
    "MLPerf Tiny's trained ResNet-8 (.h5).",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    "../shared/data/tfds",
    "Folder of prepared tensorflow-datasets. If it does not exist, CIFAR-10 is downloaded to the "
    "default folder.",
)
_TRAINED = ("resnet8", "mobilenet_v2")
_NETWORKS = flags.DEFINE_multi_enum(
    "networks", _TRAINED, [*_TRAINED, *networks.NETWORKS], "Networks to run."
)
_TARGETS = flags.DEFINE_list("targets", ["android", "microcontroller"], "Targets to run.")
_SAMPLES = flags.DEFINE_integer("samples", 2_000, "Test images.", lower_bound=1)
_STEPS = flags.DEFINE_integer(
    "steps", 400, "Training steps of 128 images with learned bits.", lower_bound=4
)
_FLOAT_STEPS = flags.DEFINE_integer(
    "float_steps", 2_000, "Float training steps of the MobileNetV2.", lower_bound=1
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_BATCH_SIZE, _RANDOM_SAMPLES = 128, 64
_EPOCHS = 4
_SEED = 0
# Enough for every runtime to run all images.
_SECONDS = 1_200.0
_BOUNDS = {"litert-xnnpack": 0.995}
_OTHER_BOUND = 0.98
# Budget in bytes per parameter: between 4 and 6 bits per weight, plus what is not weights.
_BYTES_PER_PARAMETER = {"download_bytes": 0.65, "size_bytes": 0.7}
_KINDS = {"android": "download_bytes"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Result of one file on one runtime.

    Attributes:
        network, target, runtime: Names of the network, the target and the runtime.
        note: Why the runtime did not run the file; None if it ran. If it did not run, `samples`,
            `agreement`, the differences and the latency are None.
        samples: Number of images.
        agreement: Share of the images with the same largest output entry as the Keras model.
        bound: Smallest share that is required.
        largest_quanta, mean_quanta: Differences from the Keras model, in steps of the output.
        latency_ms: Median time of one image, 1 thread.
        arena_bytes: Tensor arena that TFLite Micro needs; None for other runtimes.
        accuracy: Share of the images that the quantized and frozen Keras model classifies correctly.
            None without labels.
        different_numbers: Numbers in the file that differ from the model's.
        file_bytes: Size of the file.
        bit_widths: Weight bit-widths in the file.
    """

    network: str
    target: str
    runtime: str
    note: str | None
    samples: int | None
    agreement: float | None
    bound: float
    largest_quanta: float | None
    mean_quanta: float | None
    latency_ms: float | None
    arena_bytes: int | None
    accuracy: float | None
    file_bytes: int
    bit_widths: list
    different_numbers: int

    @property
    def verdict(self):
        """Whether the bound is kept, as text."""
        if self.note is not None:
            return "not run"
        return "kept" if self.agreement >= self.bound else "MISSED"


def mobilenet_v2(classes=10):
    """Returns an untrained MobileNetV2 for 32 x 32 images: narrower, and with fewer strides.

    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381.
    """
    layers = keras.layers

    def normalized(x, activation=True):
        # The training is short, so the moving averages must adapt quickly.
        x = layers.BatchNormalization(momentum=0.95)(x)
        return layers.ReLU(max_value=6)(x) if activation else x

    x = inputs = keras.Input((32, 32, 3), name="image")
    x = normalized(layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(x))
    for filters, expansion, strides in (
        (16, 1, 1), (24, 6, 1), (24, 6, 1), (32, 6, 2), (32, 6, 1), (48, 6, 1), (64, 6, 2), (64, 6, 1),
    ):  # fmt: skip
        narrow = x
        if expansion > 1:
            x = normalized(layers.Conv2D(expansion * x.shape[-1], 1, use_bias=False)(x))
        depthwise = layers.DepthwiseConv2D(3, strides=strides, padding="same", use_bias=False)
        x = normalized(depthwise(x))
        x = normalized(layers.Conv2D(filters, 1, use_bias=False)(x), activation=False)
        if strides == 1 and narrow.shape[-1] == filters:
            x = layers.Add()([narrow, x])
    x = normalized(layers.Conv2D(160, 1, use_bias=False)(x))
    x = layers.GlobalAveragePooling2D()(x)
    outputs = layers.Dense(classes, activation="softmax", name="classes")(x)
    return keras.Model(inputs, outputs, name="mobilenet_v2")


def images(split):
    """Returns a `tf.data.Dataset` of `(uint8 image [32, 32, 3], label)`."""
    folder = _DATA_DIR.value if pathlib.Path(_DATA_DIR.value).exists() else None
    return quality.load("cifar10", split=split, data_dir=folder)[0]


def training_batches():
    """Returns an endless dataset of mixed-quality batches, with values from 0 to 255."""
    data = images("train").cache().shuffle(50_000, seed=_SEED, reshuffle_each_iteration=False)
    mixed = quality.mixed_quality(data.repeat().batch(_BATCH_SIZE), seed=_SEED)
    cast = mixed.map(lambda image, label: (tf.cast(image, tf.float32), label))
    return cast.prefetch(tf.data.AUTOTUNE)


def train(model, steps):
    """Trains a model in place."""
    per_epoch = math.ceil(steps / _EPOCHS)
    rate = keras.optimizers.schedules.CosineDecay(0.002, per_epoch * _EPOCHS)
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(
        training_batches(),
        steps_per_epoch=per_epoch,
        epochs=_EPOCHS,
        shuffle=False,  # The dataset is shuffled.
        verbose=1 if sys.stdout.isatty() else 2,
    )


def float_network(name):
    """Returns a trained float network."""
    if name == "resnet8":
        return keras.models.load_model(_RESNET.value, compile=False)
    keras.utils.set_random_seed(_SEED)
    model = mobilenet_v2()
    print(f"\n{name}: {model.count_params():,} parameters, trained in float first", flush=True)
    train(model, _FLOAT_STEPS.value)
    return model


def trained(model, target):
    """Returns a quantized and trained model."""
    kind = _KINDS.get(target, "size_bytes")
    budget = int(_BYTES_PER_PARAMETER[kind] * model.count_params()) + 10_000
    qmodel = dqmq_tf.quantize_model(
        model,
        target=target,
        budget=dqmq_tf.Budget(**{kind: budget}),
        config=dqmq_tf.DQMQConfig(seed=_SEED),
    )
    train(qmodel, _STEPS.value)
    return qmodel.freeze(profiles=1)


def measure(network, qmodel, target, test, labels=None):
    """Converts and verifies a frozen network. Returns a `Row` per runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        converted = dqmq_tf.convert(qmodel, path, data=test, verify=False)
        # No tolerance: the benchmark reports the figures, whatever they are.
        report = dqmq_tf.verify(
            qmodel,
            path,
            test,
            samples=len(test),
            agreement=0.0,
            mean_quanta=math.inf,
            seconds=_SECONDS,
        )
    rich.print(report)
    accuracy = None
    if labels is not None:
        accuracy = float((qmodel.predict(test, verbose=0).argmax(-1) == labels).mean())
    return [
        Row(
            network=network,
            target=target,
            runtime=row.runtime,
            note=row.note,
            samples=row.samples,
            agreement=row.top1_agreement,
            bound=_BOUNDS.get(row.runtime, _OTHER_BOUND),
            largest_quanta=row.largest_quanta,
            mean_quanta=row.mean_quanta,
            latency_ms=row.latency_ms,
            arena_bytes=row.arena_bytes,
            accuracy=accuracy,
            file_bytes=converted.size_bytes,
            bit_widths=sorted({tensor.bit_width for tensor in converted.weights}),
            different_numbers=report.different_numbers,
        )
        for row in report.rows
    ]


def table_of(rows):
    """Returns the rows as a table."""
    head = ("network", "target", "runtime", "images", "agree", "bound", "")
    table = rich.table.Table(*head, box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        ran = row.note is None
        table.add_row(
            row.network,
            row.target,
            row.runtime,
            f"{row.samples:,}" if ran else "-",
            f"{100 * row.agreement:.2f} %" if ran else "-",
            f">= {100 * row.bound:g} %",
            row.verdict,
        )
    return table


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    if "resnet8" in _NETWORKS.value and not pathlib.Path(_RESNET.value).exists():
        raise app.UsageError(f"--resnet={_RESNET.value} does not exist.")
    # TensorFlow's exporter logs its progress at the level INFO.
    logging.set_verbosity(logging.ERROR)
    started, rows = time.perf_counter(), []
    record = RecordedRows(_OUTPUT.value, "network", "target", "runtime")
    for network in _NETWORKS.value:
        is_trained = network in _TRAINED
        if is_trained:
            model = float_network(network)
            batch = next(iter(images("test").batch(_SAMPLES.value)))
            test, labels = np.float32(batch[0]), batch[1].numpy()
        else:
            model, labels = networks.NETWORKS[network](), None
            test = networks.images(model, min(_SAMPLES.value, _RANDOM_SAMPLES), seed=1)
        for target in _TARGETS.value:
            print(f"\n{network} for {target}", flush=True)
            if is_trained:
                qmodel = trained(model, target)
            else:
                qmodel = networks.frozen(model, target, networks.mixed_bits(model, 4))
            for row in measure(network, qmodel, target, test, labels):
                rows.append(row)
                record.add(row, verdict=row.verdict)
    rich.print(table_of(rows))
    print(f"{time.perf_counter() - started:.0f} s")
    sys.exit(any(row.verdict == "MISSED" for row in rows))


if __name__ == "__main__":
    app.run(main)
