"""Measures the size of ResNet-8's files: what fewer bits save, and whether budgets are met.

    python examples/benchmarks/size.py --output=size.json

The bits are mixed around each mean, not learned. Each file is compared with the file for the same target
at 8 bits, which this package also wrote. The int8 file that litert-quantizer writes by itself is larger
and shown as well.

The benchmark compresses each file with two encoders for deflate: zlib at level 9, and Zopfli with its
default settings, which `zipalign -z` of the Android SDK uses (`pip install "dqmq_tf[benchmark]"`). Any
decoder for deflate reads both. Only Zopfli meets the bound on `android`: at 4 bits zlib spends an eighth
of its stream on matches that cost more than the bytes they replace. Even the weights alone, with 4 bits
everywhere, take 55.4 % of the size at 8 bits with zlib.
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
# (target, setting): the size that is compared, and its largest share of the 8-bit file.
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
    """Sizes of one file.

    Attributes:
        target: Deployment target.
        asked: The setting, such as `"mean 4 bits"`.
        mean_bits: Mean weight bit-width.
        size_bytes: Size of the file.
        download_bytes: Size after deflate by zlib at level 9.
        zopfli_bytes: Size after deflate by Zopfli.
        vela_bytes: Size of the file compiled by Vela; None if Vela did not run.
        unit: Name of the size that `share` compares.
        share: That size divided by the same size of the 8-bit file, or by the budget.
        deflated_share: `download_bytes` divided by those of the 8-bit file; None with a budget.
        bound: Largest share that is allowed; None if there is no bound.
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
    """Returns the sizes and the mean bit-width of a file, named as in `Row`."""
    contents, report = networks.converted(model, target, **how)
    return {
        "mean_bits": round(networks.mean_bits(report), 3),
        "size_bytes": report.size_bytes,
        "download_bytes": report.download_bytes,
        "zopfli_bytes": len(zopfli.zlib.compress(contents)),
        "vela_bytes": None if report.vela is None else report.vela.size_bytes,
    }


def by_bits(model, target):
    """Yields a `Row` for each mean bit-width, from 8 down, and one for uniform bits."""
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
    """Returns the `Row` of a file whose bits were chosen by a budget."""
    sizes = measured(model, target, budget=dqmq_tf.Budget(**{kind: _BUDGET}))
    unit = {"size_bytes": "size_bytes", "download_bytes": "download_bytes"}[kind]
    asked = f"{kind} {_BUDGET:,}"
    share = sizes[unit] / _BUDGET
    return Row(target, asked, **sizes, unit=unit, share=share, deflated_share=None, bound=1.0)


def table_of(rows):
    """Returns the rows as a table."""
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
            "other_int8": other,
            "vela": "run" if vela.program() else "not installed",
        }
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(record, indent=2) + "\n")
    console = rich.console.Console(width=132)
    console.print(table_of(rows))
    console.print(
        f"int8 by litert-quantizer alone: {other['size_bytes']:,} bytes, "
        f"{other['download_bytes']:,} by zlib, {other['zopfli_bytes']:,} by Zopfli"
    )
    sys.exit(0 if all(row.kept for row in rows) else 1)


if __name__ == "__main__":
    app.run(main)
