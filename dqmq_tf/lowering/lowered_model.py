"""The float lowered: a plain Keras model whose kernels are already on the integer grid.

It is rebuilt from the graph of the trained model, with every batch normalization folded, and it
is the one description of the network that the later steps go by: the converter reads its kernels,
its markers tell which tensor of the converted file is which, and its simulated twin says what a
file should compute.
"""

import contextlib
import dataclasses
from typing import Any

import keras

from dqmq_tf import graph as graphs
from dqmq_tf.lowering import rules
from dqmq_tf.lowering.builder import LoweringBuilder, tensor_key
from dqmq_tf.runtimes.random_inputs import random_inputs


def probe_inputs(lowered, count):
    """Random inputs that cover the ranges that the inputs are quantized for.

    Args:
        lowered: `LoweredModel`.
        count: Batch size.

    Returns:
        List of arrays of the inputs' types.
    """
    tensors = [lowered.tensors[key] for key in lowered.inputs]
    shapes = [(count, *tensor.shape[1:]) for tensor in tensors]
    arrays = random_inputs(shapes, [_input_range(lowered, key) for key in lowered.inputs])
    return [array.astype(tensor.dtype) for array, tensor in zip(arrays, tensors)]


def _input_range(lowered, key):
    """Range of an input, as `random_inputs` takes it."""
    if key in lowered.vocabulary:
        return range(lowered.vocabulary[key])
    precision = lowered.quantization.get(key)
    if precision is None:
        return None
    low = -precision.step * precision.zero_point
    return low, low + precision.step * (2**precision.bit_width - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoweredModel:
    """A float model, its tensors by key, and the quantization of each.

    A key is `"a7"` for tensor 7 of the graph, or `"a7p"` for a tensor that lives inside the layer
    which makes tensor 7, such as the sigmoid of a silu.

    Attributes:
        model: Functional model from the inputs to the outputs.
        tensors: `{key: KerasTensor}` in execution order.
        paths: `{key: layer that makes the tensor}`; inputs have none.
        marked: Keys in the order of their markers' numbers; a tensor that is fused away has none.
        quantization: `{key: ActivationPrecision}`; a tensor without entry is fused away, is in
            floating point, or holds no real numbers.
        floating: Keys of the tensors that are made in floating point.
        weights: `FoldedWeights` and `StoredWeights` in execution order, one per variable.
        inputs, outputs: Keys of the model's inputs and outputs.
        input_names, output_names: Their names in the trained model, for signatures.
        vocabulary: `{key of an input that holds indices: how many there are}`.
        float_layers: `{layer that computes in floating point: why}`.
    """

    model: Any
    tensors: dict
    paths: dict
    marked: tuple
    quantization: dict
    floating: frozenset
    weights: tuple
    inputs: tuple
    outputs: tuple
    input_names: tuple
    output_names: tuple
    vocabulary: dict
    float_layers: dict

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


def lower_graph(graph, precision, simulate=False, output_names=None):
    """Rebuilds a traced model as a float lowered.

    Args:
        graph: `dqmq_tf.graph.Graph` of the float model.
        precision: `Precision` of the same graph.
        simulate: Round every quantized activation to its grid, so that the model computes what
            the file should compute. A simulated lowered has no markers: it is not for conversion.
        output_names: Names of the outputs, in the model's order. None for the paths of the layers
            that make them.

    Returns:
        `LoweredModel`.

    Raises:
        UnsupportedLayerError: If a layer has no counterpart in a file.
        ConversionError: If shapes or precisions do not allow a file.
    """
    with _in_float32():
        builder = LoweringBuilder(graph, precision, simulate)
        for node in graph.nodes:
            rules.lower(builder, node)
        outputs = [builder.values[tensor] for tensor in graph.outputs]
        model = keras.Model(builder.inputs, outputs)
    return LoweredModel(
        model=model,
        tensors=builder.tensors,
        paths=builder.paths,
        marked=tuple(builder.marked),
        quantization=builder.quantization,
        floating=frozenset(builder.floating),
        weights=tuple(builder.weights.values()),
        inputs=tuple(tensor_key(tensor) for tensor in graph.inputs),
        outputs=tuple(tensor_key(tensor) for tensor in graph.outputs),
        input_names=tuple(graph.input_names),
        output_names=_unique(_output_paths(graph) if output_names is None else output_names),
        vocabulary=builder.vocabulary,
        float_layers=dict(builder.float_layers),
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


def _output_paths(graph):
    """Returns the path of the layer that makes each output."""
    producers = graph.producers
    return [producers[t].path if t in producers else "output" for t in graph.outputs]


def _unique(names):
    """Returns the names with a number appended where one occurs again."""
    result = []
    for base in names:
        name = base
        while name in result:
            name = f"{base}_{len(result)}"
        result.append(name)
    return tuple(result)


def lower_model(qmodel, profile, simulate=False):
    """Returns the `LoweredModel` of a frozen model's precision profile."""
    graph = graphs.trace(qmodel.float_model())
    return lower_graph(graph, qmodel.precision(profile), simulate, qmodel.output_names)
