"""Compares `.tflite` files behind nothing, behind a standardization, and behind `layers.Exposure`.

The data are the German traffic signs of Stallkamp et al. 2012, "Man vs. computer", whose quality varies
by nature: night, haze, blur, distance. MLPerf Tiny's ResNet-8 is trained on them in float, then with static
bits for the target `android`, and each file is scored in LiteRT on one thread. Every method gets the same
steps, images in the same order and bytes. The bytes of `Exposure` count. Those of the standardization do
not, as it runs before the file. The float network of a seed is trained

- with `--start=own` behind the method itself,
- with `--start=common` behind nothing. The other methods then change the images that it is used to.

    python examples/benchmarks/exposure.py --data_dir=~/tensorflow_datasets --seeds=0,1,2,3,4

The dataset must be prepared with the name `gtsrb` and the features `quality` and `brightness`, by whose
lowest fifths files are scored as well. Each run is appended to `--output`. Runs that are in it are not
repeated. At the end come the means, and the differences between methods, paired by seed.
"""

import itertools
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
_START = flags.DEFINE_enum(
    "start", "own", ["own", "common"], "What is in front in the first float training."
)
_STARTS = flags.DEFINE_integer(
    "starts", 2, "Float networks of each method, which the seeds share in turn.", lower_bound=1
)
_START_STEPS = flags.DEFINE_integer("start_steps", 900, "Steps of the first float training.")
_FLOAT_STEPS = flags.DEFINE_integer("float_steps", 0, "Further float steps with each seed.")
_STEPS = flags.DEFINE_integer("steps", 500, "Steps of each method with quantization.")

_BATCH, _CLASSES, _SHIFT = 128, 43, 2
_CALIBRATION_IMAGES = 512
_PARTS = ("all", "worst_fifth", "darkest_fifth")


def read(split):
    """Returns the images of a split, uint8 `[N, 32, 32, 3]`, their classes, quality and brightness."""
    import tensorflow_datasets as tfds

    data = tfds.builder("gtsrb", data_dir=_DATA_DIR.value).as_dataset(split=split)
    rows = list(data.as_numpy_iterator())
    names = ("image", "label", "quality", "brightness")
    return tuple(np.stack([row[name] for row in rows]) for name in names)


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


def exposed(model, images):
    """Returns a model behind `Exposure`, adapted to images."""
    layer = dqmq_tf.layers.Exposure(name="exposure")
    layer.adapt(images)
    inputs = keras.Input(model.input_shape[1:], name="image")
    return keras.Model(inputs, model(layer(inputs)))


def start_seed(seed):
    """Returns the seed of the first float training for a seed."""
    return 1_000 + seed % _STARTS.value


def start(method, seed, images, labels):
    """Returns a float network that was trained behind a method. It is trained once and cached."""
    path = pathlib.Path(_CACHE.value) / f"{method}_{seed}_{_START_STEPS.value}.keras"
    if not path.exists():
        keras.utils.set_random_seed(seed)
        body = keras.models.load_model(_RESNET.value, compile=False)
        classes = keras.layers.Dense(_CLASSES, activation="softmax", name="classes")
        model = keras.Model(body.inputs, classes(body.layers[-2].output), name="resnet8")
        if method == "exposure":
            model = exposed(model, images)
        steps = _START_STEPS.value
        float_networks.train(model, batches(images, labels, seed, steps), steps, 0.002)
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path, include_optimizer=False)
    return keras.models.load_model(path, compile=False)


def scores(predict, images, labels, quality, brightness):
    """Returns the accuracy on all images, and on the fifths of lowest quality and brightness."""
    correct = predict(images).argmax(axis=-1) == labels
    worst, darkest = (
        np.argsort(values, kind="stable")[: len(values) // 5] for values in (quality, brightness)
    )
    parts = (correct, correct[worst], correct[darkest])
    return {name: float(part.mean()) for name, part in zip(_PARTS, parts)}


def run(method, seed, train, test):
    """Trains and scores a method. Returns a dictionary."""
    started = time.perf_counter()
    raw, labels = train[:2]
    images, tests = raw, (test[0].astype("float32"), *test[1:])
    if method == "standardization":
        images, tests = standardized(raw.astype("float32")), (standardized(tests[0]), *tests[1:])
    if _START.value == "own":
        model = start(method, start_seed(seed), images, labels)
    else:
        model = start("nothing", start_seed(seed), raw, labels)
        model = exposed(model, raw) if method == "exposure" else model
    keras.utils.set_random_seed(seed)
    steps = _FLOAT_STEPS.value
    if steps:
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
        "start": _START.value,
        "start_seed": start_seed(seed),
        "bytes": _BYTES.value,
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


def is_ours(record):
    """Whether a run has the settings of the flags."""
    steps = [_START_STEPS.value, _FLOAT_STEPS.value, _STEPS.value]
    ours = (_START.value, start_seed(record["seed"]), _BYTES.value, steps)
    return ours == tuple(record[name] for name in ("start", "start_seed", "bytes", "steps"))


def tell(records):
    """Prints the mean scores of the methods in %, and their differences, paired by seed.

    Without further float steps, seeds that share a float network count once for its float scores.
    """
    runs = {method: {} for method in _METHODS.value}
    for record in records:
        runs.setdefault(record["method"], {})[record["seed"]] = record
    methods = [method for method, by_seed in runs.items() if by_seed]
    for place, method in enumerate(methods):
        print(f"{method}, seeds {sorted(runs[method])}")
        for kind, part in itertools.product(("float", "file"), _PARTS):
            is_shared = kind == "float" and not _FLOAT_STEPS.value
            score = {
                name: {
                    start_seed(seed) if is_shared else seed: 100 * run[kind].get(part, np.nan)
                    for seed, run in runs[name].items()
                }
                for name in methods
            }
            columns = [f"{np.mean(list(score[method].values())):.2f}"]
            for rival in methods[:place]:
                seeds = sorted(score[method].keys() & score[rival].keys())
                pairs = [score[method][seed] - score[rival][seed] for seed in seeds]
                error = np.std(pairs, ddof=1) / len(pairs) ** 0.5 if len(pairs) > 1 else np.nan
                columns.append(f"{np.mean(pairs):+.2f} ± {error:.2f} over {rival}")
            print(f"  {kind}, {part}: {', '.join(columns)}", flush=True)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    tf.config.threading.set_intra_op_parallelism_threads(2)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    path = pathlib.Path(_OUTPUT.value)
    lines = path.read_text().splitlines() if path.exists() else []
    seeds = list(map(int, _SEEDS.value))
    records = [run for run in map(json.loads, lines) if run["seed"] in seeds and is_ours(run)]
    known = {(record["method"], record["seed"]) for record in records}
    train, test = read("train"), read("test")
    for seed in seeds:
        for method in _METHODS.value:
            if (method, seed) in known:
                continue
            records.append(run(method, seed, train, test))
            with path.open("a") as file:
                file.write(json.dumps(records[-1]) + "\n")
            print(json.dumps(records[-1]), flush=True)
    tell(records)


if __name__ == "__main__":
    app.run(main)
