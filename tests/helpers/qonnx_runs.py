"""Runs QONNX files in qonnx's own executor."""

import copy

import keras
import numpy as np
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.util.inference_cost import inference_cost


def run(path_or_model, *inputs):
    """Returns the outputs of a file for inputs with the channels last, as a list of arrays.

    The executor starts a session for each node, so all samples go through it as one batch.
    """
    model = copy.deepcopy(path_or_model)
    if not isinstance(model, ModelWrapper):
        model = ModelWrapper(str(path_or_model))
    # `ChangeBatchSize` of qonnx changes the first output only.
    for entry in (*model.graph.input, *model.graph.output):
        entry.type.tensor_type.shape.dim[0].dim_value = len(inputs[0])
    del model.graph.value_info[:]
    model = model.transform(InferShapes())
    names = [entry.name for entry in model.graph.input]
    arrays = [
        np.moveaxis(x, -1, 1) if x.ndim > 2 else x for x in (x.astype("float32") for x in inputs)
    ]
    return list(execute_onnx(model, dict(zip(names, arrays))).values())


def equal_outputs(outputs, expected):
    """Returns in how many samples all values are bit for bit equal."""
    axes = tuple(range(1, expected.ndim))
    return int(np.all(outputs == expected, axis=axes).sum())


def cost_by_qonnx(path):
    """Returns `(bit operations, mean bit-width)` of a file by qonnx's `inference_cost`."""
    cost = inference_cost(str(path), discount_sparsity=False)["total_cost"]
    return cost["total_bops"], (cost["total_bops"] / cost["total_macs"]) ** 0.5


def cost_by_policy(qmodel, profile=0):
    """Returns `(bit operations, mean bit-width)` of the network of a frozen profile.

    The cost of a decision also has the encoder and the policy, which are not in the file.
    """
    costs, bits = qmodel._parts.costs, qmodel._parts.policy.assigned.numpy()[profile]
    decided = len(costs.decided)
    bit_ops = costs.bit_ops(bits[decided:], bits[:decided]) - costs.overhead
    return bit_ops, (bit_ops / costs.macs.sum()) ** 0.5


def predicted(qmodel, images):
    """Returns the predictions of a model as arrays, with the executor's layout."""
    outputs = keras.tree.flatten(qmodel(keras.ops.convert_to_tensor(images), training=False))
    arrays = map(keras.ops.convert_to_numpy, outputs)
    return [np.moveaxis(y, -1, 1) if y.ndim > 2 else y for y in arrays]
