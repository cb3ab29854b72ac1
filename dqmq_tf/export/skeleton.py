"""The float skeleton: a plain Keras model whose kernels are already on the integer grid.

It is rebuilt from the graph of the trained model, with every batch normalization folded, and it
is the one description of the network that the later steps go by: the converter reads its kernels,
its markers tell which tensor of the converted file is which, and its simulated twin says what a
file should compute.
"""

import contextlib
import dataclasses
from typing import Any

import keras

from dqmq_tf.export import lowering
from dqmq_tf.export.errors import ConversionError
from dqmq_tf.export.markers import Marker
from dqmq_tf.kernels import kernel_variables
from dqmq_tf.points import fused_tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A float model, its tensors by key, and the quantization of each.

    A key is `"a7"` for tensor 7 of the graph, or `"a7p"` for a tensor that lives inside the layer
    which makes tensor 7, such as the sigmoid of a silu.

    Attributes:
        model: Functional model from the inputs to the outputs.
        tensors: `{key: KerasTensor}` in execution order.
        sites: `{key: layer that makes the tensor}`; inputs have none.
        marked: Keys in the order of their markers' numbers; a tensor that is fused away has none.
        quantization: `{key: ActivationPrecision}`; a tensor without entry is fused away, is in
            floating point, or holds no real numbers.
        floating: Keys of the tensors that are made in floating point.
        weights: `FoldedWeights` and `StoredWeights` in execution order, one per variable.
        inputs, outputs: Keys of the model's inputs and outputs.
        input_names, output_names: Their names in the trained model, for signatures.
        vocabulary: `{key of an input that holds indices: how many there are}`.
        float_sites: `{layer that computes in floating point: why}`.
    """

    model: Any
    tensors: dict
    sites: dict
    marked: tuple
    quantization: dict
    floating: frozenset
    weights: tuple
    inputs: tuple
    outputs: tuple
    input_names: tuple
    output_names: tuple
    vocabulary: dict
    float_sites: dict

    def values(self, inputs):
        """Runs the model and returns every tensor.

        Args:
            inputs: Arrays, one per model input, with a batch dimension.

        Returns:
            `{key: array}`.
        """
        unique = {id(tensor): tensor for tensor in self.tensors.values()}
        probe = keras.Model(self.model.inputs, list(unique.values()))
        results = probe([keras.ops.convert_to_tensor(array) for array in inputs], training=False)
        found = dict(zip(unique, keras.tree.flatten(results)))
        return {
            key: keras.ops.convert_to_numpy(found[id(tensor)])
            for key, tensor in self.tensors.items()
        }


def build_skeleton(graph, precision, simulate=False):
    """Rebuilds a traced model as a float skeleton.

    Args:
        graph: `dqmq_tf.graph.Graph` of the float model.
        precision: `Precision` of the same graph.
        simulate: Round every quantized activation to its grid, so that the model computes what
            the file should compute. A simulated skeleton has no markers: it is not for conversion.

    Returns:
        `Skeleton`.

    Raises:
        UnsupportedLayerError: If a layer has no counterpart in a file.
        ConversionError: If shapes or precisions do not allow a file.
    """
    with _in_float32():
        builder = Builder(graph, precision, simulate)
        for node in graph.nodes:
            lowering.lower(builder, node)
        outputs = [builder.values[tensor] for tensor in graph.outputs]
        model = keras.Model(builder.inputs, outputs)
    return Skeleton(
        model=model,
        tensors=builder.tensors,
        sites=builder.sites,
        marked=tuple(builder.marked),
        quantization=builder.quantization,
        floating=frozenset(builder.floating),
        weights=tuple(builder.weights.values()),
        inputs=tuple(tensor_key(tensor) for tensor in graph.inputs),
        outputs=tuple(tensor_key(tensor) for tensor in graph.outputs),
        input_names=tuple(graph.input_names),
        output_names=_output_names(graph),
        vocabulary=builder.vocabulary,
        float_sites=dict(builder.float_sites),
    )


@contextlib.contextmanager
def _in_float32():
    """New layers compute in float32, whatever policy of mixed precision the training runs under."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def _output_names(graph):
    """Site that makes each output, numbered where one would stand twice."""
    producers, names = graph.producers, []
    for tensor in graph.outputs:
        node = producers.get(tensor)
        base = name = "output" if node is None else node.site
        while name in names:
            name = f"{base}_{len(names)}"
        names.append(name)
    return tuple(names)


def tensor_key(tensor, inner=False):
    """Key of a graph tensor, or of the tensor inside the layer that makes it."""
    return f"a{tensor}p" if inner else f"a{tensor}"


class Builder:
    """Collects the skeleton while the graph's nodes are lowered one after another."""

    def __init__(self, graph, precision, simulate):
        self.graph = graph
        self.precision = precision
        self.simulate = simulate
        self.folded_sites = graph.folds
        self.outputs = graph.outputs
        self.site = ""
        self.inputs = []
        self.values = {}
        self.tensors = {}
        self.sites = {}
        self.marked = []
        self.quantization = {}
        self.floating = set()
        self.weights = {}
        self.layers = {}
        self.vocabulary = {}
        self.float_sites = {}
        self._fused, self._consumers = fused_tensors(graph), graph.consumers
        nodes = {node.site: node for node in graph.nodes}
        self._folded = {site: nodes[follower].layer for follower, site in graph.folds.items()}
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

    def folded_after(self, site):
        """The `BatchNormalization` or `Rescaling` to fold into a site, or None."""
        return self._folded.get(site)

    def step_of(self, tensor):
        """Step of a graph tensor, 1.0 where it has no quantization."""
        found = self.quantization.get(tensor_key(tensor))
        return 1.0 if found is None else found.step

    def is_float(self, tensor):
        """Whether a graph tensor has no grid that an integer kernel could read it by."""
        key = tensor_key(tensor)
        return key in self.floating and key not in self.quantization

    def why_float(self, node):
        """Why no integer kernel can make a node's outputs, whatever its layer; None if one can."""
        if kernel_variables(node.layer) and node.site not in self.precision.weights:
            return "its weights are left in floating point by a rule"
        reads_indices = isinstance(node.layer, keras.layers.Embedding)
        if not reads_indices and any(self.is_float(tensor) for tensor in node.inputs):
            return "its input is in floating point"
        floats = [t for t in node.outputs if self.graph.dtypes[t].startswith("float")]
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
        self.sites[key] = self.site
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
            value = rounded(value, found)
        elif not self.simulate and (found is not None or floating):
            self.marked.append(key)
            value = Marker(len(self.marked) - 1)(value)
        self.tensors[key] = value
        if not inner:
            self.values[tensor] = value
        return value

    def pass_on(self, tensor, source):
        """Defines a graph tensor that is another one at inference."""
        key, before = tensor_key(tensor), tensor_key(source)
        self.sites[key] = self.site
        own = self.precision.activations.get(tensor)
        found = self.quantization.get(before)
        if own is not None and found is not None and own != found:
            raise ConversionError(
                f"{self.site!r} changes nothing at inference, but its input and output have "
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
                f"The output of {self.site!r} was trained with step {found.step} and zero point "
                f"{found.zero_point}, but every runtime writes it with step {fixed.step} and zero "
                f"point {fixed.zero_point}. Quantize the model again."
            )


def rounded(values, precision):
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
