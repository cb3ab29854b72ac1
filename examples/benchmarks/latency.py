"""Compares the latency of an `android` file with that of an int8 file by litert-quantizer alone.

Both files of a network have int8 inputs and outputs. They run alternately on LiteRT with XNNPACK on one
thread, so that other load on the machine affects both. A pair of measurements is a few milliseconds of
each file, and the result is the median of the pairs' ratios. The benchmark also shows what fewer bits
save: the size of the file after deflate (see also `size.py`).

    python examples/benchmarks/latency.py --output=latency.json
"""

import dataclasses
import json
import pathlib
import sys
import time

import networks
import numpy as np
import rich.table
from absl import app, flags, logging

from dqmq_tf.flatbuffer import file_size
from dqmq_tf.runtimes import in_process

_PAIRS = flags.DEFINE_integer("pairs", 600, "Pairs of measurements.", lower_bound=10)
_BITS = flags.DEFINE_integer("bits", 4, "Mean weight bit-width.", lower_bound=2, upper_bound=8)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_BOUND = 1.02
_BLOCK_SECONDS = 0.004
_NETWORKS = {
    "ResNet-8": networks.resnet8,
    "MobileNetV2 0.35, 96 x 96": networks.mobilenet_v2,
    "MobileNetV2 1.0, 224 x 224": lambda: networks.mobilenet_v2(224, 1.0, 1000),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """Result for the two files of one network.

    Attributes:
        network: Name of the network.
        mean_bits: Mean weight bit-width in our file.
        ours_ms, int8_ms: Median time of an inference.
        ratio: Median over the pairs of our time divided by that of the int8 file.
        low, high: Quartiles of that ratio.
        processor_ratio: The same median for processor time, which other programs affect less.
        deflated_ratio: Size of our file divided by that of the int8 file, both after deflate (zlib,
            level 9).
    """

    network: str
    mean_bits: float
    ours_ms: float
    int8_ms: float
    ratio: float
    low: float
    high: float
    processor_ratio: float
    deflated_ratio: float


def invoker(contents):
    """Returns a function that runs a file repeatedly, and how many runs fill a block of time."""
    runner = in_process.interpreter(contents, threads=1)
    (entry,) = runner.get_input_details()
    random = np.random.default_rng(0)
    runner.set_tensor(entry["index"], random.integers(-128, 128, entry["shape"], "int8"))
    for _ in range(5):
        runner.invoke()
    started = time.perf_counter()
    runner.invoke()
    count = max(1, round(_BLOCK_SECONDS / (time.perf_counter() - started)))

    def block(times):
        for _ in range(times):
            runner.invoke()

    return block, count


def seconds(block, count):
    """Returns the wall time and the processor time of one inference."""
    started = time.perf_counter(), time.process_time()
    block(count)
    wall, processor = time.perf_counter() - started[0], time.process_time() - started[1]
    return wall / count, processor / count


def compare(name, model):
    """Returns the `Row` of a network."""
    contents, report = networks.converted(
        model, "android", networks.mixed_bits(model, _BITS.value), io_dtype="int8", verify=False
    )
    other = networks.int8_by_quantizer(model)
    (ours, count), (int8, _) = invoker(contents), invoker(other)
    pairs = []
    for number in range(_PAIRS.value):
        # The order alternates as well.
        if number % 2:
            second = seconds(int8, count)
            pairs.append((seconds(ours, count), second))
        else:
            pairs.append((seconds(ours, count), seconds(int8, count)))
    times = np.array(pairs)  # [pair, ours or int8, wall or processor]
    ratios = times[:, 0] / times[:, 1]
    low, ratio, high = np.percentile(ratios[:, 0], [25, 50, 75])
    medians = 1000 * np.median(times[:, :, 0], axis=0)
    return Row(
        network=name,
        mean_bits=round(networks.mean_bits(report), 3),
        ours_ms=float(medians[0]),
        int8_ms=float(medians[1]),
        ratio=float(ratio),
        low=float(low),
        high=float(high),
        processor_ratio=float(np.median(ratios[:, 1])),
        deflated_ratio=report.download_bytes / file_size.deflated_bytes(other),
    )


def table_of(rows):
    """Returns the rows as a table."""
    table = rich.table.Table(title=f"android, mean {_BITS.value} bits", title_justify="left")
    names = ("network", "ours ms", "int8 ms", "ratio (quartiles)", "CPU ratio", "deflated")
    for name in (*names, f"<= {_BOUND}"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for row in rows:
        table.add_row(
            row.network,
            f"{row.ours_ms:.3f}",
            f"{row.int8_ms:.3f}",
            f"{row.ratio:.3f} ({row.low:.3f}-{row.high:.3f})",
            f"{row.processor_ratio:.3f}",
            f"{100 * row.deflated_ratio:.1f} %",
            "kept" if row.ratio <= _BOUND else "MISSED",
        )
    return table


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    logging.set_verbosity(logging.ERROR)
    rows = []
    for name, make in _NETWORKS.items():
        rows.append(compare(name, make()))
        print(f"{name}: {rows[-1].ratio:.3f} times the int8 file", flush=True)
        if _OUTPUT.value:
            record = [dataclasses.asdict(row) for row in rows]
            pathlib.Path(_OUTPUT.value).write_text(json.dumps(record, indent=2) + "\n")
    rich.console.Console(width=110).print(table_of(rows))
    sys.exit(0 if all(row.ratio <= _BOUND for row in rows) else 1)


if __name__ == "__main__":
    app.run(main)
