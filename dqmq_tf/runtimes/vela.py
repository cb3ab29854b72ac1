"""Vela, Arm's compiler for Ethos-U: what the NPU makes of a file."""

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
from dqmq_tf.flatbuffer import ModelT, TFLiteFile

_LIMIT_SECONDS = 600
_KIBIBYTE = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class VelaReport:
    """What Vela reports about a compiled file.

    Attributes:
        version: Version of Vela.
        accelerator: Configuration that it compiled for, such as `"ethos-u55-128"`.
        size_bytes: Size of the compiled `.tflite` file.
        weight_bytes: Size of the weights as Vela encodes them.
        flash_bytes: Flash that the NPU reads, by Vela's count.
        sram_bytes: SRAM that the NPU uses, by Vela's count.
        npu_operators: Number of operators that run on the NPU.
        cpu_operators: Number of operators that run on the CPU.
    """

    version: str
    accelerator: str
    size_bytes: int
    weight_bytes: int
    flash_bytes: int
    sram_bytes: int
    npu_operators: int
    cpu_operators: int


def program() -> str | None:
    """Returns the path of the `vela` program, or None if `ethos-u-vela` is not installed."""
    beside_python = shutil.which("vela", path=str(pathlib.Path(sys.executable).parent))
    return beside_python or shutil.which("vela")


def compile_file(
    contents: bytes | TFLiteFile, accelerator: str = "ethos-u55-128"
) -> tuple[bytes, VelaReport]:
    """Compiles a file with Vela.

    Args:
        contents: Contents of an int8 `.tflite` file, or a `TFLiteFile`.
        accelerator: Vela's name of the NPU.

    Returns:
        `(contents of the compiled file, VelaReport)`.

    Raises:
        ImportError: If `ethos-u-vela` is not installed.
        ConversionError: If Vela fails, or the file holds what Vela crashes on or does not support,
            see `check_vela_can_compile`.
    """
    file = TFLiteFile.of(contents)
    check_vela_can_compile(file.model)
    vela = program()
    if vela is None:
        raise ImportError("Compiling for Ethos-U needs Vela: pip install ethos-u-vela")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "model.tflite").write_bytes(file.contents)
        output = _call(
            vela,
            str(folder / "model.tflite"),
            f"--output-dir={folder}",
            f"--accelerator-config={accelerator}",
        )
        compiled = (folder / "model_vela.tflite").read_bytes()
        with open(next(folder.glob("model_summary_*.csv")), newline="") as summary:
            (row,) = csv.DictReader(summary)
    flash = float(row["off_chip_flash_memory_used"]) + float(row["on_chip_flash_memory_used"])
    report = VelaReport(
        version=_call(vela, "--version").strip(),
        accelerator=accelerator,
        size_bytes=len(compiled),
        weight_bytes=int(float(row["total_npu_encoded_weights"])),
        flash_bytes=round(_KIBIBYTE * flash),
        sram_bytes=round(_KIBIBYTE * float(row["sram_memory_used"])),
        npu_operators=_operator_count(output, "NPU"),
        cpu_operators=_operator_count(output, "CPU"),
    )
    return compiled, report


def check_vela_can_compile(model: ModelT) -> None:
    """Refuses files that Vela crashes on, or does not support.

    Args:
        model: The `ModelT` of a file.

    Raises:
        ConversionError: If the file holds INT4 or INT2 weights, lookup tables, or several
            subgraphs.
    """
    if len(model.subgraphs) != 1:
        raise ConversionError(
            f"The file has {len(model.subgraphs)} subgraphs, but Vela compiles one network. Compile "
            "the file of one profile."
        )
    for tensor in model.subgraphs[0].tensors:
        if flatbuffer.type_name(tensor) in ("INT4", "INT2"):
            raise ConversionError(
                f"{flatbuffer.text(tensor.name)!r} is {flatbuffer.type_name(tensor)}, which crashes "
                "Vela. Quantize the model for target 'ethos_u': it keeps fewer bits in INT8 "
                "containers, which Vela then compresses."
            )
    if any(code.customCode for code in model.operatorCodes):
        raise ConversionError(
            "The file holds operators that only TFLite Micro has, such as lookup tables. Quantize "
            "the model for target 'ethos_u'."
        )


def _operator_count(output: str, processor: str) -> int:
    """Returns how many operators Vela placed on the NPU or the CPU, from what it printed."""
    match = re.search(rf"{processor} operators = (\d+)", output)
    if match is None:
        raise ConversionError(
            f"Vela did not print how many operators run on the {processor}. Please report its "
            "version."
        )
    return int(match.group(1))


def _call(vela: str, *arguments: str) -> str:
    """Runs Vela and returns what it printed.

    Raises:
        ConversionError: If it fails, or does not finish in time.
    """
    try:
        done = subprocess.run(
            [vela, *arguments], capture_output=True, text=True, timeout=_LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ConversionError(f"Vela did not finish within {_LIMIT_SECONDS} seconds.") from error
    if done.returncode:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"code {done.returncode}"
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise ConversionError(f"Vela ended with {ended}: {' / '.join(lines) or 'no message'}")
    return done.stdout
