"""Bytes of ResNet-8's files: what fewer bits buy on each target, and whether budgets are met.

    python examples/benchmarks/size.py --output=size.json

The bits are mixed around each mean, not learned. A file is compared with the one of the same target
at 8 bits, which this converter made; ai-edge-quantizer's own int8 file is larger, and shown beside.

"deflated" is zlib at level 9, "searched" deflate by an encoder that looks for the smallest stream, as
Zopfli does (`dqmq_tf.export.size.searched_deflate`). The bound on `android` is kept by the second only:
at 4 bits zlib spends a seventh of its stream on matches that cost more than the bytes they stand for.
"""

import dataclasses
import json
import pathlib
import sys

import networks
import rich.console
import rich.table
from absl import app, flags, logging

import dqmq_tf
from dqmq_tf.export import size, vela

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_BUDGET = 50_000
# (target, mean bits): what is compared and the largest share of the 8-bit file.
_BOUNDS = {
    ("android", 4): ("searched_bytes", 0.55),
    ("microcontroller", 3): ("total_bytes", 0.57),
    ("microcontroller", 5): ("total_bytes", 0.78),
}
_BUDGETS = (
    ("microcontroller", "size_bytes"),
    ("android_small", "size_bytes"),
    ("android", "download_bytes"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A file.

    Attributes:
        target: Deployment target.
        asked: What was asked for, such as `"mean 4 bits"`.
        mean_bits: Mean bits of a weight.
        total_bytes, deflated_bytes: Size of the file, and under deflate by zlib at level 9.
        searched_bytes: Size under deflate by an encoder that searches.
        vela_bytes: Size of what Vela made of it; None where it was not run.
        unit: Which of the sizes the share is of.
        share: Of the bytes of the 8-bit file, or of the budget.
        bound: Largest share; None where none is set.
    """

    target: str
    asked: str
    mean_bits: float
    total_bytes: int
    deflated_bytes: int
    searched_bytes: int
    vela_bytes: int | None
    unit: str
    share: float
    bound: float | None

    @property
    def kept(self):
        return self.bound is None or self.share <= self.bound


def measured(model, target, **how):
    """Returns the sizes of a file by their names in `Row`, and its mean bits."""
    contents, report = networks.converted(model, target, **how)
    return {
        "mean_bits": round(networks.mean_bits(report), 3),
        "total_bytes": report.total_bytes,
        "deflated_bytes": report.deflated_bytes,
        "searched_bytes": len(size.searched_deflate(contents)),
        "vela_bytes": None if report.vela is None else report.vela.total_bytes,
    }


def by_bits(model, target):
    """Yields a row for each mean number of bits."""
    varies, whole = dqmq_tf.targets.get(target).size_varies, None
    for mean in (8, 7, 6, 5, 4, 3, 2):
        sizes = measured(model, target, bits=networks.mixed_bits(model, mean))
        whole = whole or sizes
        unit = "total_bytes" if varies else "searched_bytes"
        unit, bound = _BOUNDS.get((target, mean), (unit, None))
        share = round(sizes[unit] / whole[unit], 4)
        yield Row(target, f"mean {mean} bits", **sizes, unit=unit, share=share, bound=bound)


def by_budget(model, target, kind):
    """Returns the row of a file that a budget was given for."""
    sizes = measured(model, target, budget=dqmq_tf.Budget(**{kind: _BUDGET}))
    unit = {"size_bytes": "total_bytes", "download_bytes": "deflated_bytes"}[kind]
    asked = f"{kind} {_BUDGET:,}"
    return Row(target, asked, **sizes, unit=unit, share=sizes[unit] / _BUDGET, bound=1.0)


def table_of(rows):
    """Returns a table of rows."""
    table = rich.table.Table(title="ResNet-8, 77,360 weights", title_justify="left")
    names = (
        "target",
        "asked",
        "mean bits",
        "bytes",
        "deflated",
        "searched",
        "Vela",
        "share",
        "bound",
    )
    for name in names:
        table.add_column(name, justify="left" if name in ("target", "asked") else "right")
    for row in rows:
        table.add_row(
            row.target,
            row.asked,
            f"{row.mean_bits:.2f}",
            f"{row.total_bytes:,}",
            f"{row.deflated_bytes:,}",
            f"{row.searched_bytes:,}",
            "" if row.vela_bytes is None else f"{row.vela_bytes:,}",
            f"{100 * row.share:.1f} % {row.unit.split('_')[0]}",
            ""
            if row.bound is None
            else f"{100 * row.bound:.0f} % {'kept' if row.kept else 'MISSED'}",
        )
    return table


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    logging.set_verbosity(logging.ERROR)
    rows = []
    for target in ("android", "android_small", "microcontroller", "ethos_u"):
        rows.extend(by_bits(networks.resnet8(), target))
        print(f"{target}: {rows[-1].asked} {rows[-1].total_bytes:,} bytes", flush=True)
    for target, kind in _BUDGETS:
        rows.append(by_budget(networks.resnet8(), target, kind))
    reference = networks.int8_by_quantizer(networks.resnet8())
    other = {"total_bytes": len(reference), "deflated_bytes": size.deflated_bytes(reference)}
    if _OUTPUT.value:
        record = {
            "files": [dataclasses.asdict(row) for row in rows],
            "ai_edge_quantizer_int8": other,
            "vela": "run" if vela.program() else "not installed",
        }
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(record, indent=2) + "\n")
    console = rich.console.Console(width=132)
    console.print(table_of(rows))
    console.print(
        f"int8 by ai-edge-quantizer alone: {other['total_bytes']:,} bytes, "
        f"{other['deflated_bytes']:,} deflated"
    )
    sys.exit(0 if all(row.kept for row in rows) else 1)


if __name__ == "__main__":
    app.run(main)
