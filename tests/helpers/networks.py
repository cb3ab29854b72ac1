"""Networks of a few layers, what they compute, and what their files consist of."""

import keras
import numpy as np
from helpers.frozen_models import freeze, images
from helpers.predictions import predicted

from dqmq_tf import export, flatbuffer
from dqmq_tf.lowering.lowered_model import lower_model

# Shapes of a signal and an image, and the number of words that embeddings know.
SIGNAL, IMAGE, WORDS = (12, 6), (8, 8, 3), 20


def chain(shape, *layers, seed=0):
    """A model of layers one after another, with weights that are no trivial ones."""
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input(shape)
    for layer in layers:
        x = layer(x)
    return shaken(keras.Model(inputs, x), seed)


def branches(shape, *stacks, seed=0):
    """A model that hands one input to each of several stacks of layers, each with its output."""
    keras.utils.set_random_seed(seed)
    inputs, outputs = keras.Input(shape), []
    for stack in stacks:
        x = inputs
        for layer in stack:
            x = layer(x)
        outputs.append(x)
    return shaken(keras.Model(inputs, outputs), seed)


def shaken(model, seed=0):
    """A model whose biases and statistics are not the ones that they begin with."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        kind = variable.path.split("/")[-1]
        if kind in ("bias", "beta", "moving_mean"):
            variable.assign(generator.uniform(-0.4, 0.4, variable.shape))
        elif kind in ("gamma", "moving_variance"):
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    return model


def frozen(shape, *layers, **options):
    """A frozen `DQMQModel` of a chain of layers; `options` are those of `conftest.freeze`."""
    return freeze(chain(shape, *layers), **options)


def assert_simulates(qmodel, inputs=None, ties=0.01, quanta=1):
    """Asserts that the lowered model computes what the model does, and returns it.

    Args:
        qmodel: A frozen `DQMQModel`.
        inputs: What to compare on; None for random inputs.
        ties: Share of values that may fall on the next integer: the order of sums is another one,
            and of an average of integers many lie halfway.
        quanta: By how many integers a value may be off.
    """
    lowered = lower_model(qmodel, 0, simulate=True)
    inputs = images(qmodel, 64) if inputs is None else inputs
    found = keras.tree.flatten(predicted(lowered.model, inputs))
    expected = keras.tree.flatten(predicted(qmodel, inputs))
    for key, array, other in zip(lowered.outputs, found, expected, strict=True):
        grid = lowered.quantization.get(key)
        assert array.shape == other.shape
        assert np.ptp(other) > 0
        if grid is None:
            np.testing.assert_allclose(array, other, atol=1e-4 * np.abs(other).max())
            continue
        off = np.abs(array - other) / grid.step
        apart = (off > 0.01).mean()
        assert off.max() <= quanta + 0.01 and apart <= ties, lowered.paths[key]
    return lowered


def written(qmodel, path, **options):
    """`(ModelT, report)` of the file of a frozen model."""
    report = export.convert(qmodel, path / "model.tflite", data=images(qmodel), **options)
    return flatbuffer.read((path / "model.tflite").read_bytes()), report


def operators(model):
    """`[(operator, types of its inputs, types of its outputs)]` of a file, in order."""
    graph = model.subgraphs[0]

    def types(indices):
        return tuple(flatbuffer.type_name(graph.tensors[i]) for i in indices if i >= 0)

    return [
        (flatbuffer.operator_name(model, o), types(o.inputs), types(o.outputs))
        for o in graph.operators
    ]


def names(model):
    """Names of a file's operators, in order."""
    return [name for name, _, _ in operators(model)]


def samples(model, count=64):
    """Random values for the one input of a model; numbers of words where it is of rank 2."""
    generator, (tensor,) = np.random.default_rng(0), model.inputs
    shape = (count, *tensor.shape[1:])
    if len(shape) == 2:
        return generator.integers(0, WORDS, shape).astype(tensor.dtype)
    return generator.normal(size=shape).astype("float32")
