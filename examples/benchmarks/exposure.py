"""Compares `.tflite` files behind nothing, behind a preprocessing, and behind `layers.Exposure`.

The data are the German traffic signs of Stallkamp et al. 2012, "Man vs. computer", whose quality varies
by nature: night, haze, blur, distance. MLPerf Tiny's ResNet-8, or a small MobileNetV2 (`--network`), both
trained on CIFAR-10, is trained on them in float, then with static bits for the target `android`, and each
file is scored in LiteRT on one thread. Every method gets the same steps, images in the same order and
bytes. The bytes of `Exposure` count. Those of a standardization or of CLAHE (`--methods=clahe`) do not, as
it runs before the file. With `--methods=beside` the network sees both the image and what `Exposure` makes
of it. With `--methods=lsq,hawq` nothing is in front, and the bits are not learned: they are uniform, or
those of HAWQ-V3's way. The float network of a seed is trained

- with `--start=own` behind the method itself,
- with `--start=common` behind nothing. The other methods then change the images that it is used to.

    python examples/benchmarks/exposure.py --data_dir=~/tensorflow_datasets --seeds=0,1,2,3,4

With `--float_only` the float network trains on with the same images, labels, steps and rate, in place of
the quantized one.

The dataset must be prepared with the name `gtsrb` and the features `quality` and `brightness`, by whose
lowest fifths files are scored as well. Each run is appended to `--output`. Runs that are in it are not
repeated. At the end come the means, and the differences between methods, paired by seed.
"""

import dataclasses
import itertools
import json
import pathlib
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from study import (
    assignments,
    data_flags,
    file_bits,
    float_networks,
    fronts,
    hawq,
    scoring,
    signs,
)

import dqmq_tf

_CACHE = flags.DEFINE_string("cache", "build/exposure", "Folder for the float network.")
_OUTPUT = flags.DEFINE_string(
    "output", "examples/benchmarks/results/exposure.jsonl", "File of JSON lines, one per run."
)
_NETWORK = flags.DEFINE_enum(
    "network", "resnet8", list(float_networks.NETWORKS), "Network to train."
)
_METHODS = flags.DEFINE_list("methods", ["nothing", *fronts.FRONTS], "Methods to run.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds to run.")
_BYTES = flags.DEFINE_integer("bytes", 30_000, "Bytes of each file after deflate.", lower_bound=1)
_FLOAT_ONLY = flags.DEFINE_boolean(
    "float_only", False, "Whether the float network trains on, without quantization and a file."
)
_START = flags.DEFINE_enum(
    "start", "own", ["own", "common"], "What is in front in the first float training."
)
_STARTS = flags.DEFINE_integer(
    "starts", 2, "Float networks of each method, which the seeds share in turn.", lower_bound=1
)
_START_STEPS = flags.DEFINE_integer("start_steps", 900, "Steps of the first float training.")
_FLOAT_STEPS = flags.DEFINE_integer("float_steps", 0, "Further float steps with each seed.")
_STEPS = flags.DEFINE_integer("steps", 500, "Steps of each method with quantization.")
_RATE = flags.DEFINE_float("learning_rate", 0.001, "Initial learning rate with quantization.")

_MOBILENET = "examples/benchmarks/starts/mobilenet_v2.keras"
_CALIBRATION_IMAGES = 512
# Methods behind nothing whose bits are not learned, and the batches for the Hessian of HAWQ.
_GIVEN_BITS = ("lsq", "hawq")
_HESSIAN_STEPS = 4
_TARGET = "android"
_PARTS = ("all", "worst_fifth", "darkest_fifth")


def start_seed(seed):
    """Returns the seed of the first float training for a seed."""
    return 1_000 + seed % _STARTS.value


def start(method, seed, train):
    """Returns the float network that was trained behind a method for a seed."""
    return signs.float_start(
        "nothing" if method in _GIVEN_BITS else method,
        start_seed(seed),
        train.x,
        train.y,
        body=data_flags.RESNET.value if _NETWORK.value == "resnet8" else _MOBILENET,
        cache=_CACHE.value,
        steps=_START_STEPS.value,
    )


def behind(method, split):
    """Returns the `signs.Signs` of a split, with the images that a method's network gets."""
    if method == fronts.STANDARDIZATION:
        return dataclasses.replace(split, x=fronts.standardized(split.x.astype("float32")))
    if method == fronts.CLAHE:
        return dataclasses.replace(split, x=fronts.equalized(split.x))
    return split


