"""`LoweringBuilder`: collects the tensors, layers and weights of a lowered model."""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import keras
import numpy as np

from dqmq_tf.errors import ConversionError
from dqmq_tf.graph import Graph, Node
from dqmq_tf.graph.fusion import computes_means, fused_tensors, operator_tensors, shares_scale
from dqmq_tf.graph.kernels import PIXELS, kernel_variables, variable_names
from dqmq_tf.lowering.folding import FoldedWeights
from dqmq_tf.lowering.stored_weights import StoredWeights
from dqmq_tf.lowering.tensor_markers import Marker
from dqmq_tf.precision import ActivationPrecision, Precision, round_means

Weights = TypeVar("Weights", FoldedWeights, StoredWeights)
# The grid of the integers of images, which float32 inputs of a file keep exactly.
_PIXEL_GRID = ActivationPrecision(step=1.0, zero_point=0, bit_width=8)


def tensor_key(tensor: int, inner: bool = False) -> str:
    """Returns the key of a tensor in the lowered model.

    Args:
        tensor: The id of a tensor of the graph.
        inner: Whether the key is that of the tensor inside the layer that computes `tensor`.
    """
    return f"a{tensor}p" if inner else f"a{tensor}"


class LoweringBuilder:
    """Collects the lowered model while the nodes of a graph are lowered in execution order.

    Args:
        graph: An inlined `dqmq_tf.graph.Graph` of the float model.
        precision: The `Precision` of the same graph.
        simulate: Whether to round every quantized tensor to its grid. Otherwise it gets a marker.
        trained_names: `{path of a layer: names of its weights in the trained model, in order}`. Those
            in the graph may differ: Keras numbers layers inside a layer that have no names of their
            own, and goes on counting in each copy.

    Attributes:
        path: The path of the layer that is being lowered. `""` for the inputs.
        inputs: The KerasTensors of the model's inputs.
        values: `{tensor id: KerasTensor}` of the tensors that are lowered so far.
        layers: The new layers, by the path of the layer that they replace, so that all calls of a
            shared layer use the same one. The clone of a floating-point layer has the key
            `(path, "float")`.
        weights: `FoldedWeights` by the path of their layer, `StoredWeights` by the path or by
            `"path:variable"`, in execution order.
        padded: `{padded tensor: tensor before}` of zero padding that a convolution does itself. The
            padded tensor has no value.
        tensors, paths, marked, quantization, floating, vocabulary, layer_paths, float_layers, pixels:
            See `LoweredModel`.

    Raises:
        ConversionError: If an input of the model has no fixed shape, or a dtype other than float32,
            uint8 and int32.
    """

    def __init__(
        self,
        graph: Graph,
        precision: Precision,
        simulate: bool,
        trained_names: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
    ) -> None:
        self.graph = graph
        self.precision = precision
        self.simulate = simulate
        self._trained_names = trained_names
        self.path = ""
        self.inputs: list[Any] = []
        self.values: dict[int, Any] = {}
        self.tensors: dict[str, Any] = {}
        self.paths: dict[str, str] = {}
        self.marked: list[str] = []
        self.quantization: dict[str, ActivationPrecision] = {}
        self.floating: set[str] = set()
        self.weights: dict[str, FoldedWeights | StoredWeights] = {}
        self.layers: dict[str | tuple[str, str], Any] = {}
        self.vocabulary: dict[str, int] = {}
        self.layer_paths: dict[str, str] = {}
        self.float_layers: dict[str, str] = {}
        self.pixels: set[str] = set()
        self.padded: dict[int, int] = {}
        self._kernels: set[int] = set()
        self._fused = fused_tensors(graph)
        layers = {node.path: node.layer for node in graph.nodes}
        self._folded_layers = {linear: layers[path] for path, linear in graph.folds.items()}
        for tensor in graph.inputs:
            shape, dtype = graph.shapes[tensor], graph.dtypes[tensor]
            if None in shape[1:]:
                raise ConversionError(
                    f"The model's input has shape {shape}, but a file needs fixed sizes. Choose "
                    "them with dqmq_tf.change_input_shape(qmodel, shape), or build the model with a "
                    "fixed keras.Input(shape=...)."
                )
            if dtype not in ("float32", "int32", PIXELS):
                raise ConversionError(
                    f"The model's input has dtype {dtype}, but a file takes float32, uint8 for "
                    "images, or int32 for indices. Build the model with keras.Input(dtype=...) of "
                    "one of these types."
                )
            self.inputs.append(
                keras.Input(shape[1:], dtype="int32" if dtype == "int32" else "float32")
            )
            if dtype == PIXELS:
                self.pixels.add(tensor_key(tensor))
                self.emit(tensor, self.inputs[-1], fixed=_PIXEL_GRID)
            else:
                self.emit(tensor, self.inputs[-1], floating=dtype == "float32")

    def folded_layer(self, path: str) -> Any:
        """Returns the `BatchNormalization` or `Rescaling` that is folded into a layer.

        Args:
            path: The path of the linear layer.

        Returns:
            The `keras.layers.Layer`. None if none is folded into it.
        """
        return self._folded_layers.get(path)

    def weight_names(self, node: Node) -> list[str]:
        """Returns the names of the weights of a node's layer, as the precision has them."""
        return list(self._trained_names.get(node.path, variable_names(node.layer)))

    def source(self, node: Node) -> int:
        """Returns the tensor that the operator of a node with one input reads."""
        return self.padded.get(node.inputs[0], node.inputs[0])

    def input_step(self, tensor: int) -> float:
        """Returns the step of a tensor of the graph, 1.0 if it is not quantized."""
        precision = self.quantization.get(tensor_key(tensor))
        return 1.0 if precision is None else precision.step

    def distinct(self, weights: Weights) -> Weights:
        """Returns weights whose real values no other weights have that were passed before.

        The converter would merge two operators that read one tensor with equal kernels, as of two
        copies of a layer or of `x + 1` and `x + 2`. A change in the last digits of the scales
        prevents that. The integers stay as they are, so the file still stores them once.

        Args:
            weights: The `FoldedWeights` or `StoredWeights` of a layer.
        """
        field = "steps" if isinstance(weights, StoredWeights) else "scales"
        while (
            kernel := hash(weights.values.tobytes())
        ) in self._kernels and weights.integers.any():
            scales = getattr(weights, field) * np.float32(1 + 2**-22)
            weights = dataclasses.replace(weights, **{field: scales})
        self._kernels.add(kernel)
        return weights

    def has_16_bits(self, tensor: int) -> bool:
        """Returns whether a tensor of the graph is an int16 tensor of the file."""
        precision = self.precision.activations.get(tensor)
        return precision is not None and precision.is_int16

    def runs_in_int16(self, node: Node) -> bool:
        """Returns whether the operator of a node reads or computes a tensor of 16 bits."""
        return any(map(self.has_16_bits, operator_tensors(self.graph, node, self._fused)))

    def has_grid(self, tensor: int) -> bool:
        """Returns whether a tensor of the graph that is lowered already is quantized."""
        return tensor_key(tensor) in self.quantization

    def is_float(self, tensor: int) -> bool:
        """Returns whether a tensor is in floating point, so that no integer kernel can read it."""
        return tensor_key(tensor) in self.floating and not self.has_grid(tensor)

    def float_reason(self, node: Node) -> str | None:
        """Returns why a node must compute in floating point, whatever the class of its layer.

        Args:
            node: A node of the graph.

        Returns:
            The reason. None if the weights, inputs and outputs of the node are quantized.
        """
        if kernel_variables(node.layer) and node.path not in self.precision.weights:
            return "its weights are left in floating point by a rule"
        reads_indices = isinstance(node.layer, keras.layers.Embedding)
        if not reads_indices and any(self.is_float(tensor) for tensor in node.inputs):
            return "its input is in floating point"
        float_outputs = [
            t for t in node.outputs if self.is_read(t) and self.graph.dtypes[t].startswith("float")
        ]
        if not all(self._has_grid(tensor) for tensor in float_outputs):
            return "its output is left in floating point by a rule"
        if len(node.inputs) == 1 and shares_scale(self.graph, node):
            grid = self.quantization.get(tensor_key(node.inputs[0]))
            own = [self.precision.activations.get(t, grid) for t in float_outputs]
            if grid is not None and any(other != grid for other in own):
                return "its output was trained with another quantization than its input"
        return None

    def is_read(self, tensor: int) -> bool:
        """Returns whether a node reads a tensor of the graph, or it is an output of the model."""
        return tensor in self.graph.consumers or tensor in self.graph.outputs

    def _has_grid(self, tensor: int) -> bool:
        """Returns whether a tensor, or the one that it is fused into, is quantized."""
        if tensor in self.precision.activations:
            return True
        return self.is_fused(tensor) and self._has_grid(self.graph.consumers[tensor][0].outputs[0])

    def is_fused(self, tensor: int) -> bool:
        """Returns whether a tensor exists only inside the operator that computes its reader."""
        return tensor in self._fused

    def emit(
        self,
        tensor: int,
        value: Any,
        like: int | None = None,
        inner: bool = False,
        fixed: ActivationPrecision | None = None,
        floating: bool = False,
    ) -> Any:
        """Defines the value and the quantization of a tensor of the graph.

        Args:
            tensor: The id of the tensor.
            value: Its KerasTensor.
            like: The id of a tensor whose quantization it has if `precision` has none for it.
            inner: Whether the value is that of a tensor inside the layer that computes `tensor`.
            fixed: The quantization that all runtimes use for this tensor, if there is only one.
            floating: Whether the value is computed in floating point. If it is quantized as well,
                the next integer kernel that reads it rounds it to its grid.

        Returns:
            The KerasTensor to continue with: the value, rounded to its grid or with a marker.

        Raises:
            ConversionError: If the tensor was trained with another quantization than `fixed`.
        """
        key = tensor_key(tensor, inner)
        self.paths[key] = self.path
        precision = None if inner else self.precision.activations.get(tensor)
        if precision is None and like is not None:
            precision = self.quantization.get(tensor_key(like))
        if fixed is not None:
            self._check_fixed(tensor, precision, fixed)
            precision = fixed
        if floating:
            self.floating.add(key)
        if precision is not None:
            self.quantization[key] = precision
        if self.simulate and precision is not None:
            producer = self.graph.producers.get(tensor)
            are_means = producer is not None and computes_means(self.graph, producer)
            value = _Grid(precision, are_means and not inner)(value)
        elif not self.simulate and (precision is not None or floating):
            self.marked.append(key)
            value = Marker(len(self.marked) - 1)(value)
        self.tensors[key] = value
        if not inner:
            self.values[tensor] = value
        return value

    def forward(self, tensor: int, source: int) -> None:
        """Defines a tensor of the graph that is the same as an earlier one at inference.

        Args:
            tensor: The id of the tensor.
            source: The id of the earlier tensor.

        Raises:
            ConversionError: If the two were trained with different quantization.
        """
        key, source_key = tensor_key(tensor), tensor_key(source)
        self.paths[key] = self.path
        precision = self.precision.activations.get(tensor)
        source_precision = self.quantization.get(source_key)
        if precision is not None and source_precision not in (None, precision):
            raise ConversionError(
                f"{self.path!r} changes nothing at inference, but its input and output have "
                "different quantization. Remove the layer."
            )
        if source_precision is None and precision is not None:
            self.emit(tensor, self.values[source], floating=self.is_float(source))
            return
        if source_key in self.floating:
            self.floating.add(key)
        if source_precision is not None:
            self.quantization[key] = source_precision
        self.tensors[key] = self.values[tensor] = self.values[source]

    def _check_fixed(
        self, tensor: int, precision: ActivationPrecision | None, fixed: ActivationPrecision
    ) -> None:
        """Checks that a tensor was trained with the quantization that all runtimes use for it."""
        if precision is None or precision == fixed:
            return
        # The trained quantization of an output of the model does not matter: no layer reads it.
        if tensor not in self.graph.outputs:
            raise ConversionError(
                f"The output of {self.path!r} was trained with step {precision.step} and zero "
                f"point {precision.zero_point}, but every runtime writes it with step "
                f"{fixed.step} and zero point {fixed.zero_point}. Quantize the model again."
            )


class _Grid(keras.layers.Layer):
    """Rounds values to the grid of an activation, and clips them to its range.

    Args:
        precision: The `ActivationPrecision`.
        are_means: Whether an average pool computed the values.
    """

    def __init__(self, precision: ActivationPrecision, are_means: bool) -> None:
        super().__init__()
        self.precision, self.are_means = precision, are_means

    def call(self, x: Any) -> Any:
        low = -self.precision.zero_point
        high = 2**self.precision.bit_width - 1 - self.precision.zero_point
        ratio = keras.ops.cast(x, "float32") / self.precision.step
        integers = round_means(ratio, low, high) if self.are_means else keras.ops.round(ratio)
        return keras.ops.clip(integers, low, high) * self.precision.step

    def compute_output_spec(self, x: Any) -> keras.KerasTensor:
        # Keras takes the product with a number for a sparse tensor, on which a `Dense` layer inside
        # a custom layer would be traced in vain. The output is always dense.
        return keras.KerasTensor(x.shape, dtype=x.dtype)


# A function that adds a node of the graph to a lowered model. It raises `FloatOnly` if there is no
# integer kernel for the node.
Lowering: TypeAlias = Callable[[LoweringBuilder, Node], None]
