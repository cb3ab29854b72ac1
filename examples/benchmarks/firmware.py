"""Measures what a network takes of a microcontroller's flash, and how many instructions a run takes.

    TFLM_DIR=/path/to/tflite-micro python examples/benchmarks/firmware.py --output=firmware.json

Links `tflite/micro/firmware.cc` for a Cortex-M4 (`-Os`, only the operators that the file uses) with files
that store the same weights, at a mean of 3 bits, in different ways. Runs `tflite/micro/main.cc` with the
same files on the emulated board mps2-an386 and compares the outputs with those of the `tflite-micro`
wheel. `tflite/micro/README.md` says what has to be installed.

The bits are mixed around the mean, not learned. The small network has random weights.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import keras
import networks
import numpy as np
import rich.table
from absl import app, flags, logging

import dqmq_tf
from dqmq_tf import flatbuffer
from dqmq_tf.runtimes import tflite_micro

_TFLM_DIR = flags.DEFINE_string(
    "tflm_dir", os.environ.get("TFLM_DIR"), "Folder of a checkout of TFLite Micro."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_FOLDER = pathlib.Path(__file__).resolve().parents[2] / "tflite" / "micro"
_BOARD = "mps2-an386"
_KERNELS = ("reference", "cmsis_nn")
_MEAN_BITS = 3
_SAMPLES = 2
_INT8 = "INT8"


def storages():
    """Returns `{what a file may store: target}`."""
    chosen = dqmq_tf.targets.get("microcontroller")

    def variant(name, **fields):
        return dataclasses.replace(chosen, name=f"microcontroller_{name}", **fields)

    return {
        _INT8: variant("int8", int4_ops=frozenset(), table_ops=frozenset()),
        "INT4": variant("int4", table_ops=frozenset()),
        "tables": variant("tables", decoder_bytes=0, codings=("table",)),
        "tables, Huffman": variant("decoded", decoder_bytes=0),
        "chosen": chosen,
    }


@dataclasses.dataclass(frozen=True)
class Row:
    """One file in firmware.

    Attributes:
        network: Name of the network.
        weights: Number of its weights.
        storage: Key of `storages`.
        coded: How many weight tensors the operator DECODE decodes.
        kernels: Kernels of TFLite Micro.
        file_bytes: Size of the file.
        flash_bytes: Code and constants of the whole firmware, the file included.
        decoder_bytes: Code that the firmware has and the firmware of the INT8 file has not.
        ram_bytes: Zeroed memory: the tensor arena that the header suggests, and little else.
        instructions: Most instructions that a run took.
        equal: Outputs that are equal to those of the wheel, of `_SAMPLES`.
    """

    network: str
    weights: int
    storage: str
    coded: int
    kernels: str
    file_bytes: int
    flash_bytes: int
    decoder_bytes: int
    ram_bytes: int
    instructions: int
    equal: int


def small_network():
    """Returns a convolutional network of 27,368 weights, which are random."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((32, 32, 3), name="image")
    for filters, strides in ((16, 1), (32, 2), (32, 1), (44, 2)):
        x = keras.layers.Conv2D(
            filters,
            3,
            strides=strides,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
        )(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10, kernel_initializer="he_normal")(x))


def make(*arguments, kernels):
    """Runs the Makefile of `tflite/micro` and returns the completed process."""
    command = ["make", "-s", f"TFLM_DIR={_TFLM_DIR.value}", f"BOARD={_BOARD}", f"KERNELS={kernels}"]
    result = subprocess.run(
        [*command, *map(str, arguments)], cwd=_FOLDER, capture_output=True, text=True
    )
    if result.returncode:
        raise RuntimeError(f"make failed:\n{result.stderr[-2000:]}")
    return result


def measured(folder, samples, kernels):
    """Returns the figures of the file in a folder, named as in `Row`."""
    build = folder / "build"
    for program in ("model", "firmware"):  # Linked anew; the objects fit all kernels.
        (build / program).unlink(missing_ok=True)
    model, inputs = f"MODEL={folder / 'model.cc'}", f"INPUTS={folder / 'inputs.txt'}"
    # The library is up to date: see `main`.
    common = ("-o", "library", f"BUILD={build}", model, inputs)
    sizes = make(*common, "size", kernels=kernels).stdout.splitlines()[1].split()
    ran = make(*common, "run", kernels=kernels)
    counts = re.findall(r"^(\d+) instructions\.$", ran.stderr, re.MULTILINE)
    outputs = np.loadtxt(build / "outputs.txt", dtype=np.float32)
    contents = (folder / "model.tflite").read_bytes()
    (expected,) = tflite_micro.run(contents, [samples]).outputs
    return {
        "file_bytes": len(contents),
        "flash_bytes": int(sizes[0]) + int(sizes[1]),
        "ram_bytes": int(sizes[2]),
        "instructions": max(map(int, counts)),
        "equal": int(np.all(outputs == expected.reshape(_SAMPLES, -1), axis=1).sum()),
    }


