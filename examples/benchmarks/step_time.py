"""Compares the cost of a training step of a `DQMQModel` with that of the float model.

The networks are ResNet-8, the same with twice the filters, which is four times the size, and networks
that people put on phones, with random weights (`networks.PHONE_NETWORKS`). Float and quantized models train on the same batch, with the functions that `fit` uses. Their steps alternate, so
that other load on the machine affects both, and the result is the median of the ratios of neighboring
steps. Tracing and compilation are not counted. Memory is the peak of a process that took a few steps.

    python examples/benchmarks/step_time.py --output=examples/benchmarks/results/step_time.json
"""

import dataclasses
import itertools
import sys

import keras
import networks
import own_process
import paired_times
import rich.console
import rich.table
from absl import app, flags
from recorded_rows import RecordedRows
from searching_model import searching
from study import architectures
from training_steps import compiled, random_batch, step_function

# Each network, with the number of images per step.
_NETWORKS = {
    "ResNet-8": (lambda: architectures.resnet8(keras, 1), 128),
    "ResNet-8, twice the filters": (lambda: architectures.resnet8(keras, 2), 128),
} | {name: (networks.NETWORKS[name], 32) for name in networks.PHONE_NETWORKS}

_NAMES = flags.DEFINE_multi_enum("network", list(_NETWORKS), list(_NETWORKS), "Networks to train.")
_STEPS = flags.DEFINE_integer("steps", 40, "Timed steps of each model.", lower_bound=3)
_WARMUP = flags.DEFINE_integer(
    "warmup", 3, "Steps of each model before timing begins.", lower_bound=1
)
_TARGETS = flags.DEFINE_list("targets", ["android", "simulation"], "Deployment targets to time.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")
_MEMORY_OF = flags.DEFINE_string(
    "memory_of",
    None,
    '"float" or a target: only take a few steps of this model, and print the peak memory in MB.',
)

# The largest ratio of a step by target, of ResNet-8 and of the other networks.
_RESNET_BOUNDS = {"android": 1.05, "simulation": 1.2}
_BOUNDS = {"android": 1.15, "simulation": 1.5}


@dataclasses.dataclass(frozen=True)
class Row:
    """Times of one variant and of the float model.

    Attributes:
        network: Name of the network.
        batch_size: Images per step.
        weights: Number of parameters of the float model.
        target: Deployment target.
        phase: `"search"`, in which bits are sampled, or `"settled"`, in which they are fixed.
        float_seconds, quantized_seconds: Median time of a step.
        ratio: Median over the pairs of neighboring steps of quantized time divided by float time.
        low, high: Quartiles of that ratio.
        processor_ratio: The same median for processor time, which other programs affect less.
        float_mb, quantized_mb: Peak memory in MB, including TensorFlow itself.
    """

    network: str
    batch_size: int
    weights: int
    target: str
    phase: str
    float_seconds: float
    quantized_seconds: float
    ratio: float
    low: float
    high: float
    processor_ratio: float
    float_mb: int
    quantized_mb: int


def compare(float_step, quantized_step):
    """Times both steps alternately, and returns the fields of a `Row` that are times."""
    times = paired_times.compare(float_step, quantized_step, _STEPS.value)
    return {
        "float_seconds": times.first_seconds,
        "quantized_seconds": times.second_seconds,
        "ratio": times.ratio,
        "low": times.low,
        "high": times.high,
        "processor_ratio": times.processor_ratio,
    }


def peak_of_process(name, variant):
    """Returns the peak memory, in MB, of a new process that trains one variant."""
    command = [sys.executable, __file__, f"--memory_of={variant}", f"--network={name}"]
    return own_process.json_of(command)


def peak_of_this(name, variant):
    """Takes a few steps of one variant, and returns the peak memory in MB."""
    network, batch_size = _NETWORKS[name]
    model = network()
    batch = random_batch(model, batch_size)
    step_function(
        compiled(model) if variant == "float" else searching(model, variant, batch[0]),
        batch,
        _WARMUP.value,
    )
    return own_process.peak_of_this()


def measure(name, target):
    """Yields a `Row` for the search phase and one for the settled phase."""
    network, batch_size = _NETWORKS[name]
    model = network()
    batch = random_batch(model, batch_size)
    quantized = searching(model, target, batch[0])
    common = {
        "network": name,
        "batch_size": batch_size,
        "weights": model.count_params(),
        "target": target,
        "float_mb": peak_of_process(name, "float"),
        "quantized_mb": peak_of_process(name, target),
    }
    float_step = step_function(compiled(model), batch, _WARMUP.value)
    yield Row(
        phase="search",
        **compare(float_step, step_function(quantized, batch, _WARMUP.value)),
        **common,
    )
    quantized._training.settle()
    yield Row(
        phase="settled",
        **compare(float_step, step_function(quantized, batch, _WARMUP.value)),
        **common,
    )


def table_of(rows):
    """Returns the rows as a table."""
    table = rich.table.Table(
        "network", "batch", "target", "phase", "float ms", "DQMQ ms", "ratio (quartiles)",
        "CPU ratio", "bound", "float MB", "DQMQ MB",
        title="Training step",
    )  # fmt: skip
    for row in rows:
        is_resnet = row["network"].startswith("ResNet-8")
        bound = (_RESNET_BOUNDS if is_resnet else _BOUNDS).get(row["target"])
        table.add_row(
            row["network"],
            str(row["batch_size"]),
            row["target"],
            row["phase"],
            f"{1000 * row['float_seconds']:.0f}",
            f"{1000 * row['quantized_seconds']:.0f}",
            f"{row['ratio']:.2f} ({row['low']:.2f}-{row['high']:.2f})",
            f"{row['processor_ratio']:.2f}",
            "-" if bound is None else f"{bound} {'kept' if row['ratio'] <= bound else 'MISSED'}",
            f"{row['float_mb']:,}",
            f"{row['quantized_mb']:,}",
        )
    return table


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    if _MEMORY_OF.value:
        print(peak_of_this(_NAMES.value[0], _MEMORY_OF.value))
        return
    record = RecordedRows(_OUTPUT.value, "network", "target", "phase")
    for name, target in itertools.product(_NAMES.value, _TARGETS.value):
        for row in measure(name, target):
            record.add(row)
            print(f"{name}, {target}, {row.phase}: {row.ratio:.2f} times float", flush=True)
    rich.console.Console(width=150).print(table_of(record.rows))


if __name__ == "__main__":
    app.run(main)