def run(method, seed, train, test):
    """Trains and scores a method. Returns a dictionary."""
    started = time.perf_counter()
    seen, tests = behind(method, train), behind(method, test)
    if _START.value == "own":
        model = start(method, seed, seen)
    else:
        model = start("nothing", seed, train)
        model = signs.with_layers(method, model, train.x)
    keras.utils.set_random_seed(seed)
    steps = _FLOAT_STEPS.value
    if steps:
        float_networks.train(model, signs.batches(seen.x, seen.y, 100 + seed, steps), steps, 0.001)
    float_scores = signs.scores(scoring.predictor(model), tests)
    print(f"{method}, seed {seed}, float: {float_scores}", flush=True)
    found = {
        "network": _NETWORK.value,
        "method": method,
        "seed": seed,
        "start": _START.value,
        "start_seed": start_seed(seed),
        "bytes": allowed_bytes(),
        "steps": [_START_STEPS.value, _FLOAT_STEPS.value, _STEPS.value],
        "learning_rate": _RATE.value,
        "float": float_scores,
    }
    data = signs.batches(seen.x, seen.y, seed, _STEPS.value)
    if _FLOAT_ONLY.value:
        found |= trained_float(model, data, tests)
    else:
        found |= trained_file(model, quantized(method, model, seen, seed), data, tests)
    return {**found, "seconds": round(time.perf_counter() - started)}


def trained_float(model, data, tests):
    """Trains a float network further. Returns its scores."""
    teacher = keras.models.clone_model(model)
    teacher.set_weights(model.get_weights())
    labelled = dqmq_tf.distill_labels(data, teacher)
    float_networks.train(model, labelled, _STEPS.value, _RATE.value)
    return {"trained_float": signs.scores(scoring.predictor(model), tests)}


def quantized(method, model, train, seed):
    """Returns the network of a method with quantization, before training."""
    if method in _GIVEN_BITS:
        return assignments.fixed(model, given_bits(method, model, train, seed), _TARGET, seed)
    budget = dqmq_tf.Budget(download_bytes=_BYTES.value)
    config = dqmq_tf.DQMQConfig(quality_aware=False, seed=seed)
    return dqmq_tf.quantize_model(model, target=_TARGET, budget=budget, config=config)


def given_bits(method, model, train, seed):
    """Returns the bits of a method that does not learn them."""
    costs = assignments.cost_model(model, "download_bytes", _TARGET)
    images = train.x[:_CALIBRATION_IMAGES].astype("float32")
    file_bytes = file_bits.measure(model, _TARGET, images, seed)
    if method == "lsq":
        return file_bits.uniform(costs, file_bytes, _BYTES.value)
    batches = signs.batches(train.x, train.y, start_seed(seed), _HESSIAN_STEPS)
    images, labels = (np.concatenate(part) for part in zip(*batches.as_numpy_iterator()))
    network = hawq.Network(model, costs)
    propose = hawq.proposals(network, costs, *hawq.sensitivities(network, images, labels))
    return file_bits.proposed(propose, file_bytes, _BYTES.value)


def trained_file(model, qmodel, data, tests):
    """Trains a network with quantization. Returns the scores of its file and what is known about it."""
    labelled = dqmq_tf.distill_labels(data, model)
    float_networks.train(qmodel, labelled, _STEPS.value, _RATE.value)
    qmodel.freeze(profiles=1)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        calibration = tests.x[:_CALIBRATION_IMAGES].astype("float32")
        report = dqmq_tf.convert(qmodel, path, data=calibration)
        file_scores = signs.scores(scoring.litert_predictor(path), tests)
    count = sum(row.count for row in report.weights)
    return {
        "file": file_scores,
        "download_bytes": report.download_bytes,
        "size_bytes": report.size_bytes,
        "mean_bits": sum(row.count * row.bit_width for row in report.weights) / count,
        "different_numbers": report.verification.different_numbers,
        "agreement": {row.runtime: row.top1_agreement for row in report.verification.rows},
    }


def allowed_bytes():
    """Returns the budget of the files, None if there are none."""
    return None if _FLOAT_ONLY.value else _BYTES.value


def is_ours(record):
    """Whether a run has the settings of the flags."""
    steps = [_START_STEPS.value, _FLOAT_STEPS.value, _STEPS.value]
    ours = (
        _NETWORK.value,
        _START.value,
        start_seed(record["seed"]),
        allowed_bytes(),
        steps,
        _RATE.value,
    )
    names = ("network", "start", "start_seed", "bytes", "steps", "learning_rate")
    return ours == tuple(record[name] for name in names)


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
        kinds = ("float", "trained_float" if _FLOAT_ONLY.value else "file")
        for kind, part in itertools.product(kinds, _PARTS):
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
    train, test = (signs.read(data_flags.DATA_DIR.value, split) for split in ("train", "test"))
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
