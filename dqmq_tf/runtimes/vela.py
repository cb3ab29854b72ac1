"""Vela, Arm's compiler for Ethos-U: what becomes of a file on that NPU."""

import csv
import dataclasses
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import TFLiteFile

_LIMIT_SECONDS = 600
_KIBIBYTE = 1024
_NPU = re.compile(r"NPU operators = (\d+)")
_CPU = re.compile(r"CPU operators = (\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VelaReport:
    """What Vela made of a file.

    Attributes:
        version: Version of Vela.
        accelerator: Configuration it compiled for, such as `"ethos-u55-128"`.
        size_bytes: Size of the compiled `.tflite` file.
        weight_bytes: Bytes of the weights as its own coder holds them.
        flash_bytes: Flash that the NPU reads, by its own count.
        sram_bytes: SRAM that the NPU uses, by its own count.
        npu_operators, cpu_operators: How many operators run where.
    """

    version: str
    accelerator: str
    size_bytes: int
    weight_bytes: int
    flash_bytes: int
    sram_bytes: int
    npu_operators: int
    cpu_operators: int


def program():
    """Path of the `vela` program, or None where `ethos-u-vela` is not installed."""
    beside = shutil.which("vela", path=str(pathlib.Path(sys.executable).parent))
    return beside or shutil.which("vela")


def compile_file(contents, accelerator="ethos-u55-128"):
    """Compiles a file with Vela.

    Args:
        contents: Contents of an int8 `.tflite` file, or a `TFLiteFile`.
        accelerator: Vela's name of the NPU.

    Returns:
        `(contents of the compiled file, VelaReport)`.

    Raises:
        ImportError: If `ethos-u-vela` is not installed.
        ConversionError: If the file holds INT4 or INT2 weights or lookup tables, which kill Vela
            or are not for it, or if Vela fails.
    """
    file = TFLiteFile.of(contents)
    check_vela_can_compile(file.model)
    if program() is None:
        raise ImportError("Compiling for Ethos-U needs Vela: pip install ethos-u-vela")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "model.tflite").write_bytes(file.contents)
        said = _call(
            str(folder / "model.tflite"),
            f"--output-dir={folder}",
            f"--accelerator-config={accelerator}",
        )
        compiled = (folder / "model_vela.tflite").read_bytes()
        with open(next(folder.glob("model_summary_*.csv")), newline="") as summary:
            (row,) = csv.DictReader(summary)
    flash = float(row["off_chip_flash_memory_used"]) + float(row["on_chip_flash_memory_used"])
    report = VelaReport(
        version=_call("--version").strip(),
        accelerator=accelerator,
        size_bytes=len(compiled),
        weight_bytes=int(float(row["total_npu_encoded_weights"])),
        flash_bytes=round(_KIBIBYTE * flash),
        sram_bytes=round(_KIBIBYTE * float(row["sram_memory_used"])),
        npu_operators=int(_NPU.search(said).group(1)),
        cpu_operators=int(_CPU.search(said).group(1)),
    )
    return compiled, report


def check_vela_can_compile(model):
    """Refuses what Vela does not survive.

    Args:
        model: `ModelT` of a file.

    Raises:
        ConversionError: If the file holds INT4 or INT2 weights, lookup tables, or several
            subgraphs.
    """
    if len(model.subgraphs) != 1:
        raise ConversionError(
            f"The file has {len(model.subgraphs)} subgraphs; Vela is for one network. Give it the "
            "file of one profile."
        )
    for tensor in model.subgraphs[0].tensors:
        if flatbuffer.type_name(tensor) in ("INT4", "INT2"):
            raise ConversionError(
                f"{flatbuffer.text(tensor.name)!r} is {flatbuffer.type_name(tensor)}, which kills "
                "Vela. Quantize the model for target 'ethos_u': it keeps fewer bits in INT8 "
                "containers, and Vela codes them in fewer bytes."
            )
    if any(code.customCode for code in model.operatorCodes):
        raise ConversionError(
            "The file holds operators that are TFLite Micro's own, such as lookup tables. Quantize "
            "the model for target 'ethos_u'."
        )


def _call(*arguments):
    try:
        done = subprocess.run(
            [program(), *arguments], capture_output=True, text=True, timeout=_LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ConversionError(f"Vela did not finish within {_LIMIT_SECONDS} seconds.") from error
    if done.returncode:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"{done.returncode}"
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise ConversionError(f"Vela ended with {ended}: {' / '.join(said) or 'it said nothing'}")
    return done.stdout
