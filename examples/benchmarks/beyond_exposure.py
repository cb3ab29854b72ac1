"""Measures what following the quality of each image brings behind a standardization of its exposure.

The data are the German traffic signs of `exposure.py`, each standardized to the same mean and spread. MLPerf
Tiny's ResNet-8, trained in float behind this, is quantized in simulation with the same steps and images by

- `static`: bits that are the same for all images,
- `dqmq`: bits and normalization that follow what the quality encoder sees,
- `told`: the same, but the encoder is told the sign's own size in the photograph and its sharpness, in four
  parts each with as many training images,
- `told_shuffled`: the same, but told those of another image, in training and in the test. It shows what the
  parameters of `told` bring without the knowledge.

The settings are a mean of 2.5 bits, and activations of 8 bits with weights near 2.3 (`weights`), which is
what an int8 runtime computes.

    python examples/benchmarks/beyond_exposure.py --data_dir=~/tensorflow_datasets --seeds=0,1,2

The dataset must be prepared with the name `gtsrb` and the features `width`, `height`, `sharpness`, `quality`
and `brightness`. Each run is appended to `--output`. Runs that are in it are not repeated. At the end come
the means, and the differences from static bits, paired by seed. The part `fronts` of `mixed_quality.py` asks
the same on CIFAR-10.
"""

import dataclasses
import itertools
import json
import pathlib
import time

import keras
import numpy as np
import rich
import tensorflow as tf
from absl import app, flags
from study import data_flags, float_networks, fronts, oracle, scoring, sign_tables, signs

import dqmq_tf

_CACHE = flags.DEFINE_string("cache", "build/exposure", "Folder for the float network.")
_OUTPUT = flags.DEFINE_string(
    "output",
    "examples/benchmarks/results/beyond_exposure.jsonl",
    "File of JSON lines, one per run.",
)
_SETTINGS = {
    "mean": (2.5, ()),
    "weights": (4.3, (dqmq_tf.LayerRule(pattern=".*", activation_bits=(8,)),)),
}
_METHODS = ("static", "dqmq", "told", "told_shuffled")
_WANTED_SETTINGS = flags.DEFINE_list("settings", list(_SETTINGS), "Settings to run.")
_WANTED_METHODS = flags.DEFINE_list("methods", list(_METHODS), "Methods to run.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds to run.")
_STARTS = flags.DEFINE_integer(
    "starts", 2, "Float networks, which the seeds share in turn.", lower_bound=1
)
_START_STEPS = flags.DEFINE_integer("start_steps", 900, "Steps of the float training.")
_STEPS = flags.DEFINE_integer("steps", 500, "Steps of each method with quantization.")
_RATE = flags.DEFINE_float("learning_rate", 0.004, "Initial learning rate of each method.")


def start(seed, images, labels):
    """Returns the float network of `exposure.py` behind a standardization, trained on raw images."""
    return signs.float_start(
        fronts.STANDARDIZATION,
        seed,
        fronts.standardized(images.astype("float32")),
        labels,
        body=data_flags.RESNET.value,
        cache=_CACHE.value,
        steps=_START_STEPS.value,
    )


def behind_standardization(split):
    """Returns the `signs.Signs` of a split, with standardized images in uint8."""
    return dataclasses.replace(split, x=fronts.standardized_pixels(split.x))


def run(setting, method, seed, train, test):
    """Trains and scores a method. Returns a dictionary."""
    started = time.perf_counter()
    budget, rules = _SETTINGS[setting]
    start_seed = 1_000 + seed % _STARTS.value
    model = start(start_seed, train.x, train.y)
    train, test = behind_standardization(train), behind_standardization(test)
    keras.utils.set_random_seed(seed)
    is_aware = method != "static"
    qmodel = dqmq_tf.quantize_model(
        model,
        target="simulation",
        budget=dqmq_tf.Budget(mean_bit_width=budget),
        config=dqmq_tf.DQMQConfig(quality_aware=is_aware, rules=rules, seed=seed),
    )

    def data(values):
        return signs.batches(train.x, values, seed, _STEPS.value)

    if method in ("told", "told_shuffled"):
        random = np.random.default_rng(seed) if method == "told_shuffled" else None
        oracle.tell_size_and_sharpness(qmodel, train, test, data, random)
    labelled = dqmq_tf.distill_labels(data(train.y), model)
    float_networks.train(qmodel, labelled, _STEPS.value, _RATE.value)
    found = {
        "setting": setting,
        "method": method,
        "seed": seed,
        "start_seed": start_seed,
        "steps": [_START_STEPS.value, _STEPS.value],
        "learning_rate": _RATE.value,
        "float": signs.scores(scoring.predictor(model), test),
        "scores": signs.scores(scoring.predictor(qmodel), test),
    }
    if is_aware:
        with scoring.shuffled(qmodel):
            found["shuffled"] = signs.scores(scoring.predictor(qmodel), test)
    costs = scoring.per_image_bit_ops(qmodel)(test.x.astype("float32"))
    macs = float(qmodel._parts.costs.macs.sum())
    found["mean_bit_width"] = float(np.sqrt(costs.mean() / macs))
    found["mean_bits"] = qmodel.decisions(test.x.astype("float32")).mean()
    return {**found, "seconds": round(time.perf_counter() - started)}


def is_ours(record):
    """Whether a run has the settings of the flags."""
    start_seed = 1_000 + record["seed"] % _STARTS.value
    ours = (start_seed, [_START_STEPS.value, _STEPS.value], _RATE.value)
    return ours == tuple(record[name] for name in ("start_seed", "steps", "learning_rate"))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    path = pathlib.Path(_OUTPUT.value)
    lines = path.read_text().splitlines() if path.exists() else []
    seeds = list(map(int, _SEEDS.value))
    records = [row for row in map(json.loads, lines) if row["seed"] in seeds and is_ours(row)]
    known = {(row["setting"], row["method"], row["seed"]) for row in records}
    wanted = itertools.product(seeds, _WANTED_SETTINGS.value, _WANTED_METHODS.value)
    missing = [(s, m, seed) for seed, s, m in wanted if (s, m, seed) not in known]
    if missing:
        train, test = (signs.read(data_flags.DATA_DIR.value, split) for split in ("train", "test"))
    for setting, method, seed in missing:
        keras.backend.clear_session()
        records.append(run(setting, method, seed, train, test))
        with path.open("a") as file:
            file.write(json.dumps(records[-1]) + "\n")
        print(json.dumps(records[-1]), flush=True)
    for setting, (budget, _) in _SETTINGS.items():
        here = [record for record in records if record["setting"] == setting]
        title = f"{setting}: budget of {budget:g} mean bits"
        print(sign_tables.leads(here, title).markdown(), flush=True)
    rich.print(f"{len(missing)} new runs.")


if __name__ == "__main__":
    app.run(main)
