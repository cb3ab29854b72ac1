"""`QonnxWriter`: what the functions that write layers as QONNX have in common."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import keras
import numpy as np

from dqmq_tf.errors import UnsupportedLayerError
from dqmq_tf.export.qonnx_graph import QonnxGraph, Value
from dqmq_tf.graph import Graph, Node
from dqmq_tf.graph.activations import relu_ceiling
from dqmq_tf.graph.constant_maps import Affine
from dqmq_tf.precision import WeightPrecision


class QonnxWriter:
    """Writes nodes one after another, each with the tensors that earlier ones computed.

    Args:
        graph: The inlined graph of the float model.
        weights: `{path: {variable name: WeightPrecision}}`.
        affines: `{path of a batch normalization: Affine}` of the scale and shift that the quality
            adds behind it.

    Attributes:
        file: The `QonnxGraph`.
        values: `{tensor id: Value}` of the tensors so far.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Mapping[str, WeightPrecision]],
        affines: Mapping[str, Affine],
    ) -> None:
        self.graph, self.affines = graph, affines
        self.file = QonnxGraph()
        self.values: dict[int, Value] = {}
        self._weights = weights
        self._kernels: dict[tuple[str, str], str] = {}

    def source(self, node: Node) -> Value:
        """Returns the first input of a node."""
        return self.values[node.inputs[0]]

    def shape(self, node: Node) -> tuple[int, ...]:
        """Returns the shape of a node's output in Keras's layout, with 1 for the batch."""
        return static_shape(self.graph.shapes[node.outputs[0]])

    def kernel(self, node: Node, arrange: Callable[[np.ndarray], np.ndarray]) -> str:
        """Writes the kernel of a layer once and returns its name.

        Args:
            node: The node of the layer.
            arrange: Puts a kernel in Keras's layout into that of ONNX. It keeps the rank of the
                kernel, or reduces that of the steps in the same way.
        """
        key = (node.path, "kernel")
        if key not in self._kernels:
            name = f"{node.path}/kernel"
            precision = self._weights.get(node.path, {}).get("kernel")
            if precision is None:
                kernel = np.asarray(keras.ops.convert_to_numpy(node.layer.kernel), np.float32)
                self._kernels[key] = self.file.constant(name, arrange(kernel))
            else:
                values = precision.integers.astype(np.float32) * precision.step
                steps = np.broadcast_to(precision.step, precision.integers.shape)
                self._kernels[key] = self.file.quantize_weights(
                    name, arrange(values), _without_repetition(arrange(steps)), precision
                )
        return self._kernels[key]

    def bias(self, node: Node) -> list[str]:
        """Writes the bias of a layer. Returns its name in a list, which is empty without a bias."""
        if not node.layer.use_bias:
            return []
        key = (node.path, "bias")
        if key not in self._kernels:
            bias = np.asarray(keras.ops.convert_to_numpy(node.layer.bias), np.float32)
            self._kernels[key] = self.file.constant(f"{node.path}/bias", bias)
        return [self._kernels[key]]

    def rectified(self, name: str, layer: Any, path: str) -> str:
        """Adds the relu of a layer, with its ceiling, and returns the name of the result."""
        ceiling = relu_ceiling(layer)
        if math.isinf(ceiling):
            return self.file.add("Relu", [name], f"{path}/relu")
        limits = [
            self.file.constant(f"{path}/{limit}", np.float32(value))
            for limit, value in (("floor", 0.0), ("ceiling", ceiling))
        ]
        return self.file.add("Clip", [name, *limits], f"{path}/relu")

    def activated(self, name: str, node: Node) -> str:
        """Adds the relu inside a layer with a kernel, if it has one."""
        activation = node.layer.activation
        if activation in (keras.activations.relu, keras.activations.relu6):
            return self.rectified(name, node.layer, node.path)
        if activation is not keras.activations.linear:
            refuse(node, f"activation={getattr(activation, '__name__', activation)!r}")
        return name


def static_shape(shape: Sequence[int | None]) -> tuple[int, ...]:
    """Returns a shape with 1 for the batch."""
    return (1, *(int(n or 1) for n in shape[1:]))


def refuse(node: Node, found: str | None = None) -> NoReturn:
    """Raises the error that names a layer, and the option of it that cannot be written."""
    kind = type(node.layer).__name__
    raise UnsupportedLayerError(
        node.path,
        f"{kind}: {found}" if found else kind,
        "QONNX files hold Conv1D, Conv2D, depthwise and dense layers, batch normalization, "
        "Rescaling, relu, sigmoid, tanh, softmax, Add, Concatenate, pooling, zero padding, Flatten "
        "and Reshape. Replace the layer.",
    )


def _without_repetition(steps: np.ndarray) -> np.ndarray:
    """Returns steps with size 1 on each axis along which they are equal."""
    for axis in range(steps.ndim):
        first = np.take(steps, [0], axis=axis)
        if np.array_equal(np.broadcast_to(first, steps.shape), steps):
            steps = first
    return steps
