"""Measures time and memory of a conversion, with and without verification.

Each network is converted in its own process.

    python examples/benchmarks/convert_time.py --output=convert_time.json
"""

import dataclasses
import multiprocessing
import pathlib
import resource
import sys
import tempfile
import time

import networks
import rich.table
from absl import app, flags, logging
from recorded_rows import RecordedRows

import dqmq_tf

_TARGET = flags.DEFINE_string("target", "android", "Deployment target.")
_NAMES = flags.DEFINE_multi_enum(
    "network", list(networks.NETWORKS), list(networks.NETWORKS), "Networks to convert."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_SMALL_BOUND, _BOUND = 15.0, 90.0


@dataclasses.dataclass(frozen=True)
class Row:
    """Result of one conversion.

    Attributes:
        network: Name of the network.
        seconds: Time of `convert` without verification.
        verified_seconds: Time of `convert` with verification, measured afterwards in the same process.
        before_megabytes: Peak memory of the process before the conversion. It holds TensorFlow and
            the quantized model.
        peak_megabytes: Peak memory of the process after the conversion.
        size_bytes: Size of the file.
        bound: Longest time that is allowed without verification.
    """

    network: str
    seconds: float
    verified_seconds: float
    before_megabytes: float
    peak_megabytes: float
    size_bytes: int
    bound: float

    @property
    def kept(self):
        return self.seconds <= self.bound


def peak_megabytes():
    """Returns the peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name, target, connection):
    """Converts a network and sends its `Row`."""
    logging.set_verbosity(logging.ERROR)
    model = networks.NETWORKS[name]()
    images = networks.images(model)
    quantized = networks.frozen(model, target, networks.mixed_bits(model, 4))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        before, started = peak_megabytes(), time.perf_counter()
        report = dqmq_tf.convert(quantized, path, data=images, verify=False)
        seconds, peak = time.perf_counter() - started, peak_megabytes()
        started = time.perf_counter()
        dqmq_tf.convert(quantized, path, data=images)
        verified = time.perf_counter() - started
    bound = _SMALL_BOUND if name == "ResNet-8" else _BOUND
    row = Row(name, seconds, verified, before, peak, report.size_bytes, bound)
    connection.send(dataclasses.asdict(row))


def in_a_child(name, target):
    """Runs `measure` in its own process and returns the `Row`."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=measure, args=(name, target, there))
    child.start()
    there.close()
    try:
        return Row(**here.recv())
    except EOFError:
        child.join()
        raise RuntimeError(f"{name}: the process ended with exit code {child.exitcode}.") from None
    finally:
        child.join()


def table_of(rows):
    """Returns the rows as a table."""
    table = rich.table.Table(title=f"Conversion, {_TARGET.value}", title_justify="left")
    for title in ("network", "seconds", "with verification", "peak MB (before)", "bytes", "bound"):
        table.add_column(title, justify="left" if title == "network" else "right")
    for row in rows:
        table.add_row(
            row.network,
            f"{row.seconds:.1f}",
            f"{row.verified_seconds:.1f}",
            f"{row.peak_megabytes:,.0f} ({row.before_megabytes:,.0f})",
            f"{row.size_bytes:,}",
            f"{row.bound:.0f} s {'kept' if row.kept else 'MISSED'}",
        )
    return table


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    rows, record = [], RecordedRows(_OUTPUT.value, "network")
    for name in _NAMES.value:
        rows.append(in_a_child(name, _TARGET.value))
        record.add(rows[-1])
        print(f"{name}: {rows[-1].seconds:.1f} s", flush=True)
    rich.console.Console(width=110).print(table_of(rows))
    sys.exit(0 if all(row.kept for row in rows) else 1)


if __name__ == "__main__":
    app.run(main)
