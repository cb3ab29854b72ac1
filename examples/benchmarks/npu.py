"""Measures what fewer weight bits save on an NPU: cycles, flash and SRAM of ResNet-8, as Vela says.

    python examples/benchmarks/npu.py --output=npu.json

The bits are mixed around each mean, not learned. The last rows are files whose bits a budget chose that
Vela measured, half-way between the costs at 2 and at 8 bits.
"""

import dataclasses

import networks
import rich.table
from absl import app, flags, logging
from recorded_rows import RecordedRows

import dqmq_tf
from dqmq_tf.runtimes import vela

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_ACCELERATORS = ("ethos-u55-128", "ethos-u55-256", "ethos-u85-256")
_COSTS = {"vela_cycles": "cycles", "vela_flash_bytes": "flash_bytes"}


@dataclasses.dataclass(frozen=True)
class Row:
    """What Vela says of one file.

    Attributes:
        accelerator: Vela's name of the NPU.
        asked: The setting, such as `"mean 4 bits"`.
        mean_bits: Mean weight bit-width.
        cycles, flash_bytes, sram_bytes: See `dqmq_tf.runtimes.vela_report.VelaReport`.
    """

    accelerator: str
    asked: str
    mean_bits: float
    cycles: int
    flash_bytes: int
    sram_bytes: int


def row_of(accelerator, asked, contents, report):
    """Returns the `Row` of a file."""
    found = vela.compile_file(contents, accelerator)[1]
    bits = round(networks.mean_bits(report), 3)
    return Row(accelerator, asked, bits, found.cycles, found.flash_bytes, found.sram_bytes)


def by_bits(model):
    """Yields the rows of files with given mean bit-widths."""
    for mean in range(8, 1, -1):
        bits = networks.mixed_bits(model, mean)
        contents, report = networks.converted(model, "ethos_u", bits=bits, verify=False)
        for accelerator in _ACCELERATORS:
            yield row_of(accelerator, f"mean {mean} bits", contents, report)


def by_budget(model, rows):
    """Yields the rows of files whose bits were chosen by a budget that Vela measures."""
    of_default = [row for row in rows if row.accelerator == _ACCELERATORS[0]]
    for kind, attribute in _COSTS.items():
        most, least = (getattr(of_default[i], attribute) for i in (0, -1))
        budget = dqmq_tf.Budget(**{kind: (most + least) // 2})
        contents, report = networks.converted(model, "ethos_u", budget=budget, verify=False)
        yield row_of(_ACCELERATORS[0], f"{kind} {budget.value:,}", contents, report)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    logging.set_verbosity(logging.ERROR)
    rows = list(by_bits(networks.resnet8()))
    rows.extend(by_budget(networks.resnet8(), rows))
    record = RecordedRows(_OUTPUT.value, "accelerator", "asked")
    for row in rows:
        record.add(row)
    table = rich.table.Table(title="ResNet-8, 77,360 weights", title_justify="left")
    for name in ("NPU", "asked", "mean bits", "cycles", "flash", "SRAM"):
        table.add_column(name, justify="left" if name in ("NPU", "asked") else "right")
    for row in sorted(rows, key=lambda row: row.accelerator):
        costs = (row.cycles, row.flash_bytes, row.sram_bytes)
        table.add_row(
            row.accelerator, row.asked, f"{row.mean_bits:.2f}", *(f"{n:,}" for n in costs)
        )
    rich.console.Console(width=110).print(table)


if __name__ == "__main__":
    app.run(main)
