"""DQMQ against fixed and mixed precision at equal cost, on images of mixed quality.

CIFAR-10 under seven kinds of degradation at severities 1 to 5, with a fifth of the training images
clean. Each network was first trained in float on the mixture (`--starts`); from there every method
has the same images in the same order, the same steps and the same trials of the learning rate. Costs
are mean bit operations per image, over every layer, with what decides the bits; or bytes of the
`.tflite` file.

    python examples/benchmarks/mixed_quality.py

HGQ2 has an environment of its own (`pip install "HGQ2[tensorflow]" absl-py`), whose Python
`DQMQ_HGQ2_PYTHON` names; without it the others are run.

Runs are appended to `--results`, one JSON line each, and what stands there is not run again: stop
and start it as you like. `examples/benchmarks/plot.py` draws and prints what has been found.
"""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time

import keras
import rich.progress
from absl import app, flags
from study import (
    architectures,
    assignments,
    external_methods,
    float_networks,
    learning_rates,
    plan,
    results,
    runs,
)

_RESULTS = flags.DEFINE_string(
    "results", "examples/benchmarks/results/mixed_quality.jsonl", "JSON lines, one a run."
)
_CACHE = flags.DEFINE_string(
    "cache", "build/mixed_quality", "Folder for degraded images and sensitivities."
)
_STARTS = flags.DEFINE_string(
    "starts", "examples/benchmarks/starts", "Folder of float networks; what it lacks is trained."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "../shared/data/tfds", "Folder of prepared tensorflow-datasets."
)
_RESNET = flags.DEFINE_string(
    "resnet",
    "../shared/models/mlperf_tiny/pretrainedResnet.h5",
    "MLPerf Tiny's trained ResNet-8 (.h5).",
)
_PARTS = flags.DEFINE_list(
    "parts", ["trials", "table", "files", "ablations", "oracle"], "What to run, in this order."
)
_NETWORKS = flags.DEFINE_list("networks", list(float_networks.NETWORKS), "Networks to run.")
_METHODS = flags.DEFINE_list("methods", list(runs.METHODS), "Methods to run.")
_SEEDS = flags.DEFINE_list("seeds", list(map(str, plan.ALL_SEEDS)), "Seeds to run.")
_STEPS = flags.DEFINE_integer("steps", 600, "Steps of 128 images in each run.", lower_bound=4)
_WORKERS = flags.DEFINE_integer("workers", 2, "Runs at a time, each on one thread.", lower_bound=1)
_MINUTES = flags.DEFINE_float("minutes", None, "Begin no run after so long.", lower_bound=0.0)
_ONE = flags.DEFINE_string("one", None, "Run this one, as `Run.key` has it, and print its record.")

_MARK = "record: "


def bench():
    """Returns the `Bench` of the flags."""
    folder = _DATA_DIR.value if pathlib.Path(_DATA_DIR.value).exists() else None
    return runs.Bench(folder, _CACHE.value, _RESNET.value, _STARTS.value)


def records():
    """Returns what has been found so far."""
    path = pathlib.Path(_RESULTS.value)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def planned(part, costs, found):
    """Returns the runs of a part that the flags ask for."""
    chosen = learning_rates.Rates(found)
    every = {
        "trials": lambda: plan.trials(costs),
        "table": lambda: plan.table(costs, _STEPS.value, chosen),
        "files": lambda: plan.files(_STEPS.value, chosen),
        "ablations": lambda: plan.ablations(_STEPS.value, chosen),
        "oracle": lambda: plan.oracle(_STEPS.value, chosen),
    }[part]()
    return [
        run
        for run in every
        if run.network in _NETWORKS.value
        and run.method in _METHODS.value
        and str(run.seed) in _SEEDS.value
        and not external_methods.missing(run.method)
    ]


def left_out():
    """Returns a line about each method of the flags that cannot be run here."""
    reasons = {method: external_methods.missing(method) for method in _METHODS.value}
    return [f"{results.METHODS[m]} is left out: {why}." for m, why in reasons.items() if why]


def executed(run):
    """Runs in a process of its own, on one thread; returns the record."""
    names = ("cache", "data_dir", "resnet", "starts")
    passed = [f"--{name}={flags.FLAGS[name].value}" for name in names]
    command = [sys.executable, __file__, f"--one={run.key}", *passed]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not lines:
        raise RuntimeError(f"{run.key} failed:\n{done.stderr[-4000:]}")
    return json.loads(lines[-1].removeprefix(_MARK))


def one(run):
    """Executes a run in this process and prints its record."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(_MARK + json.dumps(bench().execute(run)), flush=True)


def told(record):
    """Returns a line about a record."""
    run, scores = record["run"], record["scores"]
    cost = "" if run["budget"] is None else f" at {run['budget']:g} {run['kind']}"
    note = run["ablation"] or (f"w{run['bits'][0]}a{run['bits'][1]}" if run["bits"] else "")
    found = ", ".join(f"{name} {100 * row['accuracy']:.2f}" for name, row in scores.items())
    rate = f"lr {run['learning_rate']:g}"
    return f"{run['network']} {run['method']}{cost} {note} {rate} seed {run['seed']}: {found}"


def work_off(wanted, found, deadline):
    """Executes the runs that have no record yet, and appends theirs; returns whether all are done."""
    known = {runs.Run.of(json.dumps(record["run"])).key for record in found}
    open_ = [run for run in dict.fromkeys(wanted) if run.key not in known]
    path = pathlib.Path(_RESULTS.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn()
        ) as bar,
        concurrent.futures.ThreadPoolExecutor(_WORKERS.value) as pool,
    ):
        task = bar.add_task("runs", total=len(open_))

        def execute(run):
            return executed(run) if time.monotonic() < deadline else None

        for future in concurrent.futures.as_completed([pool.submit(execute, run) for run in open_]):
            try:
                record = future.result()
            except RuntimeError as error:
                # The others go on; the next start tries this one again.
                bar.console.print(str(error))
                continue
            if record is None:
                continue
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            found.append(record)
            bar.console.print(told(record))
            bar.advance(task)
    return time.monotonic() < deadline


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    if not pathlib.Path(_RESNET.value).exists():
        raise app.UsageError(f"--resnet={_RESNET.value}: there is no such file.")
    if _ONE.value:
        one(runs.Run.of(_ONE.value))
        return
    deadline = time.monotonic() + (60 * _MINUTES.value if _MINUTES.value else float("inf"))
    shared = bench()
    for name in _NETWORKS.value:
        shared.start(name)
    costs = {
        name: assignments.cost_model(getattr(architectures, name)(keras))
        for name in float_networks.NETWORKS
    }
    for line in left_out():
        print(line)
    for part in _PARTS.value:
        found = records()
        if not work_off(planned(part, costs, found), found, deadline):
            break


if __name__ == "__main__":
    app.run(main)
