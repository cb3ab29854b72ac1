"""Vela, Arm's compiler for Ethos-U: what the NPU makes of a file."""

import csv
import functools
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from dqmq_tf import flatbuffer
from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import ModelT, TFLiteFile
from dqmq_tf.runtimes.vela_report import VelaLayer, VelaReport
from dqmq_tf.targets import DEFAULT_ACCELERATOR

_LIMIT_SECONDS = 600
_KIBIBYTE = 1024
# A run takes about a second, and the same file is asked about when bits are chosen, converted and
# verified.
_KEPT_RUNS = 8
# The row of constants that Vela adds itself, such as lookup tables of activations.
_OTHER = "other constants"
# What Vela prints of each tensor that it allocates: times, addresses, size, sum, format and name.
_ALLOCATED = re.compile(r"^ *\d+ - +\d+: +0x\w+ - +0x\w+: +(\d+): +\d+: \w+ *: (.*)$", re.MULTILINE)


def program() -> str | None:
    """Returns the path of the `vela` program, or None if `ethos-u-vela` is not installed."""
    beside_python = shutil.which("vela", path=str(pathlib.Path(sys.executable).parent))
    return beside_python or shutil.which("vela")


def require(purpose: str) -> str:
    """Returns the path of the `vela` program.

    Args:
        purpose: What needs it, for the message, such as `"Budget vela_cycles"`.

    Raises:
        ImportError: If `ethos-u-vela` is not installed.
    """
    path = program()
    if path is None:
        raise ImportError(f"{purpose} needs Vela, which is not installed: pip install ethos-u-vela")
    return path


def compile_file(
    contents: bytes | TFLiteFile, accelerator: str = DEFAULT_ACCELERATOR
) -> tuple[bytes, VelaReport]:
    """Compiles a file with Vela.

    Args:
        contents: Contents of an int8 `.tflite` file, or a `TFLiteFile`.
        accelerator: Vela's name of the NPU, one of `dqmq_tf.targets.ACCELERATORS`.

    Returns:
        `(contents of the compiled file, VelaReport)`.

    Raises:
        ImportError: If `ethos-u-vela` is not installed.
        ConversionError: If Vela fails, or the file holds what Vela crashes on or does not support,
            see `check_vela_can_compile`.
    """
    file = TFLiteFile.of(contents)
    check_vela_can_compile(file.model)
    vela = require("Compiling for Ethos-U")
    compiled, output, summary, operators = _compiled(vela, file.contents, accelerator)
    constants = _constants(output)
    report = VelaReport(
        version=_version(vela),
        accelerator=accelerator,
        size_bytes=len(compiled),
        weight_bytes=int(float(summary["total_npu_encoded_weights"])),
        flash_bytes=sum(constants.values()),
        sram_bytes=round(_KIBIBYTE * float(summary["sram_memory_used"])),
        cycles=round(float(summary["cycles_total"])),
        npu_operators=_operator_count(output, "NPU"),
        cpu_operators=_operator_count(output, "CPU"),
        layers=_layers(operators, constants, file.model),
    )
    return compiled, report


def readers(model: ModelT) -> dict[str, str]:
    """Returns the names by which Vela reports the layers of a file.

    Args:
        model: The `ModelT` of a file of one network.

    Returns:
        `{name of a tensor: name of the tensor that the first operator which reads it computes}`.
    """
    graph, found = model.subgraphs[0], dict[str, str]()
    for operator in graph.operators:
        for index in operator.inputs:
            if index >= 0:
                name = flatbuffer.text(graph.tensors[index].name)
                found.setdefault(name, flatbuffer.text(graph.tensors[operator.outputs[0]].name))
    return found


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


