"""Compares `.tflite` files behind nothing, behind a standardization, and behind `layers.Exposure`.

The data are the German traffic signs of Stallkamp et al. 2012, "Man vs. computer", whose quality varies
by nature: night, haze, blur, distance. MLPerf Tiny's ResNet-8 is trained on them in float once. From there
every method gets the same steps, images in the same order and bytes: it is trained on in float, then with
static bits for the target `android`, and each file is scored in LiteRT on one thread. The bytes of
`Exposure` count. Those of the standardization do not, as it runs before the file.

    python examples/benchmarks/exposure.py --data_dir=~/tensorflow_datasets

The dataset must be prepared with the name `gtsrb` and the feature `quality`, by whose lowest fifth files
are scored as well. Each run is appended to `--output`. Runs that are in it are not repeated.
"""

import json
import pathlib
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from study import float_networks, scoring

import dqmq_tf

_DATA_DIR = flags.DEFINE_string(
    "data_dir", "../shared/data/tfds", "Folder of prepared tensorflow-datasets."
)
_RESNET = flags.DEFINE_string(
    "resnet",
    "../shared/models/mlperf_tiny/pretrainedResnet.h5",
    "MLPerf Tiny's trained ResNet-8 (.h5).",
)
_CACHE = flags.DEFINE_string("cache", "build/exposure", "Folder for the float network.")
_OUTPUT = flags.DEFINE_string(
    "output", "examples/benchmarks/results/exposure.jsonl", "File of JSON lines, one per run."
)
_METHODS = flags.DEFINE_list(
    "methods", ["nothing", "standardization", "exposure"], "Methods to run."
)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds to run.")
_BYTES = flags.DEFINE_integer("bytes", 30_000, "Bytes of each file after deflate.", lower_bound=1)
_START_STEPS = flags.DEFINE_integer("start_steps", 900, "Steps of the common float training.")
_FLOAT_STEPS = flags.DEFINE_integer("float_steps", 300, "Further float steps of each method.")
_STEPS = flags.DEFINE_integer("steps", 500, "Steps of each method with quantization.")

_BATCH, _CLASSES, _START_SEED, _SHIFT = 128, 43, 1_000, 2
_CALIBRATION_IMAGES = 512


def read(split):
    """Returns the images of a split, uint8 `[N, 32, 32, 3]`, their classes and their quality."""
    import tensorflow_datasets as tfds

    data = tfds.builder("gtsrb", data_dir=_DATA_DIR.value).as_dataset(split=split)
    rows = list(data.as_numpy_iterator())
    return tuple(np.stack([row[name] for row in rows]) for name in ("image", "label", "quality"))


def standardized(images):
    """Returns images, each with a mean of 128 and a standard deviation of 64, from 0 to 255."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    deviation = np.maximum(images.std(axis=(1, 2, 3), keepdims=True), 4)
    return np.clip(64 * (images - mean) / deviation + 128, 0, 255).astype("float32")


def batches(images, labels, seed, steps):
    """Returns a dataset of batches of shifted images, the same for all methods of a seed."""
    random = np.random.default_rng(seed)
    epochs = -(-steps * _BATCH // len(images))
    order = np.concatenate([random.permutation(len(images)) for _ in range(epochs)])
    order = order[: steps * _BATCH].reshape(steps, _BATCH)
    shifts = random.integers(0, 2 * _SHIFT + 1, (steps, 2))

    def batch(indices, shift):
        padding = [[0, 0], [_SHIFT, _SHIFT], [_SHIFT, _SHIFT], [0, 0]]
        x = tf.pad(tf.gather(images, indices), padding, "SYMMETRIC")
        x = tf.slice(x, [0, shift[0], shift[1], 0], [_BATCH, *images.shape[1:]])
        return tf.cast(x, tf.float32), tf.gather(labels, indices)

    return tf.data.Dataset.from_tensor_slices((order, shifts)).map(batch).prefetch(2)


def start(images, labels):
    """Returns the float network from which all methods start. It is trained once."""
    path = pathlib.Path(_CACHE.value) / f"start_{_START_STEPS.value}.keras"
    if not path.exists():
        keras.utils.set_random_seed(_START_SEED)
        body = keras.models.load_model(_RESNET.value, compile=False)
        classes = keras.layers.Dense(_CLASSES, activation="softmax", name="classes")
        model = keras.Model(body.inputs, classes(body.layers[-2].output), name="resnet8")
        steps = _START_STEPS.value
        float_networks.train(model, batches(images, labels, _START_SEED, steps), steps, 0.002)
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path, include_optimizer=False)
    return keras.models.load_model(path, compile=False)


def scores(predict, images, labels, quality):
    """Returns the accuracy on all images, and on the fifth of lowest quality."""
    correct = predict(images).argmax(axis=-1) == labels
    worst = np.argsort(quality, kind="stable")[: len(quality) // 5]
    return {"all": float(correct.mean()), "worst_fifth": float(correct[worst].mean())}


def run(method, seed, train, test):
    """Trains and scores a method. Returns a dictionary."""
    started = time.perf_counter()
    images, labels, _ = train
    tests = (test[0].astype("float32"), *test[1:])
    if method == "standardization":
        images, tests = standardized(images.astype("float32")), (standardized(tests[0]), *tests[1:])
    model = start(*train[:2])
    keras.utils.set_random_seed(seed)
    if method == "exposure":
        layer = dqmq_tf.layers.Exposure(name="exposure")
        layer.adapt(images)
        inputs = keras.Input(model.input_shape[1:], name="image")
        model = keras.Model(inputs, model(layer(inputs)))
    steps = _FLOAT_STEPS.value
    float_networks.train(model, batches(images, labels, 100 + seed, steps), steps, 0.001)
    float_scores = scores(scoring.predictor(model), *tests)
    print(f"{method}, seed {seed}, float: {float_scores}", flush=True)
    qmodel = dqmq_tf.quantize_model(
        model,
        target="android",
        budget=dqmq_tf.Budget(download_bytes=_BYTES.value),
        config=dqmq_tf.DQMQConfig(quality_aware=False, seed=seed),
    )
    data = batches(images, labels, seed, _STEPS.value)
    float_networks.train(qmodel, dqmq_tf.distill_labels(data, model), _STEPS.value, 0.001)
    qmodel.freeze(profiles=1)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        calibration = tests[0][:_CALIBRATION_IMAGES]
        report = dqmq_tf.convert(qmodel, path, data=calibration)
        file_scores = scores(scoring.litert_predictor(path), *tests)
    count = sum(row.count for row in report.weights)
    return {
        "method": method,
        "seed": seed,
        "steps": [_START_STEPS.value, _FLOAT_STEPS.value, _STEPS.value],
        "float": float_scores,
        "file": file_scores,
        "download_bytes": report.download_bytes,
        "size_bytes": report.size_bytes,
        "mean_bits": sum(row.count * row.bit_width for row in report.weights) / count,
        "different_numbers": report.verification.different_numbers,
        "agreement": {row.runtime: row.top1_agreement for row in report.verification.rows},
        "seconds": round(time.perf_counter() - started),
    }


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    path = pathlib.Path(_OUTPUT.value)
    lines = path.read_text().splitlines() if path.exists() else []
    known = {(record["method"], record["seed"]) for record in map(json.loads, lines)}
    train, test = read("train"), read("test")
    for seed in map(int, _SEEDS.value):
        for method in _METHODS.value:
            if (method, seed) in known:
                continue
            record = run(method, seed, train, test)
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    app.run(main)
