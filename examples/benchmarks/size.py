"""Bytes of ResNet-8's files: what fewer bits buy on each target, and whether budgets are met.

    python examples/benchmarks/size.py --output=size.json

The bits are mixed around each mean, not learned. A file is compared with the one of the same target
at 8 bits, which this converter made; ai-edge-quantizer's own int8 file is larger, and shown beside.

Two encoders of deflate stand side by side, whose streams every inflate reads: zlib at level 9, and
Zopfli at its defaults, as `zipalign -z` of the Android SDK has it (`pip install "dqmq_tf[benchmark]"`).
The bound on `android` is kept by Zopfli only: at 4 bits an eighth of zlib's stream is spent on matches
that cost more than the bytes they stand for. Even of the weights alone, 4 bits everywhere, it makes 55.4 %
of those of 8 bits.
"""

import dataclasses
import json
import pathlib
import sys

import networks
import rich.table
import zopfli.zlib
from absl import app, flags, logging

import dqmq_tf
from dqmq_tf.flatbuffer import file_size
from dqmq_tf.runtimes import vela

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_BUDGET = 50_000
_UNIFORM = "4 bits everywhere"
# (target, what is asked for): what is compared and the largest share of the 8-bit file.
_BOUNDS = {
    ("android", "mean 4 bits"): ("zopfli_bytes", 0.55),
    ("android", _UNIFORM): ("zopfli_bytes", 0.55),
    ("microcontroller", "mean 3 bits"): ("size_bytes", 0.57),
    ("microcontroller", "mean 5 bits"): ("size_bytes", 0.78),
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
        size_bytes, deflated_bytes: Size of the file, and under deflate by zlib at level 9.
        zopfli_bytes: Size under deflate by Zopfli.
        vela_bytes: Size of what Vela made of it; None where it was not run.
        unit: Which of the sizes the share is of.
        share: Of the bytes of the 8-bit file, or of the budget.
        deflated_share: Of `deflated_bytes` of the 8-bit file; None where a budget was given.
        bound: Largest share; None where none is set.
    """

    target: str
    asked: str
    mean_bits: float
    size_bytes: int
    download_bytes: int
    zopfli_bytes: int
    vela_bytes: int | None
    unit: str
    share: float
    deflated_share: float | None
    bound: float | None

    @property
    def kept(self):
        return self.bound is None or self.share <= self.bound


def measured(model, target, **how):
    """Returns the sizes of a file by their names in `Row`, and its mean bits."""
    contents, report = networks.converted(model, target, **how)
    return {
        "mean_bits": round(networks.mean_bits(report), 3),
        "size_bytes": report.size_bytes,
        "download_bytes": report.download_bytes,
        "zopfli_bytes": len(zopfli.zlib.compress(contents)),
        "vela_bytes": None if report.vela is None else report.vela.size_bytes,
    }


def by_bits(model, target):
    """Yields a row for each mean number of bits, the first for 8, and one without a mixture."""
    unit = "size_bytes" if dqmq_tf.targets.get(target).size_varies else "zopfli_bytes"
    files = {f"mean {mean} bits": networks.mixed_bits(model, mean) for mean in range(8, 1, -1)}
    files[_UNIFORM] = dict.fromkeys(networks.kernels(model), 4)
    whole = None
    for asked, bits in files.items():
        sizes = measured(model, target, bits=bits)
        whole = whole or sizes
        compared, bound = _BOUNDS.get((target, asked), (unit, None))
        yield Row(
            target,
            asked,
            **sizes,
            unit=compared,
            share=round(sizes[compared] / whole[compared], 4),
            deflated_share=round(sizes["download_bytes"] / whole["download_bytes"], 4),
            bound=bound,
        )


def by_budget(model, target, kind):
    """Returns the row of a file that a budget was given for."""
    sizes = measured(model, target, budget=dqmq_tf.Budget(**{kind: _BUDGET}))
    unit = {"size_bytes": "size_bytes", "download_bytes": "download_bytes"}[kind]
    asked = f"{kind} {_BUDGET:,}"
    share = sizes[unit] / _BUDGET
    return Row(target, asked, **sizes, unit=unit, share=share, deflated_share=None, bound=1.0)


def table_of(rows):
    """Returns a table of rows."""
    table = rich.table.Table(title="ResNet-8, 77,360 weights", title_justify="left")
    names = (
        "target",
        "asked",
        "mean bits",
        "bytes",
        "zlib",
        "share",
        "Zopfli",
        "Vela",
        "compared",
        "bound",
    )
    for name in names:
        table.add_column(name, justify="left" if name in ("target", "asked") else "right")
    for row in rows:
        table.add_row(
            row.target,
            row.asked,
            f"{row.mean_bits:.2f}",
            f"{row.size_bytes:,}",
            f"{row.download_bytes:,}",
            "" if row.deflated_share is None else f"{100 * row.deflated_share:.1f} %",
            f"{row.zopfli_bytes:,}",
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
        print(f"{target}: {rows[-1].asked} {rows[-1].size_bytes:,} bytes", flush=True)
    for target, kind in _BUDGETS:
        rows.append(by_budget(networks.resnet8(), target, kind))
    reference = networks.int8_by_quantizer(networks.resnet8())
    other = {
        "size_bytes": len(reference),
        "download_bytes": file_size.deflated_bytes(reference),
        "zopfli_bytes": len(zopfli.zlib.compress(reference)),
    }
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
        f"int8 by ai-edge-quantizer alone: {other['size_bytes']:,} bytes, "
        f"{other['deflated_bytes']:,} by zlib, {other['zopfli_bytes']:,} by Zopfli"
    )
    sys.exit(0 if all(row.kept for row in rows) else 1)


if __name__ == "__main__":
    app.run(main)
