"""The lowered model: a plain float Keras model that computes what the file will compute.

It is rebuilt from the graph of the trained model. Its weights are integers times a scale, and batch
norms are folded into them. All later steps depend on it: TensorFlow's converter converts it, its
markers identify the tensors of the converted file, and its simulated version defines what the file
should compute.
"""

import contextlib
import dataclasses
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from dqmq_tf import graph as graphs
from dqmq_tf.graph import Graph
from dqmq_tf.graph.deep_graphs import deep_graphs
from dqmq_tf.graph.kernels import variable_names
from dqmq_tf.graph.plain_pixels import plain_pixel_inputs
from dqmq_tf.lowering import rules
from dqmq_tf.lowering.builder import LoweringBuilder, tensor_key
from dqmq_tf.lowering.folding import FoldedWeights
from dqmq_tf.lowering.stored_weights import StoredWeights
from dqmq_tf.precision import ActivationPrecision, Precision
from dqmq_tf.runtimes.random_inputs import random_inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoweredModel:
    """A float model, its tensors by key, and the quantization of each.

    The key of tensor 7 of the graph is `"a7"`. `"a7p"` is the key of a tensor inside the layer that
    computes tensor 7, such as the sigmoid of a silu.

    Attributes:
        model: A functional `keras.Model` from the inputs to the outputs.
        tensors: `{key: KerasTensor}` in execution order.
        paths: `{key: path of the layer that computes the tensor}`, `""` for an input.
        marked: The keys of the tensors with markers, in the order of the markers' numbers.
        quantization: `{key: ActivationPrecision}`. A tensor has no entry if it is fused away, is in
            floating point, or holds indices.
        floating: The keys of the tensors that are computed in floating point.
        weights: The `FoldedWeights` and `StoredWeights`, one per variable, in execution order.
        inputs, outputs: The keys of the model's inputs and outputs.
        input_names, output_names: Their names in the trained model, for the file's signature.
        precision: The `Precision` that the model was lowered with.
        vocabulary: `{key of an input that holds indices: number of different indices}`.
        layer_paths: `{name of a layer of the model that computes in floating point: its path}`.
        float_layers: `{path of a layer that computes in floating point: reason}`.
        pixels: The keys of the inputs that the trained model takes as uint8.
        plain_pixels: `{name of an image input that takes pixels from 0 to 255: channels}`.
    """

    model: keras.Model
    tensors: dict[str, Any]
    paths: dict[str, str]
    marked: tuple[str, ...]
    quantization: dict[str, ActivationPrecision]
    floating: frozenset[str]
    weights: tuple[FoldedWeights | StoredWeights, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    precision: Precision
    vocabulary: dict[str, int]
    layer_paths: dict[str, str]
    float_layers: dict[str, str]
    pixels: frozenset[str]
    plain_pixels: dict[str, int]

    @deep_graphs()
    def values(self, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        """Runs the model and returns every tensor.

        Args:
            inputs: The inputs, one array per input of the model, with a batch axis.

        Returns:
            `{key: array}`.
        """
        unique = {id(tensor): tensor for tensor in self.tensors.values()}
        probe = keras.Model(self.model.inputs, list(unique.values()))
        results = probe([keras.ops.convert_to_tensor(array) for array in inputs], training=False)
        computed = dict(zip(unique, keras.tree.flatten(results)))
        return {
            key: keras.ops.convert_to_numpy(computed[id(tensor)])
            for key, tensor in self.tensors.items()
        }


def lower_model(qmodel: Any, profile: int, simulate: bool = False) -> LoweredModel:
    """Lowers a frozen model.

    Args:
        qmodel: A frozen `DQMQModel`.
        profile: The index of the precision profile.
        simulate: See `lower_graph`.

    Returns:
        The `LoweredModel` of the profile.
    """
    graph = graphs.trace(qmodel.float_model())
    wrappers = qmodel._parts.wrappers
    names = {path: list(variable_names(wrapper.layer)) for path, wrapper in wrappers.items()}
    return lower_graph(graph, qmodel.precision(profile), simulate, qmodel.output_names, names)


@deep_graphs()
def lower_graph(
    graph: Graph,
    precision: Precision,
    simulate: bool = False,
    output_names: Iterable[str] | None = None,
    trained_names: Mapping[str, Sequence[str]] = types.MappingProxyType({}),
) -> LoweredModel:
    """Lowers a traced model.

    Args:
        graph: The inlined `dqmq_tf.graph.Graph` of the float model.
        precision: The `Precision` of the same graph.
        simulate: Whether to round every quantized activation to its grid, so that the model
            computes what the file should compute. Such a model has no markers and cannot be
            converted.
        output_names: See `output_names_of`.
        trained_names: See `LoweringBuilder`.

    Returns:
        A `LoweredModel`.

    Raises:
        UnsupportedLayerError: If a file cannot hold a layer.
        ConversionError: If a file cannot hold a shape, a dtype or a quantization.
    """
    with as_in_files():
        builder = LoweringBuilder(graph, precision, simulate, trained_names)
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
        output_names=output_names_of(graph, output_names),
        precision=precision,
        vocabulary=builder.vocabulary,
        layer_paths=builder.layer_paths,
        float_layers=dict(builder.float_layers),
        pixels=frozenset(builder.pixels),
        plain_pixels=plain_pixel_inputs(graph),
    )


def output_names_of(graph: Graph, names: Iterable[str] | None = None) -> tuple[str, ...]:
    """Returns the names of the outputs in a file.

    Args:
        graph: The `dqmq_tf.graph.Graph` of the model.
        names: The names to use unless the model returns a dictionary, whose keys they are then. None
            for the paths of the layers that compute the outputs.
    """
    structure = graph.output_structure
    if isinstance(structure, dict) and all(
        isinstance(key, str) and isinstance(tensor, int) for key, tensor in structure.items()
    ):
        keys = {tensor: key for key, tensor in structure.items()}
        if set(keys) == set(graph.outputs) and len(keys) == len(graph.outputs):
            return tuple(keys[tensor] for tensor in graph.outputs)
    return _unique(_output_paths(graph) if names is None else names)


def probe_inputs(lowered: LoweredModel, count: int) -> list[np.ndarray]:
    """Returns random inputs that cover the ranges that the inputs are quantized for.

    Args:
        lowered: A `LoweredModel`.
        count: The batch size.

    Returns:
        A list of arrays with the dtypes of the inputs.
    """
    tensors = [lowered.tensors[key] for key in lowered.inputs]
    shapes = [(count, *tensor.shape[1:]) for tensor in tensors]
    arrays = random_inputs(shapes, [_input_range(lowered, key) for key in lowered.inputs])
    return [array.astype(tensor.dtype) for array, tensor in zip(arrays, tensors)]


def _input_range(lowered: LoweredModel, key: str) -> tuple[float, float] | range | None:
    """Returns the range of an input, in the form that `random_inputs` takes."""
    if key in lowered.vocabulary:
        return range(lowered.vocabulary[key])
    precision = lowered.quantization.get(key)
    if precision is None:
        return None
    if key in lowered.pixels:
        return range(2**precision.bit_width)
    low = -precision.step * precision.zero_point
    return low, low + precision.step * (2**precision.bit_width - 1)


@contextlib.contextmanager
def as_in_files() -> Iterator[None]:
    """Creates layers as files have them, whatever the defaults of the user: float32, channels last."""
    policy, data_format = keras.config.dtype_policy(), keras.config.image_data_format()
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_image_data_format(data_format)


def _output_paths(graph: Graph) -> list[str]:
    """Returns the path of the layer that computes each output."""
    producers = graph.producers
    return [producers[t].path if t in producers else "output" for t in graph.outputs]


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names with a number appended to each repeated one."""
    result: list[str] = []
    for base in names:
        name = base
        while name in result:
            name = f"{base}_{len(result)}"
        result.append(name)
    return tuple(result)
