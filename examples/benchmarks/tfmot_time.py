"""Compares start, step and memory of TFMOT's int8 training with those of its float model.

TensorFlow Model Optimization (TFMOT) needs Keras 2, so the float models are those of `tf_keras`. What is
measured is what `start_time.py` and `step_time.py` measure of a `DQMQModel`, on the same networks:
all that happens once, over the float model's first step; one step, in pairs of neighboring steps; and
the peak memory. Networks that TFMOT refuses are recorded with its message.

    python examples/benchmarks/tfmot_time.py --output=examples/benchmarks/results/tfmot_time.json
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import dataclasses
import json
import sys
import time

import own_process
import paired_times
import rich.console
import rich.table
import tensorflow_model_optimization as tfmot
import tf_keras
from absl import app, flags
from recorded_rows import RecordedRows
from study import architectures
from training_steps import compiled, random_batch, step_function

_CLASSES, _WARMUP = 10, 3


def _application(name, side, **options):
    """Returns a function that makes a model of `tf_keras.applications` with random weights."""
    build = getattr(tf_keras.applications, name)
    return lambda: build(input_shape=(side, side, 3), weights=None, classes=_CLASSES, **options)


# Each network by its name in other results, with the number of images per step.
_NETWORKS = {
    "ResNet-8": (lambda: architectures.resnet8(tf_keras), 128),
    "MobileNetV2 0.35, 96 x 96": (_application("MobileNetV2", 96, alpha=0.35), 32),
    "MobileNetV3Small, 224 x 224": (_application("MobileNetV3Small", 224), 32),
    "EfficientNetB0, 224 x 224": (_application("EfficientNetB0", 224), 32),
}

_NAMES = flags.DEFINE_multi_enum("network", list(_NETWORKS), list(_NETWORKS), "Networks to train.")
_STEPS = flags.DEFINE_integer("steps", 15, "Timed steps of each model.", lower_bound=3)
_START_BATCH = flags.DEFINE_integer("start_batch", 8, "Images of the first step.", lower_bound=2)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")
_ONLY = flags.DEFINE_enum(
    "only", None, ["float", "tfmot"], "Train one model and print what its process took."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """TFMOT's training of one network over that of the float model.

    Attributes:
        network: Its name.
        refusal: Why TFMOT does not quantize it. None if it does; the others are None otherwise.
        start_ratio: Processor seconds of `quantize_model` and the first step over the first step.
        processor_ratio: Median over pairs of steps of the processor time of a step, over float.
        float_mb, tfmot_mb: Peak memory.
    """

    network: str
    refusal: str | None = None
    start_ratio: float | None = None
    processor_ratio: float | None = None
    float_mb: int | None = None
    tfmot_mb: int | None = None


def quantized(model):
    return tfmot.quantization.keras.quantize_model(model)


def of_this_process(name, kind):
    """Starts one model and takes a few steps. Returns the seconds of the start, and the peak in MB."""
    network, batch_size = _NETWORKS[name]
    model = network()
    started = time.process_time()
    model = compiled(quantized(model) if kind == "tfmot" else model)
    step_function(model, random_batch(model, _START_BATCH.value), warmup=1)
    seconds = time.process_time() - started
    step_function(model, random_batch(model, batch_size), _WARMUP)
    return {"seconds": seconds, "mb": own_process.peak_of_this()}


def in_a_process(name, kind):
    """Returns what `of_this_process` measures in a new process."""
    command = [sys.executable, __file__, f"--only={kind}", f"--network={name}"]
    return own_process.json_of(command)


def measure(name):
    """Returns the `Row` of a network."""
    network, batch_size = _NETWORKS[name]
    model = network()
    try:
        trained = compiled(quantized(network()))
    except (AttributeError, RuntimeError, ValueError) as error:
        return Row(network=name, refusal=str(error).splitlines()[0])
    plain, other = in_a_process(name, "float"), in_a_process(name, "tfmot")
    batch = random_batch(model, batch_size)
    steps = (step_function(m, batch, _WARMUP) for m in (compiled(model), trained))
    return Row(
        network=name,
        start_ratio=other["seconds"] / plain["seconds"],
        processor_ratio=paired_times.compare(*steps, _STEPS.value).processor_ratio,
        float_mb=plain["mb"],
        tfmot_mb=other["mb"],
    )


def table_of(rows):
    """Returns the rows as a table."""
    table = rich.table.Table("network", "start", "step", "float MB", "TFMOT MB", title="TFMOT")
    for row in rows:
        if row.refusal is not None:
            table.add_row(row.network, row.refusal, "-", "-", "-")
            continue
        ratios = (f"{value:.2f}" for value in (row.start_ratio, row.processor_ratio))
        table.add_row(row.network, *ratios, f"{row.float_mb:,}", f"{row.tfmot_mb:,}")
    return table


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    if _ONLY.value:
        print(json.dumps(of_this_process(_NAMES.value[0], _ONLY.value)))
        return
    rows, record = [], RecordedRows(_OUTPUT.value, "network")
    for name in _NAMES.value:
        rows.append(measure(name))
        print(rows[-1], flush=True)
        record.add(rows[-1])
    rich.console.Console(width=140).print(table_of(rows))


if __name__ == "__main__":
    app.run(main)
