"""`export_qonnx`: writes a frozen profile as a QONNX file."""

import dataclasses
import os

import keras

from dqmq_tf.errors import check_profile, check_quantized
from dqmq_tf.export import atomic_write, qonnx_layers
from dqmq_tf.export.file_paths import checked_path
from dqmq_tf.export.qonnx_graph import Value, onnx_module
from dqmq_tf.export.qonnx_layers import quality_affine
from dqmq_tf.export.qonnx_writer import QonnxWriter, static_shape
from dqmq_tf.graph.fusion import tensor_slots
from dqmq_tf.lowering.lowered_model import output_names_of
from dqmq_tf.model import DQMQModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class QonnxReport:
    """What `export_qonnx` wrote.

    Attributes:
        path: The path of the file.
        profile: The index of the precision profile.
        size_bytes: The size of the file.
        input_shapes: `{name: shape}` of the inputs, with the channels in the second axis.
        zero_points: The layers and inputs whose activations have a zero point other than 0. Some
            tools refuse it, and qonnx's `inference_cost` counts such a tensor as 32 bits.
        bit_ops: The bit operations per input of the network in the file, as `inference_cost` counts
            them if no kernel reads a tensor of `zero_points`.
        deciding_bit_ops: Those of the encoder, the policy and the quality normalization. A budget
            pays for them as well, but they are not in the file. 0 for static bits
            (`quality_aware=False`).
        mean_bit_width: The average bit-width of the network in the file: the square root of
            `bit_ops` per multiply-accumulate.
    """

    path: str
    profile: int
    size_bytes: int
    input_shapes: dict[str, tuple[int, ...]]
    zero_points: tuple[str, ...]
    bit_ops: float
    deciding_bit_ops: float
    mean_bit_width: float


def export_qonnx(qmodel: DQMQModel, path: str | os.PathLike[str], profile: int = 0) -> QonnxReport:
    """Writes a precision profile as QONNX, which tools for FPGAs and for research read.

    QONNX is ONNX with `Quant` nodes. The file has one behind every kernel and every activation
    that training quantizes, with the learned scales, zero points and bit-widths of 2 to 8 bits.
    Batch normalizations have the scale and shift folded in that follow the quality, as the profile
    has them.

    Inputs and outputs are float32, have a batch of one, and the channels in the second axis if they
    are images or signals. Images that the model takes as uint8 have the same values as float32.

    Args:
        qmodel: A trained `DQMQModel`, for example of the target `"simulation"`. If it is not frozen,
            it is frozen to one precision profile.
        path: The path of the file to write. It ends in `.onnx`. An existing file is replaced only if
            the new one is complete.
        profile: The index of the precision profile to write.

    Returns:
        A `QonnxReport`.

    Raises:
        UnsupportedLayerError: If the file cannot hold a layer. Nothing is written.
        ImportError: If qonnx, onnx or onnxruntime is not installed.
        ValueError: If `path` does not end in `.onnx`, or if the profile does not exist.
        OSError: If `path` cannot be written.

    Example:

    >>> report = dqmq_tf.export_qonnx(qmodel, "model.onnx")
    >>> from qonnx.core.modelwrapper import ModelWrapper
    >>> from qonnx.core.onnx_exec import execute_onnx
    >>> nchw = image[None].transpose(0, 3, 1, 2)
    >>> execute_onnx(ModelWrapper(report.path), {"image": nchw})
    """
    check_quantized(qmodel)
    path = checked_path(path, ".onnx")
    check_profile(profile, qmodel.frozen_profiles or 1)
    onnx_module()
    graph = qmodel._parts.graph
    qonnx_layers.check_layers(graph)
    if not qmodel.frozen_profiles:
        qmodel.freeze(profiles=1)
    writer, inputs = _written(qmodel, profile)
    names = output_names_of(graph, qmodel.output_names)
    outputs = [(name, writer.values[tensor]) for name, tensor in zip(names, graph.outputs)]
    model = writer.file.model(outputs)
    contents = model.SerializeToString()
    atomic_write.write_together({path: contents})
    costs = qmodel._parts.costs
    bits = keras.ops.convert_to_numpy(qmodel._parts.policy.assigned)[profile]
    decided = len(costs.decided)
    bit_ops = float(costs.bit_ops(bits[decided:], bits[:decided])) - costs.overhead
    return QonnxReport(
        path=str(path),
        profile=profile,
        size_bytes=len(contents),
        input_shapes={value.name: value.onnx_shape for value in inputs},
        zero_points=tuple(writer.file.zero_points),
        bit_ops=bit_ops,
        deciding_bit_ops=float(costs.overhead),
        mean_bit_width=float((bit_ops / costs.macs.sum()) ** 0.5),
    )


def _written(qmodel: DQMQModel, profile: int) -> tuple[QonnxWriter, list[Value]]:
    """Writes all nodes of a frozen model.

    Returns:
        The `QonnxWriter`, and the inputs of the model.
    """
    parts, precision = qmodel._parts, qmodel.precision(profile)
    graph, embedding = parts.graph, keras.ops.convert_to_numpy(parts.policy.centroids)
    affines = {
        path: quality_affine(affine, embedding[profile : profile + 1])
        for path, affine in parts.affine_of.items()
    }
    writer = QonnxWriter(graph, precision.weights, affines)
    # The quantizers of training stand where values are computed. Tensors that only repeat these
    # values carry the same scale without a `Quant` of their own.
    quantized = {slot for point in parts.costs.activations for slot in point.slots}
    slots = tensor_slots(graph)

    def keep(tensor: int, name: str, value: Value) -> None:
        if slots[tensor] in quantized:
            value = writer.file.quantize_activation(name, value, precision.activations[tensor])
        writer.values[tensor] = value

    inputs = []
    for tensor, name in zip(graph.inputs, graph.input_names):
        inputs.append(writer.file.add_input(name, static_shape(graph.shapes[tensor])))
        keep(tensor, name, inputs[-1])
    for node in graph.nodes:
        for tensor, value in zip(node.outputs, qonnx_layers.write(writer, node)):
            keep(tensor, node.path, value)
    return writer, inputs
