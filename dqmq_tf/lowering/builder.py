"""The builder of a lowered graph: what each lowering function works with."""

import keras

from dqmq_tf.errors import ConversionError
from dqmq_tf.graph.fusion import fused_tensors
from dqmq_tf.graph.kernels import kernel_variables
from dqmq_tf.lowering.tensor_markers import Marker


def tensor_key(tensor, inner=False):
    """Key of a graph tensor, or of the tensor inside the layer that makes it."""
    return f"a{tensor}p" if inner else f"a{tensor}"


class LoweringBuilder:
    """Collects the lowered while the graph's nodes are lowered one after another."""

    def __init__(self, graph, precision, simulate):
        self.graph = graph
        self.precision = precision
        self.simulate = simulate
        self.folded_sites = graph.folds
        self.outputs = graph.outputs
        self.path = ""
        self.inputs = []
        self.values = {}
        self.tensors = {}
        self.paths = {}
        self.marked = []
        self.quantization = {}
        self.floating = set()
        self.weights = {}
        self.layers = {}
        self.vocabulary = {}
        self.float_layers = {}
        self._fused, self._consumers = fused_tensors(graph), graph.consumers
        nodes = {node.path: node for node in graph.nodes}
        self._folded = {path: nodes[follower].layer for follower, path in graph.folds.items()}
        for tensor in graph.inputs:
            shape, dtype = graph.shapes[tensor], graph.dtypes[tensor]
            if None in shape[1:]:
                raise ConversionError(
                    f"The model's input has shape {shape}: a file holds fixed sizes. Build the "
                    "model with a fixed keras.Input(shape=...)."
                )
            if dtype not in ("float32", "int32"):
                raise ConversionError(
                    f"The model's input has dtype {dtype}: a file takes float32, or int32 for "
                    "indices. Build the model with such a keras.Input."
                )
            self.inputs.append(keras.Input(shape[1:], dtype=dtype))
            self.emit(tensor, self.inputs[-1], floating=dtype == "float32")

    def folded_after(self, path):
        """The `BatchNormalization` or `Rescaling` to fold into a path, or None."""
        return self._folded.get(path)

    def input_step(self, tensor):
        """Step of a graph tensor, 1.0 where it has no quantization."""
        found = self.quantization.get(tensor_key(tensor))
        return 1.0 if found is None else found.step

    def is_float(self, tensor):
        """Whether a graph tensor has no grid that an integer kernel could read it by."""
        key = tensor_key(tensor)
        return key in self.floating and key not in self.quantization

    def float_reason(self, node):
        """Why no integer kernel can make a node's outputs, whatever its layer; None if one can."""
        if kernel_variables(node.layer) and node.path not in self.precision.weights:
            return "its weights are left in floating point by a rule"
        reads_indices = isinstance(node.layer, keras.layers.Embedding)
        if not reads_indices and any(self.is_float(tensor) for tensor in node.inputs):
            return "its input is in floating point"
        read = {*self._consumers, *self.outputs}
        floats = [t for t in node.outputs if t in read and self.graph.dtypes[t].startswith("float")]
        if not all(map(self._has_grid, floats)):
            return "its output is left in floating point by a rule"
        return None

    def _has_grid(self, tensor):
        """Whether a tensor, or the one that it is fused into, is quantized."""
        if tensor in self.precision.activations:
            return True
        return tensor in self._fused and self._has_grid(self._consumers[tensor][0].outputs[0])

    def is_fused(self, tensor):
        """Whether a graph tensor lives inside the kernel that makes what is behind it."""
        return tensor in self._fused

    def emit(self, tensor, value, like=None, inner=False, fixed=None, floating=False):
        """Defines a graph tensor, and its quantization.

        Args:
            tensor: Id of the graph tensor.
            value: Its KerasTensor.
            like: Id of the tensor whose quantization it takes where it has none of its own.
            inner: The value lives inside the layer that makes the tensor.
            fixed: The one grid that runtimes write this tensor on.
            floating: The value is made in floating point; where it has a grid, the next integer
                kernel puts it there.

        Returns:
            The KerasTensor to go on with.
        """
        key = tensor_key(tensor, inner)
        self.paths[key] = self.path
        found = None if inner else self.precision.activations.get(tensor)
        if found is None and like is not None:
            found = self.quantization.get(tensor_key(like))
        if fixed is not None:
            self._check_fixed(tensor, found, fixed)
            found = fixed
        if floating:
            self.floating.add(key)
        if found is not None:
            self.quantization[key] = found
        if self.simulate and found is not None:
            value = round_to_grid(value, found)
        elif not self.simulate and (found is not None or floating):
            self.marked.append(key)
            value = Marker(len(self.marked) - 1)(value)
        self.tensors[key] = value
        if not inner:
            self.values[tensor] = value
        return value

    def forward(self, tensor, source):
        """Defines a graph tensor that is another one at inference."""
        key, before = tensor_key(tensor), tensor_key(source)
        self.paths[key] = self.path
        own = self.precision.activations.get(tensor)
        found = self.quantization.get(before)
        if own is not None and found is not None and own != found:
            raise ConversionError(
                f"{self.path!r} changes nothing at inference, but its input and output have "
                "different quantization. Remove the layer."
            )
        if found is None and own is not None:
            self.emit(tensor, self.values[source], floating=self.is_float(source))
            return
        if before in self.floating:
            self.floating.add(key)
        if found is not None:
            self.quantization[key] = found
        self.tensors[key] = self.values[tensor] = self.values[source]

    def _check_fixed(self, tensor, found, fixed):
        # An output's own grid is of no consequence: nothing in the graph reads it.
        if found not in (None, fixed) and tensor not in self.outputs:
            raise ConversionError(
                f"The output of {self.path!r} was trained with step {found.step} and zero point "
                f"{found.zero_point}, but every runtime writes it with step {fixed.step} and zero "
                f"point {fixed.zero_point}. Quantize the model again."
            )


def round_to_grid(values, precision):
    """Values on the grid of an activation.

    Args:
        values: Tensor.
        precision: `ActivationPrecision`.

    Returns:
        Tensor of the same shape, clipped to the grid's ends.
    """
    levels = 2**precision.bit_width - 1
    integers = keras.ops.round(values / precision.step) + precision.zero_point
    integers = keras.ops.clip(integers, 0, levels)
    return (integers - precision.zero_point) * precision.step
