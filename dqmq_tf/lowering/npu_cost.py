"""What Vela estimates for the file of a model: its cycles and flash, in sum and for each weight."""

import dataclasses

from dqmq_tf.lowering.write_file import WrittenFile
from dqmq_tf.runtimes import vela
from dqmq_tf.targets import Target
from dqmq_tf.terminal import stages


@dataclasses.dataclass(frozen=True, kw_only=True)
class NpuCost:
    """What Vela estimates for a file, in the unit of each budget that Vela measures.

    Attributes:
        file: `{kind of budget: cost of the file}`.
        weights: `{(path of the layer, name of the variable): {kind of budget: cost of the layer}}`.
            A layer with several weight tensors is counted at the first.
    """

    file: dict[str, int]
    weights: dict[tuple[str, str], dict[str, int]]


def require_vela(kind: str) -> None:
    """Raises `ImportError` if Vela, which measures a budget of this kind, is not installed."""
    if vela.program() is None:
        raise ImportError(
            f"Budget {kind} is measured by Vela, which is not installed: pip install ethos-u-vela"
        )


def measure_on_npu(written: WrittenFile, target: Target) -> NpuCost:
    """Returns what Vela estimates for a file.

    Args:
        written: What `write_unverified` returned.
        target: The `Target`, which names the NPU.

    Raises:
        ConversionError: If Vela rejects the file.
        ImportError: If Vela is not installed.
    """
    with stages("Measuring the file") as stage:
        stage("asking Vela")
        report = vela.compile_file(written.file, target.accelerator)[1]
    layers = {layer.name: layer for layer in report.layers}
    readers = vela.readers(written.file.model)
    weights: dict[tuple[str, str], dict[str, int]] = {}
    for number, variable in enumerate(written.lowered.weights):
        layer = layers.pop(readers.get(f"w{number}", ""), None)
        weights[variable.path, variable.variable] = {
            "vela_flash_bytes": layer.flash_bytes if layer else 0,
            "vela_cycles": layer.cycles if layer else 0,
        }
    file = {"vela_flash_bytes": report.flash_bytes, "vela_cycles": report.cycles}
    return NpuCost(file=file, weights=weights)
