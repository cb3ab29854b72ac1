"""Compares DQMQ with other quantization methods at equal cost, on images of mixed quality.

The data is CIFAR-10 under seven kinds of degradation at severities 1 to 5, with a fifth of the training
images clean. Each network is first trained in float on this mixture (`--starts`). From there every method
gets the same images in the same order, the same number of steps, and the same number of trials of the
learning rate. The cost is the mean number of bit operations per image, over all layers and including what
decides the bits, or the size of the `.tflite` file in bytes.

    python examples/benchmarks/mixed_quality.py

HGQ2 needs an environment of its own (`pip install "HGQ2[tensorflow]" absl-py`). Set `DQMQ_HGQ2_PYTHON` to
its Python; without it, the other methods run.

Each run appends one line of JSON to `--results`. Runs that are in the file are not repeated, so you can
stop and restart the benchmark at any time. `examples/benchmarks/plot.py` prints and draws the results.
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
    data_flags,
    external_methods,
    float_networks,
    learning_rates,
    plan,
    results,
    runs,
)

_RESULTS = flags.DEFINE_string(
    "results", "examples/benchmarks/results/mixed_quality.jsonl", "File of JSON lines, one per run."
)
_CACHE = flags.DEFINE_string(
    "cache", "build/mixed_quality", "Folder for degraded images and sensitivities."
)
_STARTS = flags.DEFINE_string(
    "starts",
    "examples/benchmarks/starts",
    "Folder of trained float networks. Missing networks are trained and saved there.",
)
_PARTS = flags.DEFINE_list(
    "parts",
    ["trials", "table", "files", "ablations", "oracle", "fronts"],
    "Parts to run, in this order.",
)
_NETWORKS = flags.DEFINE_list("networks", list(float_networks.NETWORKS), "Networks to run.")
_METHODS = flags.DEFINE_list("methods", list(runs.METHODS), "Methods to run.")
_SEEDS = flags.DEFINE_list("seeds", list(map(str, plan.ALL_SEEDS)), "Seeds to run.")
_FRONTS = flags.DEFINE_list(
    "fronts", list(results.FRONTS), "What to have in front of the network in the part `fronts`."
)
_BUDGETS = flags.DEFINE_list("budgets", None, "Budgets to run; all if not given.")
_STEPS = flags.DEFINE_integer(
    "steps", 600, "Training steps of 128 images in each run.", lower_bound=4
)
_WORKERS = flags.DEFINE_integer(
    "workers", 2, "Number of parallel runs, each on one thread.", lower_bound=1
)
_MINUTES = flags.DEFINE_float(
    "minutes", None, "Start no new run after this many minutes.", lower_bound=0.0
)
_ONE = flags.DEFINE_string("one", None, "Execute only this run, a `Run.key`, and print its record.")

_MARK = "record: "


def bench():
    """Returns the `Bench` that the flags describe."""
    data_dir = data_flags.DATA_DIR.value
    folder = data_dir if pathlib.Path(data_dir).exists() else None
    return runs.Bench(folder, _CACHE.value, data_flags.RESNET.value, _STARTS.value)


def records():
    """Returns the records of the runs so far."""
    path = pathlib.Path(_RESULTS.value)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def planned(part, costs, found):
    """Returns the runs of one part that the flags select."""
    chosen = learning_rates.Rates(found)
    every = {
        "trials": lambda: plan.trials(costs),
        "table": lambda: plan.table(costs, _STEPS.value, chosen),
        "files": lambda: plan.files(_STEPS.value, chosen),
        "ablations": lambda: plan.ablations(_STEPS.value, chosen),
        "oracle": lambda: plan.oracle(_STEPS.value, chosen),
        "fronts": lambda: plan.behind_fronts(_STEPS.value, chosen),
    }[part]()
    return [
        run
        for run in every
        if run.network in _NETWORKS.value
        and run.method in _METHODS.value
        and str(run.seed) in _SEEDS.value
        and (run.front is None or run.front in _FRONTS.value)
        and (_BUDGETS.value is None or f"{run.budget or 0:g}" in _BUDGETS.value)
        and not external_methods.missing(run.method)
    ]


def left_out():
    """Returns a message for each selected method that cannot run here."""
    reasons = {method: external_methods.missing(method) for method in _METHODS.value}
    return [f"{results.METHODS[m]} is left out: {why}." for m, why in reasons.items() if why]


def executed(run):
    """Executes a run in its own process, on one thread, and returns the record."""
    names = ("cache", "data_dir", "resnet", "starts")
    passed = [f"--{name}={flags.FLAGS[name].value}" for name in names]
    command = [sys.executable, __file__, f"--one={run.key}", *passed]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not lines:
        raise RuntimeError(f"{run.key} failed:\n{done.stderr[-4000:]}")
    return json.loads(lines[-1].removeprefix(_MARK))


def execute_here(run):
    """Executes a run in this process, on one thread, and prints its record."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(_MARK + json.dumps(bench().execute(run)), flush=True)


def describe(record):
    """Returns a line of text about a record."""
    run, scores = record["run"], record["scores"]
    cost = "" if run["budget"] is None else f" at {run['budget']:g} {run['kind']}"
    cost += f" behind {run['front']}" if run["front"] else ""
    note = run["ablation"] or (f"w{run['bits'][0]}a{run['bits'][1]}" if run["bits"] else "")
    found = ", ".join(f"{name} {100 * row['accuracy']:.2f}" for name, row in scores.items())
    rate = f"lr {run['learning_rate']:g}"
    return f"{run['network']} {run['method']}{cost} {note} {rate} seed {run['seed']}: {found}"


def execute_missing(wanted, found, deadline):
    """Executes the runs that have no record yet, and appends their records to the file.

    Args:
        wanted: Runs.
        found: Records so far; new ones are appended.
        deadline: No run starts after this `time.monotonic()`.

    Returns:
        Whether there is time left.
    """
    known = {runs.Run.of(json.dumps(record["run"])).key for record in found}
    missing = [run for run in dict.fromkeys(wanted) if run.key not in known]
    path = pathlib.Path(_RESULTS.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn()
        ) as bar,
        concurrent.futures.ThreadPoolExecutor(_WORKERS.value) as pool,
    ):
        task = bar.add_task("runs", total=len(missing))

        def execute(run):
            return executed(run) if time.monotonic() < deadline else None

        for future in concurrent.futures.as_completed(
            [pool.submit(execute, run) for run in missing]
        ):
            try:
                record = future.result()
            except RuntimeError as error:
                # The other runs continue. The next start of the benchmark tries this one again.
                bar.console.print(str(error))
                continue
            if record is None:
                continue
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            found.append(record)
            bar.console.print(describe(record))
            bar.advance(task)
    return time.monotonic() < deadline


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    if not pathlib.Path(data_flags.RESNET.value).exists():
        raise app.UsageError(f"--resnet={data_flags.RESNET.value} does not exist.")
    if _ONE.value:
        execute_here(runs.Run.of(_ONE.value))
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
        if not execute_missing(planned(part, costs, found), found, deadline):
            break


if __name__ == "__main__":
    app.run(main)
