"""The float skeleton: a plain Keras model whose kernels are already on the integer grid.

It is rebuilt from the graph of the trained model, with every batch normalization folded, and it
is the one description of the network that the later steps go by: the converter reads its
kernels, the tensors of the converted file are recognised by its values, and its simulated twin
says what a file should compute.
"""

import contextlib
import dataclasses
from typing import Any

import keras

from dqmq_tf.export import lowering
from dqmq_tf.export.errors import ConversionError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A float model, its tensors by key, and the quantization of each.

    A key is `"a7"` for tensor 7 of the graph, or `"a7p"` for a tensor that lives inside the layer
    which makes tensor 7, such as the logits before a fused softmax.

    Attributes:
        model: Functional model from the inputs to the outputs.
        tensors: `{key: KerasTensor}` in execution order.
        quantization: `{key: ActivationPrecision}`; a tensor without entry is fused away, shares
            the quantization of its group, or is in floating point.
        weights: `FoldedWeights` in execution order, one per site.
        inputs, outputs: Keys of the model's inputs and outputs.
        input_names, output_names: Their names in the trained model, for signatures.
        float_sites: Layers with a kernel that has no precision, in floating point.
    """

    model: Any
    tensors: dict
    quantization: dict
    weights: tuple
    inputs: tuple
    outputs: tuple
    input_names: tuple
    output_names: tuple
    float_sites: tuple

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
            the file should compute. A simulated skeleton is not for conversion.

    Returns:
        `Skeleton`.

    Raises:
        UnsupportedLayerError: If a layer has no counterpart on the integer road.
        ConversionError: If shapes or precisions do not allow a file.
    """
    builder = Builder(graph, precision, simulate)
    with _in_float32():
        for node in graph.nodes:
            lowering.lower(builder, node)
        outputs = [builder.values[tensor] for tensor in graph.outputs]
        model = keras.Model(builder.inputs, outputs)
    return Skeleton(
        model=model,
        tensors=builder.tensors,
        quantization=builder.quantization,
        weights=tuple(builder.weights.values()),
        inputs=tuple(tensor_key(tensor) for tensor in graph.inputs),
        outputs=tuple(tensor_key(tensor) for tensor in graph.outputs),
        input_names=tuple(graph.input_names),
        output_names=_output_names(graph),
        float_sites=tuple(builder.float_sites),
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
        self.quantization = {}
        self.weights = {}
        self.layers = {}
        self.float_sites = []
        nodes = {node.site: node for node in graph.nodes}
        self._norms = {site: nodes[norm].layer for norm, site in graph.folds.items()}
        for tensor in graph.inputs:
            shape, dtype = graph.shapes[tensor], graph.dtypes[tensor]
            if None in shape[1:]:
                raise ConversionError(
                    f"The model's input has shape {shape}: a file holds fixed sizes. Build the "
                    "model with a fixed keras.Input(shape=...)."
                )
            if dtype != "float32":
                raise ConversionError(
                    f"The model's input has dtype {dtype}: a file takes float32. Build the model "
                    "with a float32 keras.Input."
                )
            self.inputs.append(keras.Input(shape[1:], dtype=dtype))
            self.emit(tensor, self.inputs[-1])

    def norm_after(self, site):
        """The `BatchNormalization` to fold into a site, or None."""
        return self._norms.get(site)

    def step_of(self, tensor):
        """Step of a graph tensor, 1.0 where it has no quantization yet."""
        found = self.quantization.get(tensor_key(tensor))
        return 1.0 if found is None else found.step

    def emit(self, tensor, value, like=None, inner=False, fixed=None):
        """Defines a graph tensor, and its quantization.

        Args:
            tensor: Id of the graph tensor.
            value: Its KerasTensor.
            like: Id of the tensor whose quantization it takes where it has none of its own.
            inner: The value lives inside the layer that makes the tensor.
            fixed: The one grid that runtimes write this tensor on.

        Returns:
            The KerasTensor to go on with.
        """
        key = tensor_key(tensor, inner)
        found = None if inner else self.precision.activations.get(tensor)
        if found is None and like is not None:
            found = self.quantization.get(tensor_key(like))
        if fixed is not None:
            self._check_fixed(tensor, found, fixed)
            found = fixed
        if found is not None:
            self.quantization[key] = found
            if self.simulate:
                value = rounded(value, found)
        self.tensors[key] = value
        if not inner:
            self.values[tensor] = value
        return value

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