def coded_tensors(contents):
    """Returns how many tensors the operators DECODE of a file decode."""
    model = flatbuffer.read(contents)
    decoders = {i for i, c in enumerate(model.operatorCodes) if c.customCode == b"TFLM_DECODE"}
    return sum(
        len(operator.outputs)
        for operator in model.subgraphs[0].operators
        if operator.opcodeIndex in decoders
    )


def rows_of(name, model):
    """Yields a `Row` for each way to store the weights, and each set of kernels."""
    bits = networks.mixed_bits(model, _MEAN_BITS)
    samples = networks.images(model, _SAMPLES, seed=1)
    code_bytes = {}
    for storage, target in storages().items():
        quantized = networks.frozen(model, target, bits)
        with tempfile.TemporaryDirectory() as path:
            folder = pathlib.Path(path)
            dqmq_tf.convert(
                quantized,
                folder / "model.tflite",
                data=networks.images(model),
                artifacts=("c_array",),
            )
            np.savetxt(folder / "inputs.txt", samples.reshape(_SAMPLES, -1), fmt="%.9g")
            coded = coded_tensors((folder / "model.tflite").read_bytes())
            for kernels in _KERNELS:
                figures = measured(folder, samples, kernels)
                code = figures["flash_bytes"] - figures["file_bytes"]
                if storage == _INT8:
                    code_bytes[kernels] = code
                weights = sum(networks.kernels(model).values())
                yield Row(
                    network=name,
                    weights=weights,
                    storage=storage,
                    coded=coded,
                    kernels=kernels,
                    decoder_bytes=code - code_bytes[kernels],
                    **figures,
                )


def table_of(rows):
    """Returns the rows as a table."""
    table = rich.table.Table(
        title=f"Cortex-M4, -Os, weights at a mean of {_MEAN_BITS} bits", title_justify="left"
    )
    words = ("network", "storage", "kernels")
    numbers = ("decoded", "file", "flash", "decoder", "RAM", "instructions", "equal")
    for name in words + numbers:
        table.add_column(name, justify="left" if name in words else "right")
    for row in rows:
        table.add_row(
            row.network,
            row.storage,
            row.kernels,
            str(row.coded),
            f"{row.file_bytes:,}",
            f"{row.flash_bytes:,}",
            f"{row.decoder_bytes:,}",
            f"{row.ram_bytes:,}",
            f"{row.instructions:,}",
            f"{row.equal} of {_SAMPLES}",
        )
    return table


def missed(rows):
    """Returns what is wrong: outputs that differ, or a choice that is not the smallest firmware."""
    wrong = [
        f"{r.network}, {r.storage}, {r.kernels}: {r.equal}" for r in rows if r.equal != _SAMPLES
    ]
    for name in {row.network for row in rows}:
        for kernels in _KERNELS:
            flash = {
                r.storage: r.flash_bytes for r in rows if (r.network, r.kernels) == (name, kernels)
            }
            if flash["chosen"] > min(flash.values()):
                wrong.append(
                    f"{name}, {kernels}: {flash} has a smaller firmware than the chosen one"
                )
    return wrong


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    if not _TFLM_DIR.value:
        raise app.UsageError("Set --tflm_dir or TFLM_DIR to a checkout of TFLite Micro.")
    logging.set_verbosity(logging.ERROR)
    rows = []
    for kernels in _KERNELS:
        # The Makefile reads the header of a network before anything else.
        make("MODEL=none.cc", "library", kernels=kernels)
    for name, model in (("ResNet-8", networks.resnet8()), ("small", small_network())):
        for row in rows_of(name, model):
            rows.append(row)
            print(
                f"{row.network}, {row.storage}, {row.kernels}: {row.flash_bytes:,} bytes",
                flush=True,
            )
    if _OUTPUT.value:
        compiler = subprocess.run(
            [shutil.which("arm-none-eabi-g++"), "--version"], capture_output=True, text=True
        ).stdout.splitlines()[0]
        record = {"compiler": compiler, "files": [dataclasses.asdict(row) for row in rows]}
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(record, indent=2) + "\n")
    rich.console.Console(width=132).print(table_of(rows))
    wrong = missed(rows)
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    app.run(main)
