"""What of a model follows the quality of each input, and the model if it follows another input."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.graph import trace
from dqmq_tf.graph.graph import Node, replay
from dqmq_tf.inputs import Part, joined_parts
from dqmq_tf.layers.exposure import Exposure
from dqmq_tf.model import DQMQModel

_SEED = 0


def followers(qmodel: DQMQModel) -> tuple[str, ...]:
    """Returns phrases for what follows the quality of each input, in a model's current phase."""
    policy, affines = qmodel._parts.policy, len(qmodel._parts.affines)
    found = {
        "sample": ["the bits of activations"],
        "profile": ["the precision profile"],
        "static": [],
    }[policy.bits_vary_by]
    if affines:
        found.append(f"the scale and shift of {affines} batch normalizations")
    exposures = len(_exposures(qmodel))
    if exposures:
        found.append("exposure" if exposures == 1 else f"{exposures} exposures")
    return tuple(found)


def in_company(batches: Iterable[Part]) -> Iterator[Part]:
    """Yields batches of at least two inputs, which can take each other's quality.

    A batch of one input is joined with the next one or, at the end, with the one before. It stays
    alone if none of them has its shapes.

    Args:
        batches: What `labeled_batches` yields.
    """
    held: list[Part] = []
    for batch in batches:
        if held and is_alone(held[-1]) and _are_joinable(held[-1], batch):
            held[-1] = joined_parts([held[-1], batch])
        else:
            held.append(batch)
        if len(held) > 2:
            yield held.pop(0)
    if len(held) == 2 and is_alone(held[1]) and _are_joinable(*held):
        held = [joined_parts(held)]
    yield from held


def is_alone(batch: Part) -> bool:
    """Whether a batch has only one input."""
    return len(batch[0][0]) == 1


def _are_joinable(batch: Part, other: Part) -> bool:
    """Whether two batches, of inputs and of what follows them, differ in the size of a batch alone."""
    shapes, others = (
        [np.shape(leaf) for leaf in keras.tree.flatten(part) if leaf is not None]
        for part in (batch, other)
    )
    # A number has no axis along which it could be joined.
    return all(map(len, shapes + others)) and [s[1:] for s in shapes] == [s[1:] for s in others]


class ShuffledModel:
    """Predicts with a model as if each input had the quality of another input of its batch.

    The quality embedding of an input, and the black point and gain of each `Exposure`, become those of
    another input. All else is computed from the input itself. The accuracy that this costs is what
    following the quality brings.

    Args:
        qmodel: A `DQMQModel` of which `followers` finds something.
    """

    def __init__(self, qmodel: DQMQModel) -> None:
        parts = qmodel._parts
        self._graph = trace(parts.instrumented)
        names = [f"{prefix}{part}" for prefix in _exposures(qmodel) for part in Exposure.STEERING]
        quantizers = dict(zip((point.name for point in parts.costs.activations), parts.quantizers))
        steering = [parts.encoder, *(quantizers[name] for name in names if name in quantizers)]
        self._steering = {id(layer) for layer in steering}
        self._random = np.random.default_rng(_SEED)
        self._run = tf.function(self._replay, reduce_retracing=True)

    def predict_on_batch(self, x: Sequence[Any]) -> Any:
        """Returns the outputs for a batch, as arrays in the structure of the model's outputs.

        Args:
            x: The inputs of the model, one array `[N, ...]` each.
        """
        count = len(x[0])
        # Each input takes the place of the next one in a random order, so that none keeps its own.
        order = self._random.permutation(count)
        others = np.empty_like(order)
        others[order] = np.roll(order, 1)
        outputs = self._run([ops.convert_to_tensor(array) for array in x], tf.constant(others))
        return keras.tree.map_structure(ops.convert_to_numpy, outputs)

    def _replay(self, x: Sequence[tf.Tensor], others: tf.Tensor) -> Any:
        def call(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if isinstance(node.layer, keras.layers.Layer):
                kwargs = {**kwargs, "training": False}
            outputs = node.layer(*args, **kwargs)
            return tf.gather(outputs, others) if id(node.layer) in self._steering else outputs

        return replay(self._graph, dict(zip(self._graph.inputs, x)), call)["outputs"]


def shuffled_model(qmodel: DQMQModel) -> ShuffledModel | None:
    """Returns the `ShuffledModel` of a model. None if nothing follows the quality."""
    return ShuffledModel(qmodel) if followers(qmodel) else None


def _exposures(qmodel: DQMQModel) -> list[str]:
    """Returns the beginning of the names of the parts of each `Exposure` in a model."""
    return Exposure.prefixes({node.path for node in qmodel._parts.graph.nodes})
