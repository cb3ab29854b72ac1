"""Compares the latency of an `android` file with that of an int8 file by litert-quantizer alone.

Both files of a network have int8 inputs and outputs. They run alternately on LiteRT with XNNPACK on one
thread, so that other load on the machine affects both. A pair of measurements is a few milliseconds of
each file, and the result is the median of the pairs' ratios. The benchmark also shows what fewer bits
save: the size of the file after deflate (see also `size.py`).

    python examples/benchmarks/latency.py --output=latency.json
"""

import dataclasses
import functools
import sys

import networks
import numpy as np
import paired_times
import rich.table
from absl import app, flags, logging
from recorded_rows import RecordedRows

from dqmq_tf.flatbuffer import file_size
from dqmq_tf.runtimes import in_process

_PAIRS = flags.DEFINE_integer("pairs", 600, "Pairs of measurements.", lower_bound=10)
_BITS = flags.DEFINE_integer("bits", 4, "Mean weight bit-width.", lower_bound=2, upper_bound=8)
_NAMES = flags.DEFINE_multi_enum(
    "network", list(networks.NETWORKS), list(networks.NETWORKS), "Networks to run."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_BOUND = 1.02
_BLOCK_SECONDS = 0.004


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


def loaded(contents):
    """Returns an allocated interpreter with random inputs."""
    runner = in_process.interpreter(contents, threads=1)
    (entry,) = runner.get_input_details()
    random = np.random.default_rng(0)
    runner.set_tensor(entry["index"], random.integers(-128, 128, entry["shape"], "int8"))
    for _ in range(5):
        runner.invoke()
    return runner


def compare_files(first, second, pairs):
    """Runs two files alternately, each for a block of time, and compares their times.

    Args:
        first, second: Contents of the files.
        pairs: The number of pairs of blocks.

    Returns:
        The `paired_times.PairedTimes` of one inference.
    """
    runners = loaded(first), loaded(second)
    count = max(1, round(_BLOCK_SECONDS / paired_times.seconds(runners[0].invoke)[0]))

    def block(runner):
        for _ in range(count):
            runner.invoke()

    blocks = [functools.partial(block, runner) for runner in runners]
    times = paired_times.compare(*blocks, pairs)
    return dataclasses.replace(
        times,
        first_seconds=times.first_seconds / count,
        second_seconds=times.second_seconds / count,
    )


def compare(name, model):
    """Returns the `Row` of a network."""
    contents, report = networks.converted(
        model, "android", networks.mixed_bits(model, _BITS.value), io_dtype="int8", verify=False
    )
    other = networks.int8_by_quantizer(model)
    times = compare_files(other, contents, _PAIRS.value)
    return Row(
        network=name,
        mean_bits=round(networks.mean_bits(report), 3),
        ours_ms=1000 * times.second_seconds,
        int8_ms=1000 * times.first_seconds,
        deflated_ratio=report.download_bytes / file_size.deflated_bytes(other),
        **times.ratios,
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
    rows, record = [], RecordedRows(_OUTPUT.value, "network")
    for name in _NAMES.value:
        rows.append(compare(name, networks.NETWORKS[name]()))
        print(f"{name}: {rows[-1].ratio:.3f} times the int8 file", flush=True)
        record.add(rows[-1])
    rich.console.Console(width=110).print(table_of(rows))
    sys.exit(0 if all(row.ratio <= _BOUND for row in rows) else 1)


if __name__ == "__main__":
    app.run(main)
