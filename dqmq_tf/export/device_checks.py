"""Runs the tools of a device on a finished file: TFLite Micro, which measures the arena, and Vela."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from dqmq_tf import flatbuffer
from dqmq_tf.config import VELA_KINDS, Budget
from dqmq_tf.errors import ConversionError, VerificationError
from dqmq_tf.flatbuffer import TFLiteFile, lookup_tables
from dqmq_tf.flatbuffer.lookup_tables import DECODE
from dqmq_tf.runtimes import tflite_micro, vela
from dqmq_tf.runtimes.random_inputs import random_inputs_of
from dqmq_tf.runtimes.vela_report import VelaReport
from dqmq_tf.targets import VELA, Target

_PROBES = 2


def check_bit_exact(file: TFLiteFile) -> int | None:
    """Checks that TFLite Micro computes the same with a compressed and with an uncompressed file.

    Each tensor that TFLite Micro decodes is compared with the integers that were stored. The
    outputs of both files for random inputs are compared as well.

    Args:
        file: The compressed file.

    Returns:
        The bytes of the tensor arena that the file needs; see `tflite_micro.arena_bytes`.

    Raises:
        ImportError: If the `tflite-micro` wheel is not installed.
        VerificationError: If an integer differs, or TFLite Micro does not run the file.
    """
    tflite_micro.require()
    model, graph = file.model, file.model.subgraphs[0]
    uncompressed = lookup_tables.decompress_file(file)
    expected = {
        flatbuffer.text(tensor.name): flatbuffer.constant(uncompressed.model, tensor)
        for tensor in uncompressed.model.subgraphs[0].tensors
        if flatbuffer.is_constant(uncompressed.model, tensor)
    }
    decoded = {
        int(operator.outputs[0]): flatbuffer.text(graph.tensors[operator.outputs[0]].name)
        for operator in graph.operators
        if model.operatorCodes[operator.opcodeIndex].customCode == DECODE
    }
    inputs = random_inputs_of(file, _PROBES)
    kept = tflite_micro.run(file, inputs, tensors=tuple(decoded)).tensors
    for index, name in decoded.items():
        wanted = expected[name.split("'")[0]].ravel()
        different = int((kept[index].ravel() != wanted).sum())
        if different:
            raise VerificationError(
                f"TFLite Micro {tflite_micro.version()} decodes {different} of {wanted.size} integers of "
                f"{name!r} to others than were stored. Nothing was delivered; please report it."
            )
    # Run again without keeping tensors, because tensors then share memory as on the device.
    found = tflite_micro.run(file, inputs)
    for one, other in zip(found.outputs, tflite_micro.run(uncompressed, inputs).outputs):
        if not np.array_equal(one, other):
            raise VerificationError(
                f"TFLite Micro {tflite_micro.version()} computes something else from the compressed file "
                "than from the uncompressed one. Nothing was delivered; please report it."
            )
    return found.arena_bytes


def check_vela_budget(budget: Budget, report: VelaReport | None) -> None:
    """Checks a budget that Vela measures. Other budgets always pass.

    Args:
        budget: The budget.
        report: The report of Vela, or None if it is not installed.

    Raises:
        ConversionError: If the file exceeds the budget.
        ImportError: If Vela would have to measure the budget and is not installed.
    """
    if budget.kind not in VELA_KINDS:
        return
    vela.require(f"Budget {budget.kind}")
    assert report is not None
    cost = {"vela_flash_bytes": report.flash_bytes, "vela_cycles": report.cycles}[budget.kind]
    if cost > budget.value:
        raise ConversionError(
            f"By Vela, the file takes {cost:,} ({budget.kind}), the budget is {int(budget.value):,}. "
            "The file was not written. Fewer bits reduce only what depends on the weights. Train "
            "with a smaller budget, or allow fewer bits with a LayerRule."
        )


def with_layer_names(
    report: VelaReport, file: TFLiteFile, paths: Mapping[str, str] | None = None
) -> VelaReport:
    """Returns a report of Vela with the names of layers in the model.

    Args:
        report: The report of Vela, which has names of tensors.
        file: The file that Vela compiled. If dqmq_tf wrote it, its metadata name the layers that have
            weights.
        paths: `{name of a tensor: path of the layer that computes it}`, which name the others.
    """
    readers = vela.readers(file.model)
    labels = {
        f"w{number}": label for number, label in enumerate((file.metadata or {}).get("bits", ()))
    }
    of_weights = {readers[name]: label for name, label in labels.items() if name in readers}
    return report.with_paths({**(paths or {}), **of_weights})


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """The results of the tools that are installed.

    Attributes:
        arena_bytes: The bytes of the smallest tensor arena for TFLite Micro's reference kernels; see
            `tflite_micro.arena_bytes`. None if it was not measured.
        vela: A `VelaReport`. None if Vela was not run.
    """

    arena_bytes: int | None = None
    vela: VelaReport | None = None


def examine(file: TFLiteFile, target: Target) -> DeviceFacts:
    """Runs a file with the tools of its target that are installed.

    Args:
        file: The finished file.
        target: The deployment target.

    Raises:
        ImportError: If the file contains lookup tables and TFLite Micro, which checks them, is not
            installed.
        VerificationError: If TFLite Micro does not run the file, or decodes other weights.
        ConversionError: If Vela rejects the file.
    """
    if lookup_tables.is_compressed(file.model):
        return DeviceFacts(arena_bytes=check_bit_exact(file))
    if target.compiler == VELA:
        if vela.program() is None:
            vela.check_vela_can_compile(file.model)
            return DeviceFacts()
        return DeviceFacts(vela=vela.compile_file(file, target.accelerator)[1])
    if "tflite-micro" in target.runtimes and tflite_micro.is_installed():
        return DeviceFacts(arena_bytes=tflite_micro.arena_bytes(file))
    return DeviceFacts()


def examine_adaptive(file: TFLiteFile, target: Target) -> DeviceFacts:
    """Measures the arena of an adaptive file. `examine` has checked each of its profiles.

    Args, Returns and Raises are those of `examine`.
    """
    if (
        "tflite-micro" in target.runtimes
        and target.compiler is None
        and tflite_micro.is_installed()
    ):
        return DeviceFacts(arena_bytes=tflite_micro.arena_bytes(file))
    return DeviceFacts()
