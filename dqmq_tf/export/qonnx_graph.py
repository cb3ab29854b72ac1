"""`QonnxGraph`: collects the nodes, constants and tensors of a QONNX graph.

QONNX (Pappalardo et al. 2022, "QONNX: Representing Arbitrary-Precision Quantized Neural Networks",
arXiv 2206.07527) is ONNX with the operator `Quant`, which rounds a float tensor to a grid. Images
and signals have their channels in the second axis, as ONNX's convolutions want them.
"""

import dataclasses
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from dqmq_tf.precision import ActivationPrecision, WeightPrecision
from dqmq_tf.version import __version__

# The package qonnx rewrites files, such as to channels last, with operators of this version.
_ONNX_OPSET, _QUANT_OPSET, _IR_VERSION = 13, 1, 8
_QUANT_DOMAIN = "qonnx.custom_op.general"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor of the ONNX graph.

    Attributes:
        name: Its name in the graph.
        shape: Its shape in Keras's layout, with the channels last and 1 for the batch.
        is_channels_first: Whether the ONNX tensor has its channels in the second axis.
    """

    name: str
    shape: tuple[int, ...]
    is_channels_first: bool

    @property
    def onnx_shape(self) -> tuple[int, ...]:
        """The shape of the ONNX tensor."""
        return channels_first(self.shape) if self.is_channels_first else self.shape

    def axis(self, axis: int) -> int:
        """Returns the axis of the ONNX tensor that is an axis of the Keras tensor."""
        axis, rank = axis % len(self.shape), len(self.shape)
        if not self.is_channels_first or axis == 0:
            return axis
        return 1 if axis == rank - 1 else axis + 1


class QonnxGraph:
    """Collects a QONNX graph in execution order.

    Attributes:
        zero_points: The layers and inputs whose `Quant` has a zero point other than 0.
    """

    def __init__(self) -> None:
        self.zero_points: list[str] = []
        self._onnx = onnx_module()
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}
        self._inputs: list[Any] = []
        self._names: set[str] = set()
        self._transposed: dict[tuple[str, bool], Value] = {}
        self._output_names: dict[str, str] = {}

    def add_input(self, name: str, shape: Sequence[int]) -> Value:
        """Adds an input of the model. Its channels come first if it is an image or a signal."""
        value = Value(
            name=self._unique(name), shape=tuple(shape), is_channels_first=len(shape) in (3, 4)
        )
        self._inputs.append(self._described(value))
        return value

    def constant(self, name: str, values: Any) -> str:
        """Adds a constant and returns its name.

        Args:
            name: Its name, to which a number is appended if it exists.
            values: A number or an array. Floating-point values are stored as float32.
        """
        array = np.asarray(values)
        name = self._unique(name)
        self._constants[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
        return name

    def add(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Adds a node and returns the name of its output.

        Args:
            operator: The type of the operator.
            inputs: The names of its inputs.
            name: The name of the node, to which a number is appended if it exists.
            **attributes: The attributes of the operator, and `domain` for one that ONNX lacks.
        """
        name = self._unique(name)
        # The names of layers stay free for the inputs and outputs of the model.
        output = f"{name}/output"
        node = self._onnx.helper.make_node(
            operator, list(inputs), [output], name=name, **attributes
        )
        self._nodes.append(node)
        return output

    def quantize_activation(self, name: str, value: Value, precision: ActivationPrecision) -> Value:
        """Adds the `Quant` node of an activation and returns its output.

        A zero point in the middle of the range becomes a signed grid with zero point 0, because
        some readers of QONNX support only the latter.

        Args:
            name: The path of the layer, or the name of the input, that computes the tensor.
            value: The tensor before rounding.
            precision: Its step, zero point and bit-width.
        """
        is_signed = precision.zero_point == 2 ** (precision.bit_width - 1)
        zero_point = 0 if is_signed else precision.zero_point
        bits = precision.bit_width
        result = self._quant(name, value.name, precision.step, zero_point, bits, is_signed, False)
        if zero_point:
            self.zero_points.append(name)
        return dataclasses.replace(value, name=result)

    def quantize_weights(
        self, name: str, weights: np.ndarray, steps: np.ndarray, precision: WeightPrecision
    ) -> str:
        """Adds weights with their `Quant` node and returns the name of its output.

        Args:
            name: The name of the constant.
            weights: The multiples of the steps, in ONNX's layout.
            steps: The steps, in a shape that broadcasts against the weights.
            precision: The precision of the same weights, for their bit-width.
        """
        stored, bits = self.constant(name, weights), precision.bit_width
        # Quantizers of the user's own may use the lowest integer, such as -8 at 4 bits.
        is_narrow = bool(precision.integers.min(initial=0) > -(2 ** (bits - 1)))
        return self._quant(name, stored, steps, 0, bits, True, is_narrow)

    def channels_first(self, value: Value) -> Value:
        """Returns a tensor with its channels in the second axis."""
        return self._with_layout(value, True)

    def channels_last(self, value: Value) -> Value:
        """Returns a tensor with its channels in the last axis."""
        return self._with_layout(value, False)

    def per_channel(self, value: Value, name: str, values: np.ndarray) -> str:
        """Adds a constant with a number per channel that broadcasts against a tensor."""
        shape = [1] * len(value.shape)
        shape[value.axis(-1)] = -1
        return self.constant(name, np.reshape(values, shape))

    def model(self, outputs: Sequence[tuple[str, Value]]) -> Any:
        """Returns the ONNX `ModelProto`, with the shapes of all tensors.

        Args:
            outputs: The names and tensors of the model's outputs.
        """
        helper = self._onnx.helper
        named = []
        for name, value in outputs:
            if len(value.shape) in (3, 4):
                value = self.channels_first(value)
            self._name_output(value.name, name)
            named.append(self._described(dataclasses.replace(value, name=name)))
        constants = [
            self._onnx.numpy_helper.from_array(array, name)
            for name, array in self._constants.items()
        ]
        graph = helper.make_graph(self._nodes, "dqmq_tf", self._inputs, named, constants)
        opsets = [
            helper.make_opsetid("", _ONNX_OPSET),
            helper.make_opsetid(_QUANT_DOMAIN, _QUANT_OPSET),
        ]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=_IR_VERSION,
            producer_name="dqmq_tf",
            producer_version=__version__,
        )
        self._onnx.checker.check_model(model)
        return _with_shapes(model)

    def _quant(
        self,
        name: str,
        source: str,
        step: Any,
        zero_point: int,
        bits: int,
        is_signed: bool,
        narrow: bool,
    ) -> str:
        """Adds a `Quant` node behind the tensor `source` and returns the name of its output."""
        inputs = [
            source,
            self.constant(f"{name}/scale", np.asarray(step, np.float32)),
            self.constant(f"{name}/zero_point", np.float32(zero_point)),
            self.constant(f"{name}/bits", np.float32(bits)),
        ]
        return self.add(
            "Quant",
            inputs,
            f"{name}/quant",
            domain=_QUANT_DOMAIN,
            signed=int(is_signed),
            narrow=int(narrow),
            rounding_mode="ROUND",
        )

    def _with_layout(self, value: Value, is_channels_first: bool) -> Value:
        rank = len(value.shape)
        if rank < 3 or value.is_channels_first == is_channels_first:
            return dataclasses.replace(value, is_channels_first=is_channels_first and rank > 2)
        key = (value.name, is_channels_first)
        if key not in self._transposed:
            order = channels_first(range(rank)) if is_channels_first else _channels_last(rank)
            base = value.name.removesuffix("/output")
            name = self.add("Transpose", [value.name], f"{base}/transposed", perm=order)
            self._transposed[key] = dataclasses.replace(
                value, name=name, is_channels_first=is_channels_first
            )
        return self._transposed[key]

    def _name_output(self, tensor: str, name: str) -> None:
        """Gives a tensor the name of a model output."""
        if not any(tensor in node.output for node in self._nodes):
            # It is an input of the model or has the name of another output.
            source = self._output_names.get(tensor, tensor)
            identity = self._onnx.helper.make_node(
                "Identity", [source], [name], name=f"{name}/copy"
            )
            self._nodes.append(identity)
            return
        self._output_names[tensor] = name
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [name if other == tensor else other for other in names]

    def _described(self, value: Value) -> Any:
        """Returns the name, type and shape of an input or output."""
        return self._onnx.helper.make_tensor_value_info(
            value.name, self._onnx.TensorProto.FLOAT, value.onnx_shape
        )

    def _unique(self, name: str) -> str:
        """Returns a name that no node, tensor or constant has yet."""
        base, number = name, 0
        while name in self._names:
            number += 1
            name = f"{base}_{number}"
        self._names.add(name)
        return name


def channels_first(axes: Sequence[int]) -> tuple[int, ...]:
    """Moves the last entry of a shape or a list of axes to the second place."""
    return (axes[0], axes[-1], *axes[1:-1])


def onnx_module() -> ModuleType:
    """Returns the module `onnx`.

    Raises:
        ImportError: If `onnx` or `qonnx` is not installed.
    """
    try:
        importlib.import_module("qonnx.core.modelwrapper")
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ImportError(
            "`export_qonnx` needs qonnx, onnx and onnxruntime. Install the extra `qonnx`: "
            'pip install ".[qonnx]" in the checkout of dqmq_tf.'
        ) from error


def _channels_last(rank: int) -> list[int]:
    """Returns the permutation that undoes `channels_first`."""
    return [0, *range(2, rank), 1]


def _with_shapes(model: Any) -> Any:
    """Returns a model whose inner tensors have shapes, which qonnx's executor needs."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.infer_shapes import InferShapes

    return ModelWrapper(model).transform(InferShapes()).model
