"""Compares what a user waits for before training is at full speed with a float model's first step.

For a `DQMQModel` that is all that happens once: `quantize_model`, calibration, the first step of the
search, settling the bits, and the first step with settled bits. Each model starts in a new process.
Float and quantized processes alternate, so that other load on the machine affects both, and what is
counted is the processor time of the process.

    python examples/benchmarks/start_time.py --output=examples/benchmarks/results/start_time.json
"""

import dataclasses
import itertools
import json
import statistics
import sys
import time

import keras
import networks
import own_process
import rich.table
from absl import app, flags, logging
from recorded_rows import RecordedRows
from training_steps import random_batch

import dqmq_tf

_STAGES = ("quantize", "calibrate", "first step", "settle", "settled step")

_NAMES = flags.DEFINE_multi_enum(
    "network", networks.PHONE_NETWORKS, list(networks.NETWORKS), "Networks to start."
)
_TARGET = flags.DEFINE_string("target", "android", "Deployment target.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images per step.", lower_bound=2)
_JIT = flags.DEFINE_list("jit_compile", ["auto", "False"], "Values of compile's argument.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Processes of each kind.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")
_ONLY = flags.DEFINE_enum(
    "only", None, ["float", "quantized"], "Start one model and print the seconds of its stages."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """Processor seconds of one network, medians over the rounds.

    Attributes:
        network: Its name.
        target: The deployment target.
        jit_compile: The argument of `compile`.
        rounds: The number of rounds.
        float_seconds: The first step of the float model.
        stages: `{stage: seconds}` of the quantized model.
        ratio: Median over the rounds of the sum of all stages over the float step.
        low, high: The lowest and the highest ratio.
    """

    network: str
    target: str
    jit_compile: str
    rounds: int
    float_seconds: float
    stages: dict[str, float]
    ratio: float
    low: float
    high: float


class _Clock:
    """Measures the processor seconds between calls."""

    def __init__(self):
        self.stages, self._last = {}, time.process_time()

    def __call__(self, stage):
        now = time.process_time()
        self.stages[stage], self._last = now - self._last, now


def start(network, target, batch_size, jit_compile):
    """Starts a model.

    Args:
        network: A function that returns the float model.
        target: The deployment target. None to start the float model.
        batch_size: The number of images.
        jit_compile: The argument of `compile`.

    Returns:
        `(stages, model, batch)`: the processor seconds of each stage, the model that was started, and
        the images and labels of its steps.
    """
    keras.utils.set_random_seed(0)
    model = network()
    batch = random_batch(model, batch_size)
    options = {"loss": "sparse_categorical_crossentropy", "jit_compile": jit_compile}
    clock = _Clock()
    if target is None:
        model.compile("adam", **options)
        model.train_on_batch(*batch)
        clock("first step")
        return clock.stages, model, batch
    quantized = dqmq_tf.quantize_model(model, target=target)
    clock("quantize")
    quantized.compile("adam", **options)
    quantized.calibrate(batch[0])
    quantized._training.begin(1_000_000)
    clock("calibrate")
    quantized.train_on_batch(*batch)
    clock("first step")
    quantized._training.settle()
    clock("settle")
    quantized.train_on_batch(*batch)
    clock("settled step")
    return clock.stages, quantized, batch


def in_a_process(name, kind, jit_compile):
    """Returns what `start` measures in a new process."""
    command = [
        sys.executable,
        __file__,
        f"--only={kind}",
        f"--network={name}",
        f"--target={_TARGET.value}",
        f"--batch_size={_BATCH_SIZE.value}",
        f"--jit_compile={jit_compile}",
    ]
    return own_process.json_of(command)


def measure(name, jit_compile):
    """Returns the `Row` of a network."""
    floats, quantized = [], []
    for _ in range(_ROUNDS.value):
        floats.append(in_a_process(name, "float", jit_compile)["first step"])
        quantized.append(in_a_process(name, "quantized", jit_compile))
    ratios = [sum(stages.values()) / seconds for stages, seconds in zip(quantized, floats)]
    return Row(
        network=name,
        target=_TARGET.value,
        jit_compile=jit_compile,
        rounds=_ROUNDS.value,
        float_seconds=statistics.median(floats),
        stages={stage: statistics.median(row[stage] for row in quantized) for stage in _STAGES},
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
    )


def table_of(rows):
    """Returns the rows as a table."""
    table = rich.table.Table(
        "network", "jit", "float step", *_STAGES, "ratio (lowest to highest)",
        title=f"Start, {_TARGET.value}, batch {_BATCH_SIZE.value}, processor seconds",
        title_justify="left",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row.network,
            row.jit_compile,
            f"{row.float_seconds:.1f}",
            *(f"{row.stages[stage]:.1f}" for stage in _STAGES),
            f"{row.ratio:.1f} ({row.low:.1f}-{row.high:.1f})",
        )
    return table


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    logging.set_verbosity(logging.ERROR)
    if _ONLY.value:
        jit_compile = {"True": True, "False": False}.get(_JIT.value[0], "auto")
        network = networks.NETWORKS[_NAMES.value[0]]
        target = None if _ONLY.value == "float" else _TARGET.value
        stages, _, _ = start(network, target, _BATCH_SIZE.value, jit_compile)
        print(json.dumps(stages))
        return
    rows, record = [], RecordedRows(_OUTPUT.value, "network", "target", "jit_compile")
    for name, jit_compile in itertools.product(_NAMES.value, _JIT.value):
        rows.append(measure(name, jit_compile))
        print(f"{name}, {jit_compile}: {rows[-1].ratio:.1f} times the float step", flush=True)
        record.add(rows[-1])
    rich.console.Console(width=140).print(table_of(rows))


if __name__ == "__main__":
    app.run(main)
