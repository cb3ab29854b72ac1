"""What `fit` looks for in its data: the batches to calibrate on, and values that are not finite."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf import inputs


def peek(x: Any, model: keras.Model, enough: Callable[[list[np.ndarray]], int]) -> tuple[Any, Any]:
    """Returns the training data, and the inputs of its first batches, as one batch.

    A generator is put together again. Arrays are returned as they are.

    Args:
        x: The training data, in any form that `fit` takes.
        model: The model that takes the inputs.
        enough: A function of the inputs of the first batch, one array for each input of the model. It
            returns the number of samples after which no more batches are read.

    Raises:
        ValueError: If there is no first batch, or if it does not fit the model's inputs.
    """
    if isinstance(x, keras.utils.PyDataset):
        indices = itertools.count() if x.num_batches is None else range(x.num_batches)
        elements: Iterator[Any] = (x[index] for index in indices)
    elif hasattr(x, "__next__"):
        elements = x
    elif inputs.is_dataset(x):
        elements = iter(x)
    else:
        return x, x
    taken: list[Any] = []
    parts: list[list[np.ndarray]] = []
    samples = wanted = 0
    for element in elements:
        taken.append(element)
        arrays, _, is_batch = inputs.matched(element, model, "x")
        if not is_batch:
            raise ValueError(
                "`x` has single samples: put them into batches with x.batch(batch_size)."
            )
        arrays = inputs.cast(arrays, model)
        # Images of different sizes cannot be in one batch.
        if parts and [a.shape[1:] for a in arrays] != [a.shape[1:] for a in parts[0]]:
            break
        if not parts:
            wanted = enough(arrays)
        parts.append(arrays)
        samples += len(arrays[0])
        if samples >= wanted:
            break
    if not parts:
        raise ValueError("The dataset is empty: there is no batch to train on.")
    if elements is x:
        x = _chained(taken, x)
    return x, (inputs.structured(inputs.joined(parts), model),)


def finite(x: Any) -> Any:
    """Returns the inputs with a check that fails at run time if they hold NaN or infinity."""

    def check(leaf: Any) -> tf.Tensor:
        # In eager mode, `train_on_batch` passes NumPy arrays.
        if isinstance(leaf, np.ndarray):
            leaf = tf.convert_to_tensor(leaf)
        if not leaf.dtype.is_floating:
            return leaf
        return tf.debugging.check_numerics(leaf, "an input holds NaN or infinity")

    return keras.tree.map_structure(check, x)


def checked_finite(arrays: list[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
    """Returns the arrays of inputs, which hold neither NaN nor infinity.

    Args:
        arrays: One array per input.
        names: The name of each input.

    Raises:
        ValueError: If they do.
    """
    for name, array in zip(names, arrays):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise ValueError(
                f"Input {name!r} holds {count} values that are NaN or infinite in the first batch "
                f"(shape {array.shape}): clean the data first."
            )
    return arrays


def _chained(first: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    # Keras takes generators, not iterators of other kinds.
    yield from itertools.chain(first, rest)
