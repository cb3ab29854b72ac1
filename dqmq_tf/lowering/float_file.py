"""Exports the lowered model as a float `.tflite` file, and names its tensors."""

import copy
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from dqmq_tf.errors import ConversionError
from dqmq_tf.flatbuffer import ModelT, TFLiteFile, editing, merging
from dqmq_tf.flatbuffer.serialization import SignatureDefT, SubGraphT, schema
from dqmq_tf.lowering import folding
from dqmq_tf.lowering.converter_log import quiet_log
from dqmq_tf.lowering.lowered_model import LoweredModel
from dqmq_tf.lowering.operator_origins import origins_in_error
from dqmq_tf.lowering.tensor_matching import Match


def export_float(
    model: keras.Model, layer_paths: Mapping[str, str] = types.MappingProxyType({})
) -> TFLiteFile:
    """Converts a Keras model to a float `.tflite` file with a batch size of one.

    The converter gets a traced function whose variables it replaces by their values. By the way of a
    SavedModel, which is its default, it takes two to three times as long.

    Args:
        model: A functional `keras.Model`.
        layer_paths: `{name of a layer: name to use for it in errors}`.

    Returns:
        A `TFLiteFile`. Its signature has the inputs and outputs in the order of the model, with
        numbers as their names.

    Raises:
        ConversionError: If TensorFlow's converter fails.
    """
    # With an unknown batch size the file would contain SHAPE, STRIDED_SLICE and PACK operators.
    specs = [tf.TensorSpec((1, *entry.shape[1:]), entry.dtype) for entry in model.inputs]

    @tf.function(input_signature=specs, autograph=False)
    def serve(*arrays: tf.Tensor) -> list[tf.Tensor]:
        outputs: list[tf.Tensor] = keras.tree.flatten(
            model(list(arrays) if len(arrays) > 1 else arrays[0], training=False)
        )
        return outputs

    with quiet_log():
        function = serve.get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
        converter.experimental_lower_to_saved_model = False
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS,
            tf.lite.OpsSet.SELECT_TF_OPS,
        ]
        converter.experimental_enable_resource_variables = True
        converter.exclude_conversion_metadata = True  # The file gets other metadata.
        try:
            file = TFLiteFile(converter.convert())
        except Exception as error:  # The converter's own error has no public name.
            text = str(error)
            paths = origins_in_error(text, function.graph, layer_paths)
            layers = f"layer {', '.join(map(repr, paths))}" if paths else "a layer of the model"
            # Between its errors, the converter lists calls in the code of Keras.
            reason = " ".join(dict.fromkeys(re.findall("error: (.+)", text))) or text
            raise ConversionError(
                f"TensorFlow's converter cannot convert {layers}. Replace the layer, or keep it "
                f"outside the converted model. The converter says: {reason[:500]}"
            ) from error
    file.model.signatureDefs = [_signature(file.model.subgraphs[0])]
    file.edited()
    return file


def _signature(graph: SubGraphT) -> SignatureDefT:
    """Returns a signature with the inputs and outputs of a graph, whose names are numbered."""
    signature = schema().SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = merging.DEFAULT_SIGNATURE.encode(), 0
    signature.inputs = _entries("input", graph.inputs)
    signature.outputs = _entries("output", graph.outputs)
    return signature


def _entries(name: str, indices: Sequence[int]) -> list[Any]:
    """Returns the entries of a signature for tensors."""
    entries = [schema().TensorMapT() for _ in indices]
    for number, (entry, index) in enumerate(zip(entries, indices)):
        entry.name, entry.tensorIndex = f"{name}_{number}".encode(), int(index)
    return entries


def name_tensors(model: ModelT, match: Match, lowered: LoweredModel) -> None:
    """Gives every tensor a short unique name, and every operator separate weights and biases.

    An activation is named by its key in the lowered model (`"a7"`), weights by their position in
    `lowered.weights` (`"w0"`), a bias by the number of its operator among those with weights
    (`"b0"`), any other tensor by its index (`"c0"`).

    Args:
        model: The `ModelT` of the float file, changed in place.
        match: The `Match` of the file and its lowered model.
        lowered: The `LoweredModel`.
    """
    graph = model.subgraphs[0]
    names: dict[int, str] = dict(match.tensors)
    copies: dict[int, dict[int, int]] = {}
    positions = {id(weights): position for position, weights in enumerate(lowered.weights)}
    for number, (index, weights) in enumerate(match.weights.items()):
        inputs = list(graph.operators[index].inputs)
        kernel, bias = folding.OPERANDS[weights.kind]
        inputs[kernel] = _copy_for(model, graph, inputs[kernel], copies, id(weights))
        names[inputs[kernel]] = f"w{positions[id(weights)]}"
        if len(inputs) > bias and inputs[bias] >= 0:
            inputs[bias] = _copy_for(model, graph, inputs[bias], copies, index)
            names[inputs[bias]] = f"b{number}"
        graph.operators[index].inputs = inputs
    for index, stored in match.stored.items():
        names[index] = f"w{positions[id(stored)]}"
    used_names = set()
    for index, tensor in enumerate(graph.tensors):
        name = names.get(index, f"c{index}")
        while name in used_names:
            name += "_"
        used_names.add(name)
        tensor.name = name.encode()


def _copy_for(
    model: ModelT, graph: SubGraphT, index: int, copies: dict[int, dict[int, int]], owner: int
) -> int:
    """Returns the index of the copy of a constant tensor that belongs to an owner.

    Args:
        model: The `ModelT`, changed in place.
        graph: Its subgraph.
        index: The index of the tensor.
        copies: `{tensor index: {owner: index of its copy}}`, changed in place. The first owner gets
            the tensor itself, any other a new tensor with a new buffer.
        owner: The id of the weights that the tensor holds, or the index of the operator whose bias
            it is.
    """
    copy_of = copies.setdefault(index, {})
    if not copy_of:
        copy_of[owner] = index
    if owner not in copy_of:
        tensor = copy.copy(graph.tensors[index])
        data = model.buffers[tensor.buffer].data
        tensor.buffer = editing.add_buffer(model, b"" if data is None else bytes(data))
        copy_of[owner] = editing.add_tensor(graph, tensor)
    return copy_of[owner]
