"""What Vela estimates for the file of a model: its cycles and flash, in sum and for each weight."""

import dataclasses
from collections.abc import Mapping

from dqmq_tf import flatbuffer
from dqmq_tf.flatbuffer import ModelT
from dqmq_tf.lowering.int16_kernels import tensor_of
from dqmq_tf.lowering.write_file import WrittenFile
from dqmq_tf.runtimes import vela
from dqmq_tf.runtimes.vela_report import VelaLayer
from dqmq_tf.targets import Target
from dqmq_tf.terminal import stages


@dataclasses.dataclass(frozen=True, kw_only=True)
class NpuOperator:
    """What Vela estimates for one operator of a file.

    Attributes:
        name: The key of the tensor that it computes, see `LoweredModel`.
        tensors: The keys of the activations that it reads and computes.
        cycles: Its cycles, and those of the QUANTIZE operators that widen its inputs to 16 bits or
            narrow its output to 8.
    """

    name: str
    tensors: frozenset[str]
    cycles: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class NpuCost:
    """What Vela estimates for a file, in the unit of each budget that Vela measures.

    Attributes:
        file: `{kind of budget: cost of the file}`.
        weights: `{(path of the layer, name of the variable): {kind of budget: cost of the layer}}`.
            A layer with several weight tensors is counted at the first.
        operators: The operators of the file.
    """

    file: dict[str, int]
    weights: dict[tuple[str, str], dict[str, int]]
    operators: tuple[NpuOperator, ...]


def require_vela(kind: str) -> None:
    """Raises `ImportError` if Vela, which measures a budget of this kind, is not installed."""
    vela.require(f"Budget {kind}")


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
    operators = _operators(written.file.model, layers)
    readers = vela.readers(written.file.model)
    weights: dict[tuple[str, str], dict[str, int]] = {}
    for number, variable in enumerate(written.lowered.weights):
        layer = layers.pop(readers.get(f"w{number}", ""), None)
        weights[variable.path, variable.variable] = {
            "vela_flash_bytes": layer.flash_bytes if layer else 0,
            "vela_cycles": layer.cycles if layer else 0,
        }
    file = {"vela_flash_bytes": report.flash_bytes, "vela_cycles": report.cycles}
    return NpuCost(file=file, weights=weights, operators=operators)


def _operators(model: ModelT, layers: Mapping[str, VelaLayer]) -> tuple[NpuOperator, ...]:
    """Returns the operators of a file.

    Args:
        model: The `ModelT` of the file.
        layers: `{name of a tensor: the VelaLayer that computes it}`.
    """
    graph = model.subgraphs[0]
    names = [flatbuffer.text(tensor.name) for tensor in graph.tensors]
    tensors: dict[str, set[str]] = {}
    cycles: dict[str, int] = {}
    for position, operator in enumerate(graph.operators):
        source, result = names[operator.inputs[0]], names[operator.outputs[0]]
        served = tensor_of(result)
        if flatbuffer.operator_name(model, operator) == "QUANTIZE" and tensor_of(source) == served:
            if result != served:
                # It widens an input of a later operator.
                readers = graph.operators[position:]
                reader = next(o for o in readers if operator.outputs[0] in o.inputs)
                served = tensor_of(names[reader.outputs[0]])
        else:
            activations = [i for i in (*operator.inputs, *operator.outputs) if i >= 0]
            tensors.setdefault(served, set()).update(tensor_of(names[i]) for i in activations)
        cycles[served] = cycles.get(served, 0) + (layers[result].cycles if result in layers else 0)
    return tuple(
        NpuOperator(name=name, tensors=frozenset(keys), cycles=cycles[name])
        for name, keys in tensors.items()
    )
