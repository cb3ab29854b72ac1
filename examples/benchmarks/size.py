"""Measures the size of ResNet-8's files: what fewer bits save, and whether budgets are met.

    python examples/benchmarks/size.py --output=size.json

The bits are mixed around each mean, not learned. Each file is compared with the file for the same target
at 8 bits, which this package also wrote. The int8 file that litert-quantizer writes by itself is larger
and shown as well.

The benchmark compresses each file with two encoders for deflate: zlib at level 9, and Zopfli with its
default settings, which `zipalign -z` of the Android SDK uses (`pip install ".[benchmark]"`). Any
decoder for deflate reads both. Only Zopfli meets the bound on `android`: at 4 bits zlib spends an eighth
of its stream on matches that cost more than the bytes they replace. Even the weights alone, with 4 bits
everywhere, take 55.4 % of the size at 8 bits with zlib.

    python examples/benchmarks/size.py --decoder --output=decoder.json

shows only what the decoder of TFLite Micro saves and costs on `microcontroller`: the bytes of the file
and of the firmware, and the time of TFLite Micro's reference kernels on this machine, without the
decoder, with lookup tables, and with Huffman codes where these are smaller.
"""

import dataclasses
import json
import pathlib
import statistics
import sys
import time

import networks
import numpy as np
import rich.table
import zopfli.zlib
from absl import app, flags, logging

import dqmq_tf
from dqmq_tf.flatbuffer import file_size
from dqmq_tf.runtimes import vela

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")
_DECODER = flags.DEFINE_bool("decoder", False, "Compare the ways to decode weights, nothing else.")

_BUDGET = 50_000
_UNIFORM = "4 bits everywhere"
# (target, setting): the size that is compared, and its largest share of the 8-bit file.
_BOUNDS = {
    ("android", "mean 4 bits"): ("zopfli_bytes", 0.55),
    ("android", _UNIFORM): ("zopfli_bytes", 0.55),
    ("microcontroller", "mean 3 bits"): ("firmware_bytes", 0.57),
    ("microcontroller", "mean 5 bits"): ("firmware_bytes", 0.78),
}
# The largest size of a file with Huffman codes, as a share of the file with lookup tables alone.
_DECODER_BOUNDS = {3: 0.90}
# Inferences whose median time is reported, in turns of the files that are compared.
_TIMED_TURNS = 15
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
        firmware_bytes: Size of the file, and of the decoder if it uses one.
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
    firmware_bytes: int
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
        "firmware_bytes": report.firmware_bytes,
        "download_bytes": report.download_bytes,
        "zopfli_bytes": len(zopfli.zlib.compress(contents)),
        "vela_bytes": None if report.vela is None else report.vela.size_bytes,
    }


def by_bits(model, target):
    """Yields a `Row` for each mean bit-width, from 8 down, and one for uniform bits."""
    unit = "firmware_bytes" if dqmq_tf.targets.get(target).size_varies else "zopfli_bytes"
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
    unit = {"size_bytes": "firmware_bytes", "download_bytes": "download_bytes"}[kind]
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
        "flash",
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
            f"{row.firmware_bytes:,}",
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


def decoder_rows(means=(2, 3, 4)):
    """Returns a dictionary for each mean bit-width and way to store weights on `microcontroller`."""
    target, rows = dqmq_tf.targets.get("microcontroller"), []
    ways = {
        "INT4 and INT8": dataclasses.replace(target, decoder_bytes=10**9),
        "tables": dataclasses.replace(target, decoder_bytes=0, codings=("table",)),
        "tables and Huffman codes": dataclasses.replace(target, decoder_bytes=0),
    }
    model = networks.resnet8()
    for mean in means:
        bits = networks.mixed_bits(model, mean)
        files, of_mean = [], []
        for stored, way in ways.items():
            contents, report = networks.converted(model, way, bits=bits, verify=False)
            uses = any(row.coding for row in report.weights)
            files.append(contents)
            of_mean.append(
                {
                    "mean_bits": round(networks.mean_bits(report), 3),
                    "stored": stored,
                    "size_bytes": report.size_bytes,
                    "decoder_bytes": target.decoder_bytes if uses else 0,
                    "firmware_bytes": report.size_bytes + uses * target.decoder_bytes,
                    "codings": [row.coding for row in report.weights],
                }
            )
        for row, milliseconds in zip(of_mean, tflm_milliseconds(files)):
            row["tflm_ms"] = round(milliseconds, 3)
        share = of_mean[2]["size_bytes"] / of_mean[1]["size_bytes"]
        of_mean[2] |= {"share_of_tables": round(share, 4), "bound": _DECODER_BOUNDS.get(mean)}
        rows += of_mean
    return rows


def tflm_milliseconds(files):
    """Returns the median times of files in TFLite Micro, which take turns."""
    from tflite_micro.python.tflite_micro import runtime

    interpreters = [runtime.Interpreter.from_bytes(data, arena_size=500_000) for data in files]
    shape = interpreters[0].get_input_details(0)["shape"]
    image = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    times = [[] for _ in files]
    for _ in range(_TIMED_TURNS):
        for interpreter, of_file in zip(interpreters, times):
            interpreter.set_input(image, 0)
            # The CPU time of this thread does not contain what other programs took.
            started = time.thread_time()
            interpreter.invoke()
            of_file.append(1000 * (time.thread_time() - started))
    return [statistics.median(of_file) for of_file in times]


def decoder_table(rows):
    """Returns the rows of `decoder_rows` as a table."""
    names = ("mean bits", "stored as", "file", "decoder", "firmware", "of tables", "TFLM ms")
    table = rich.table.Table(title="ResNet-8 on a microcontroller", title_justify="left")
    for name in names:
        table.add_column(name, justify="left" if name == "stored as" else "right")
    for row in rows:
        share, bound = row.get("share_of_tables"), row.get("bound")
        kept = "" if bound is None else f", {'kept' if share <= bound else 'MISSED'}: {bound:.0%}"
        table.add_row(
            f"{row['mean_bits']:.2f}",
            row["stored"],
            *(f"{row[name]:,}" for name in ("size_bytes", "decoder_bytes", "firmware_bytes")),
            "" if share is None else f"{share:.1%}{kept}",
            f"{row['tflm_ms']:.2f}",
        )
    return table


def compare_decoders():
    """Prints and writes what the decoder saves and costs, and returns whether all bounds are kept."""
    rows = decoder_rows()
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(rows, indent=2) + "\n")
    rich.console.Console(width=132).print(decoder_table(rows))
    return all(row["share_of_tables"] <= row["bound"] for row in rows if row.get("bound"))


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    logging.set_verbosity(logging.ERROR)
    if _DECODER.value:
        sys.exit(0 if compare_decoders() else 1)
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
