"""Scores a trained network on the test mixtures, and measures the cost of its bits."""

import contextlib
import dataclasses

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf import quality

_BATCH = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """The score of one network on one test mixture.

    Attributes:
        accuracy: Share of the images that are classified correctly.
        cost: Mean bit operations per image; None if all images cost the same.
        cells: `{"kind:severity": [images, correctly classified, mean cost]}`.
    """

    accuracy: float
    cost: float | None
    cells: dict


def predictor(model):
    """Returns a function from float images `[N, ...]` to class probabilities `[N, classes]`."""
    run = tf.function(lambda x: model(x, training=False))

    def predict(x):
        parts = [run(tf.constant(x[i : i + _BATCH])) for i in range(0, len(x), _BATCH)]
        return np.concatenate([keras.ops.convert_to_numpy(part) for part in parts])

    return predict


def score(predict, images, cost_of=None):
    """Returns the `Score` of a network.

    Args:
        predict: See `predictor`.
        images: A `datasets.Images`.
        cost_of: Function from float images to the bit operations of each, `[N]`; None if all images
            cost the same.
    """
    x, y = images.first(len(images))
    correct = predict(x).argmax(axis=-1) == y
    costs = np.zeros(len(y)) if cost_of is None else cost_of(x)
    cells = {}
    for kind, severity in sorted(set(zip(images.kind.tolist(), images.severity.tolist()))):
        members = (images.kind == kind) & (images.severity == severity)
        name = "clean" if kind == 0 else f"{quality.KINDS[kind - 1]}:{severity}"
        cells[name] = [
            int(members.sum()), int(correct[members].sum()), round(float(costs[members].mean()), 1),
        ]  # fmt: skip
    return Score(
        accuracy=float(correct.mean()),
        cost=None if cost_of is None else float(costs.mean()),
        cells=cells,
    )


def per_image_bit_ops(qmodel):
    """Returns a function from float images to the bit operations of each, `[N]`."""
    costs, decided = qmodel._parts.costs, len(qmodel._parts.costs.decided)

    def cost_of(x):
        bits = qmodel.decisions(x).bits
        return costs.bit_ops_of_each(bits[:, decided:], bits[:, :decided])

    return cost_of


@contextlib.contextmanager
def shuffled(qmodel, bits_alone=False, seed=0):
    """Makes a model use, for each image, the quality of another image of the batch.

    Args:
        qmodel: A `DQMQModel` whose weights have the same bits for all images.
        bits_alone: Whether only the bits are affected. The normalization then still depends on the
            image's own quality.
        seed: Seed of the permutation.
    """
    order = np.random.default_rng(seed).permutation(_BATCH)
    layer = qmodel.get_layer("bit_width_policy" if bits_alone else "quality_encoder")
    call = layer.call

    def mixed(values):
        # The last batch can be smaller.
        here = tf.boolean_mask(order, order < tf.shape(values)[0])
        return keras.ops.take(values, here, axis=0)

    def decided(z, training=False):
        found = call(z, training=training)
        return {**found, "activations": mixed(found["activations"])}

    layer.call = decided if bits_alone else lambda x: mixed(call(x))
    try:
        yield
    finally:
        layer.call = call


def litert_predictor(path):
    """Returns a function from float images to the outputs of a file in LiteRT, on one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    entry, result = (part[0]["index"] for part in (
        interpreter.get_input_details(), interpreter.get_output_details()
    ))  # fmt: skip

    def predict(x):
        found = []
        for image in x:
            interpreter.set_tensor(entry, image[None])
            interpreter.invoke()
            found.append(interpreter.get_tensor(result)[0])
        return np.stack(found)

    return predict