@functools.lru_cache(maxsize=_KEPT_RUNS)
def _compiled(
    vela: str, contents: bytes, accelerator: str
) -> tuple[bytes, str, dict[str, str], list[dict[str, str]]]:
    """Runs Vela on the contents of a file.

    Returns:
        `(contents of the compiled file, what Vela printed, row of its summary, rows of operators)`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "model.tflite").write_bytes(contents)
        output = _call(
            vela,
            str(folder / "model.tflite"),
            f"--output-dir={folder}",
            f"--accelerator-config={accelerator}",
            "--verbose-performance",
            "--verbose-allocation",
        )
        compiled = (folder / "model_vela.tflite").read_bytes()
        (summary,) = _rows(next(folder.glob("model_summary_*.csv")))
        operators = _rows(folder / "model_per-layer.csv")
    return compiled, output, summary, operators


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
    """Returns the rows of a table that Vela wrote."""
    with open(path, newline="") as table:
        return list(csv.DictReader(table))


def _constants(output: str) -> dict[str, int]:
    """Returns `{name of a constant: bytes as Vela encodes it}`, from what Vela printed."""
    constants: dict[str, int] = {}
    # Each part of a network that operators of the CPU divide has its own allocation.
    for allocation in output.split("Tensor Allocation for read-only NPU tensors:")[1:]:
        allocation, _, peak = allocation.partition("Allocation Peak Tensor Size: ")
        allocated = _ALLOCATED.findall(allocation)
        if not allocated and not peak.startswith("0 bytes"):
            raise ConversionError(
                "Vela did not print the bytes of its constants in the known form. Please report its "
                "version."
            )
        for size, name in allocated:
            constants[name.strip()] = constants.get(name.strip(), 0) + int(size)
    return constants


def _layers(
    operators: list[dict[str, str]], constants: Mapping[str, int], model: ModelT
) -> tuple[VelaLayer, ...]:
    """Returns a `VelaLayer` for each tensor that the file computes.

    Vela splits operators of the file, and lists fused activations separately.

    Args:
        operators: The rows of Vela's table of operators.
        constants: `{name of a constant: bytes}`.
        model: The `ModelT` of the file.
    """
    graph, reader = model.subgraphs[0], readers(model)
    in_file = {
        flatbuffer.text(graph.tensors[operator.outputs[0]].name): flatbuffer.operator_name(
            model, operator
        )
        for operator in graph.operators
    }
    flash: dict[str, int] = {}
    for constant, size in constants.items():
        name = reader.get(constant, _OTHER)
        flash[name] = flash.get(name, 0) + size
    grouped: dict[str, list[dict[str, str]]] = {}
    for row in operators:
        grouped.setdefault(_name_in_file(row["Name"], in_file, reader), []).append(row)
    layers = []
    for name, rows in grouped.items():
        is_on_npu = any(row["Target"] == "NPU" for row in rows)
        # For the CPU, Vela only says that it passes the operator through.
        kinds = [row["NNG Operator"] for row in rows] if is_on_npu else [in_file.get(name, "")]
        layers.append(
            VelaLayer(
                name=name,
                operators=", ".join(dict.fromkeys(kinds)),
                processor="NPU" if is_on_npu else "CPU",
                cycles=sum(round(float(row["Op Cycles"])) for row in rows),
                sram_bytes=max(round(float(row["Staging Usage"])) for row in rows),
                flash_bytes=flash.pop(name, 0),
                macs=sum(round(float(row["MAC Count"])) for row in rows),
            )
        )
    layers += [
        VelaLayer(
            name=name,
            operators="",
            processor="NPU",
            cycles=0,
            sram_bytes=0,
            flash_bytes=size,
            macs=0,
        )
        for name, size in flash.items()
    ]
    return tuple(layers)


def _name_in_file(name: str, in_file: Mapping[str, Any], reader: Mapping[str, str]) -> str:
    """Returns the tensor of the file that an operator of Vela helps to compute.

    Vela names its own tensors after one of the file. Those of a softmax are named after its input.

    Args:
        name: Vela's name of the tensor that the operator computes.
        in_file: The names of the tensors that the file computes.
        reader: What `readers` returns.
    """
    if name in in_file:
        return name
    before, softmax, _ = name.partition("_softmax_")
    if softmax and before in reader:
        return reader[before]
    stems = [stem for stem in in_file if name.startswith(f"{stem}_")]
    return max(stems, key=len, default=name)


def _operator_count(output: str, processor: str) -> int:
    """Returns how many operators Vela placed on the NPU or the CPU, from what it printed."""
    match = re.search(rf"{processor} operators = (\d+)", output)
    if match is None:
        raise ConversionError(
            f"Vela did not print how many operators run on the {processor}. Please report its "
            "version."
        )
    return int(match.group(1))


@functools.cache
def _version(vela: str) -> str:
    """Returns the version of the `vela` program."""
    return _call(vela, "--version").strip()


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
