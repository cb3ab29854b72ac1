"""Measures how the start and the steps of training grow with the number of decision points.

The networks are chains of residual blocks, and a decision point is a kernel or an activation that gets a
bit-width. The start is all that `start_time.py` counts. Float and quantized models run in processes of
their own that alternate, and what is counted is processor time.

    python examples/benchmarks/growth.py --output=examples/benchmarks/results/growth.json \\
        --plot=examples/benchmarks/results/growth.png
"""

import dataclasses
import json
import statistics
import sys
import time

import keras
import matplotlib.pyplot as plt
import own_process
import start_time
from absl import app, flags, logging
from recorded_rows import RecordedRows

_BLOCKS = flags.DEFINE_list("blocks", ["1", "6", "20", "56"], "Residual blocks of each network.")
_STEPS = flags.DEFINE_integer("steps", 15, "Timed steps of each model.", lower_bound=3)
# `start_time` defines --rounds and --output.
_PLOT = flags.DEFINE_string("plot", None, "PNG file for the plot.")
_RUN = flags.DEFINE_list("run", None, "`float` or a target, and blocks: only measure this one.")

_BATCH_SIZE, _SHAPE = 32, (32, 32, 3)
_KINDS = ("float", "android", "simulation")


@dataclasses.dataclass(frozen=True)
class Row:
    """Processor seconds of one network, medians over the rounds.

    Attributes:
        blocks: The number of residual blocks.
        kind: `"float"` or a target.
        points: The number of decision points, 0 for `"float"`.
        start_seconds: All that happens before the second step; for a target also settling.
        step_seconds: A step with settled bits.
    """

    blocks: int
    kind: str
    points: int
    start_seconds: float
    step_seconds: float


def network(blocks):
    """Returns a chain of residual blocks of two convolutions with 16 filters."""
    keras.utils.set_random_seed(0)
    image = keras.Input(_SHAPE)
    x = keras.layers.Conv2D(16, 3, padding="same")(image)
    for _ in range(blocks):
        y = keras.layers.Conv2D(16, 3, padding="same", use_bias=False)(x)
        y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
        y = keras.layers.Conv2D(16, 3, padding="same", use_bias=False)(y)
        y = keras.layers.BatchNormalization()(y)
        x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(10, activation="softmax")(x))


def measure(kind, blocks):
    """Starts a model, takes some steps, and returns a `Row`."""
    clock = time.process_time
    target = None if kind == "float" else kind
    stages, model, batch = start_time.start(
        lambda: network(blocks), target, _BATCH_SIZE, jit_compile="auto"
    )
    seconds = []
    for _ in range(_STEPS.value):
        started = clock()
        model.train_on_batch(*batch)
        seconds.append(clock() - started)
    points = 0
    if target is not None:
        points = len(model._parts.costs.weights) + len(model._parts.costs.activations)
    return Row(blocks, kind, points, sum(stages.values()), statistics.median(seconds))


def in_a_process(kind, blocks):
    """Returns the `Row` that a new process measures."""
    command = [sys.executable, __file__, f"--run={kind},{blocks}", f"--steps={_STEPS.value}"]
    return Row(**own_process.json_of(command))


def median_of(rows):
    """Returns the `Row` with the medians of several rows of one model."""
    start, step = (
        statistics.median(getattr(row, name) for row in rows)
        for name in ("start_seconds", "step_seconds")
    )
    return dataclasses.replace(rows[0], start_seconds=start, step_seconds=step)


def draw(rows, path):
    """Draws the ratios to the float model over the decision points."""
    floats = {row.blocks: row for row in rows if row.kind == "float"}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for axis, name, title in zip(
        axes, ("start_seconds", "step_seconds"), ("Start of training", "Step of training")
    ):
        for kind in _KINDS[1:]:
            of_kind = [row for row in rows if row.kind == kind]
            ratios = [getattr(r, name) / getattr(floats[r.blocks], name) for r in of_kind]
            axis.plot([row.points for row in of_kind], ratios, "o-", label=kind)
        axis.set(title=title, xlabel="decision points", ylabel="processor time over float")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    logging.set_verbosity(logging.ERROR)
    if _RUN.value:
        kind, blocks = _RUN.value
        print(json.dumps(dataclasses.asdict(measure(kind, int(blocks)))))
        return
    rows, record = [], RecordedRows(flags.FLAGS.output, "blocks", "kind")
    for blocks in _BLOCKS.value:
        rounds = [
            [in_a_process(kind, blocks) for kind in _KINDS] for _ in range(flags.FLAGS.rounds)
        ]
        rows.extend(map(median_of, zip(*rounds)))
        for row in rows[-len(_KINDS) :]:
            record.add(row)
            print(row, flush=True)
    if _PLOT.value:
        draw(rows, _PLOT.value)


if __name__ == "__main__":
    app.run(main)
