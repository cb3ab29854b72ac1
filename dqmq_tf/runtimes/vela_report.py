"""The report of Vela: cycles, SRAM and flash of each layer of a file."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from dqmq_tf.terminal import new_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class VelaLayer:
    """What Vela estimates for one layer of the file.

    Attributes:
        name: Path of the layer in the model. Where it is not known, name of the tensor that it
            computes.
        operators: What Vela runs for it, such as `"Conv2D"`, separated by commas.
        processor: `"NPU"` or `"CPU"`. Vela estimates nothing for the CPU.
        cycles: Cycles of the NPU for one input.
        sram_bytes: Most SRAM in use while it runs.
        flash_bytes: Its weights, scales and other constants as Vela encodes them.
        macs: Multiply-accumulates for one input.
    """

    name: str
    operators: str
    processor: str
    cycles: int
    sram_bytes: int
    flash_bytes: int
    macs: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class VelaReport:
    """What Vela reports about a compiled file.

    Attributes:
        version: Version of Vela.
        accelerator: Configuration that it compiled for, such as `"ethos-u55-128"`.
        size_bytes: Size of the compiled `.tflite` file.
        weight_bytes: Size of the weights as Vela encodes them.
        flash_bytes: Constants that the NPU reads, by Vela's count. By Vela's default configurations
            they lie in flash on Ethos-U55, and in DRAM on Ethos-U65 and Ethos-U85.
        sram_bytes: SRAM that the NPU uses, by Vela's count.
        cycles: Cycles of the NPU for one input, by Vela's estimate.
        npu_operators: Number of operators that run on the NPU.
        cpu_operators: Number of operators that run on the CPU. The cycles do not include them.
        layers: A `VelaLayer` for each layer, in the order of execution.
    """

    version: str
    accelerator: str
    size_bytes: int
    weight_bytes: int
    flash_bytes: int
    sram_bytes: int
    cycles: int
    npu_operators: int
    cpu_operators: int
    layers: tuple[VelaLayer, ...]

    def with_paths(self, paths: Mapping[str, str]) -> Self:
        """Returns the report with the paths of layers for the names of their tensors.

        Args:
            paths: `{name of a tensor: path of the layer that computes it}`. A name without an entry
                stays.
        """
        layers = [
            dataclasses.replace(layer, name=paths.get(layer.name) or layer.name)
            for layer in self.layers
        ]
        return dataclasses.replace(self, layers=tuple(layers))

    def __rich__(self) -> Any:
        table = new_table(
            f"Compiled by Vela {self.version} for {self.accelerator}",
            "layer",
            "operators",
            "on",
            "cycles",
            "SRAM",
            "flash",
            "MACs",
            text_columns=3,
        )
        for layer in self.layers:
            table.add_row(
                layer.name,
                layer.operators,
                layer.processor,
                f"{layer.cycles:,}",
                f"{layer.sram_bytes:,}",
                f"{layer.flash_bytes:,}",
                f"{layer.macs:,}",
            )
        table.add_section()
        table.add_row(
            "whole network",
            f"{self.npu_operators} on the NPU, {self.cpu_operators} on the CPU",
            "",
            f"{self.cycles:,}",
            f"{self.sram_bytes:,}",
            f"{self.flash_bytes:,}",
            f"{sum(layer.macs for layer in self.layers):,}",
        )
        table.caption = f"SRAM and flash in bytes; compiled file {self.size_bytes:,} bytes"
        return table
