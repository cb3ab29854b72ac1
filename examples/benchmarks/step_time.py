"""What one training step costs: `DQMQModel` against the float model, interleaved in one run.

Both train MLPerf Tiny's ResNet-8 (or a model that is given) on the same batch through the functions
that `fit` uses. Float and quantized steps alternate, so that whatever else the machine does falls on
both; the figure is the median of the ratios of neighbours. Tracing and compilation are left out.

    python examples/benchmarks/step_time.py --output=step_time.json
"""

import dataclasses
import json
import pathlib
import time

import keras
import numpy as np
import rich
import rich.table
import tensorflow as tf
from absl import app, flags

import dqmq_tf

_MODEL = flags.DEFINE_string(
    "model",
    "../shared/models/mlperf_tiny/pretrainedResnet.h5",
    "Float Keras classifier (.keras or .h5) with one image input; its weights do not matter.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images per step.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 40, "Timed steps of each model.", lower_bound=3)
_WARMUP = flags.DEFINE_integer("warmup", 3, "Steps of each model before the clock.", lower_bound=1)
_TARGETS = flags.DEFINE_list("targets", ["android", "simulation"], "Deployment targets to time.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_BOUND = 1.5


@dataclasses.dataclass(frozen=True)
class Row:
    """Times of one variant beside those of the float model.

    Attributes:
        target: Deployment target.
        phase: `"search"`, in which bits are drawn, or `"settled"`, in which they are fixed.
        float_seconds, quantized_seconds: Medians of a step.
        ratio: Median over the pairs of neighbouring steps of quantized over float time.
        low, high: Quartiles of that ratio.
        processor_ratio: The same median of processor time, which other programs disturb less.
    """

    target: str
    phase: str
    float_seconds: float
    quantized_seconds: float
    ratio: float
    low: float
    high: float
    processor_ratio: float


def random_batch(model):
    """Returns a batch of random images from 0 to 255, and labels, for a classifier."""
    random = np.random.default_rng(0)
    shape = [_BATCH_SIZE.value, *model.input_shape[1:]]
    images = random.uniform(0, 255, shape).astype("float32")
    return images, random.integers(0, model.output_shape[-1], _BATCH_SIZE.value)


def compiled(model):
    """Compiles a model as `fit` is mostly used, and returns it."""
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def step_function(model, batch):
    """Returns a function that takes one training step, and waits for it."""
    if model.train_function is None:
        model.make_train_function()
    endless = iter(tf.data.Dataset.from_tensors(batch).repeat())

    def step():
        logs = model.train_function(endless)
        float(logs["loss"])

    for _ in range(_WARMUP.value):
        step()
    return step


def seconds(step):
    """Returns the time, and the processor time, that a call takes."""
    started = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - started[0], time.process_time() - started[1]


def compare(target, phase, float_step, quantized_step):
    """Times both steps in turn and returns a `Row`."""
    pairs = []
    for number in range(_STEPS.value):
        # Who goes first alternates too.
        if number % 2:
            quantized = seconds(quantized_step)
            pairs.append((seconds(float_step), quantized))
        else:
            pairs.append((seconds(float_step), seconds(quantized_step)))
    times = np.array(pairs)  # [pair, float or quantized, wall or processor]
    ratios = times[:, 1] / times[:, 0]
    low, ratio, high = np.percentile(ratios[:, 0], [25, 50, 75])
    medians = np.median(times[:, :, 0], axis=0)
    processor_ratio = np.median(ratios[:, 1])
    return Row(target, phase, *map(float, (*medians, ratio, low, high, processor_ratio)))


def measure(model, target):
    """Yields a `Row` of the search and one of the settled phase."""
    batch = random_batch(model)
    quantized = compiled(dqmq_tf.quantize_model(model, target=target))
    quantized.calibrate(batch[0])
    quantized.begin_search(1_000_000)
    float_step = step_function(compiled(model), batch)
    yield compare(target, "search", float_step, step_function(quantized, batch))
    quantized.settle()
    yield compare(target, "settled", float_step, step_function(quantized, batch))


def table_of(rows):
    """Returns a table of rows."""
    table = rich.table.Table(
        "target",
        "phase",
        "float ms",
        "DQMQ ms",
        "ratio (quartiles)",
        "CPU ratio",
        f"<= {_BOUND}",
        title=f"Training step, batch {_BATCH_SIZE.value}",
    )
    for row in rows:
        table.add_row(
            row.target,
            row.phase,
            f"{1000 * row.float_seconds:.0f}",
            f"{1000 * row.quantized_seconds:.0f}",
            f"{row.ratio:.2f} ({row.low:.2f}-{row.high:.2f})",
            f"{row.processor_ratio:.2f}",
            "kept" if row.ratio <= _BOUND else "MISSED",
        )
    return table


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    if not pathlib.Path(_MODEL.value).exists():
        raise app.UsageError(f"--model={_MODEL.value}: there is no such file.")
    rows = []
    for target in _TARGETS.value:
        model = keras.models.load_model(_MODEL.value, compile=False)
        for row in measure(model, target):
            rows.append(row)
            print(f"{row.target}, {row.phase}: {row.ratio:.2f} times the float step", flush=True)
        if _OUTPUT.value:
            record = [dataclasses.asdict(row) for row in rows]
            pathlib.Path(_OUTPUT.value).write_text(json.dumps(record, indent=2) + "\n")
    rich.print(table_of(rows))


if __name__ == "__main__":
    app.run(main)
