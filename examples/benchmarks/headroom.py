"""How much bits by image could bring, and how much of it the policy takes.

Trains DQMQ, or learned static bits, as `mixed_quality.py` does, and then gives the activations of the
trained network other bits: the same ones for all images, and those of an oracle that knows the kind of
each image's degradation and whether it is severe. Both are chosen in one way, by the loss that each
change alone adds on 5,000 images held out, at the mean cost of the policy's own decisions; all are scored on
the test sets. A bound is measured on the held-out images: bits for each image by its own label.

    python examples/benchmarks/headroom.py --networks=mobilenet_v2 --budgets=3
"""

import json
import pathlib
import time

import rich
import rich.table
from absl import app, flags
from study import headroom, results, runs, starts

_RESULTS = flags.DEFINE_string(
    "results", "examples/benchmarks/results/mixed_quality.jsonl", "Whose trials chose the rates."
)
_OUTPUT = flags.DEFINE_string(
    "output", "examples/benchmarks/results/headroom.jsonl", "JSON lines, one a network and budget."
)
_CACHE = flags.DEFINE_string("cache", "build/mixed_quality", "Folder for degraded images.")
_STARTS = flags.DEFINE_string("starts", "examples/benchmarks/starts", "Folder of float networks.")
_DATA_DIR = flags.DEFINE_string("data_dir", "../shared/data/tfds", "tensorflow-datasets.")
_RESNET = flags.DEFINE_string(
    "resnet", "../shared/models/mlperf_tiny/pretrainedResnet.h5", "MLPerf Tiny's ResNet-8 (.h5)."
)
_NETWORKS = flags.DEFINE_list("networks", list(starts.NETWORKS), "Networks to measure.")
_METHODS = flags.DEFINE_list("methods", ["dqmq"], "Whose weights: dqmq, static.")
_BUDGETS = flags.DEFINE_list("budgets", ["2.5", "3", "4"], "Mean bit-widths.")
_STEPS = flags.DEFINE_integer("steps", 600, "Training steps.", lower_bound=4)
_SEED = flags.DEFINE_integer("seed", 0, "Of the training.")
_REACH = flags.DEFINE_integer("reach", 2, "Most bits that a choice changes.", lower_bound=1)


def table(records):
    """Returns a `rich.table.Table` of all records."""
    shown = rich.table.Table(title="Accuracy in % (mean bits) by who decides the activations")
    for name in (
        "network",
        "weights of",
        "budget",
        "images",
        "same for all",
        "policy",
        "quality known",
        "label known",
    ):
        shown.add_column(name)
    for record in records:
        run = record["run"]
        for images, rows in record["scores"].items():
            figures = [
                f"{100 * rows[way]['accuracy']:.2f} ({rows[way]['bits']:.2f})"
                if way in rows
                else "-"
                for way in ("same", "policy", "quality", "label")
            ]
            name = results.NETWORKS[run["network"]]
            method = results.METHODS[run["method"]]
            shown.add_row(name, method, f"{run['budget']:g}", images, *figures)
    return shown


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    records = [json.loads(line) for line in pathlib.Path(_RESULTS.value).read_text().splitlines()]
    rates = results.chosen_rates(records)
    bench = runs.Bench(_DATA_DIR.value, _CACHE.value, _RESNET.value, _STARTS.value)
    output = pathlib.Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    found = []
    for network in _NETWORKS.value:
        for method in _METHODS.value:
            for budget in map(float, _BUDGETS.value):
                run = runs.Run(
                    network=network,
                    method=method,
                    kind="mean_bit_width",
                    budget=budget,
                    learning_rate=rates[network, method],
                    steps=_STEPS.value,
                    seed=_SEED.value,
                )
                started = time.monotonic()
                record = headroom.measure(bench, run, _REACH.value)
                with output.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                found.append(record)
                rich.print(f"{run.key}: {time.monotonic() - started:.0f} s")
    rich.print(table(found))


if __name__ == "__main__":
    app.run(main)
