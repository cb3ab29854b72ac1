"""What users pass as data: arrays, datasets and generators, checked and batched."""

import itertools

import keras
import numpy as np
import tensorflow as tf


def collect(data, samples):
    """Inputs of a data set as a list of float arrays, one per model input.

    Args:
        data: Array, list of arrays, or `tf.data.Dataset`, as `verify` takes it.
        samples: At most so many inputs are taken.

    Returns:
        List of arrays with a batch dimension.
    """
    if hasattr(data, "as_numpy_iterator"):
        return _from_dataset(data, samples)
    arrays = data if isinstance(data, (list, tuple)) else [data]
    arrays = [np.asarray(array, np.float32)[:samples] for array in arrays]
    if not arrays or not len(arrays[0]):
        raise ValueError("data holds no inputs: pass at least one.")
    return arrays


def _from_dataset(data, samples):
    spec, batches, count = data.element_spec, [], 0
    first = spec[0] if isinstance(spec, tuple) else spec
    inner = first[0] if isinstance(first, (list, tuple)) else first
    batched = len(inner.shape) and inner.shape[0] is None or len(inner.shape) >= 4
    for element in data.as_numpy_iterator():
        images = element[0] if isinstance(spec, tuple) else element
        arrays = list(images) if isinstance(images, (list, tuple)) else [images]
        arrays = [array if batched else array[None] for array in arrays]
        batches.append(arrays)
        count += len(arrays[0])
        if count >= samples:
            break
    if not batches:
        raise ValueError("data holds no inputs: pass at least one.")
    return [np.concatenate(parts)[:samples].astype(np.float32) for parts in zip(*batches)]


def steps_per_epoch(x, batch_size):
    """Returns the number of batches in an epoch, or None if it cannot be known without reading."""
    if isinstance(x, tf.data.Dataset):
        count = int(x.cardinality().numpy())
        return count if count >= 0 else None
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches
    if hasattr(x, "__next__"):
        return None
    leaves = keras.tree.flatten(x)
    if leaves and hasattr(leaves[0], "shape") and len(leaves[0].shape):
        return -(-int(leaves[0].shape[0]) // (batch_size or 32))
    return None


def finite(x):
    """The inputs, with an error at run time if they hold NaN or infinity."""

    def check(leaf):
        if not leaf.dtype.is_floating:
            return leaf
        return tf.debugging.check_numerics(leaf, "the images hold NaN or infinity")

    return keras.tree.map_structure(check, x)


def batches(data, size=256):
    """Yields batches of images from an array or from a dataset of images or `(image, label)`."""
    if isinstance(data, tf.data.Dataset):
        for element in data:
            yield element[0] if isinstance(element, tuple) else element
        return
    count = len(keras.tree.flatten(data)[0])
    for start in range(0, count, size):
        stop = start + size
        yield keras.tree.map_structure(lambda x, part=slice(start, stop): x[part], data)


def peek(x):
    """Returns `(x, inputs of its first batch)`; a generator is put together again."""
    if isinstance(x, tf.data.Dataset):
        first = next(iter(x.take(1)), None)
    elif isinstance(x, keras.utils.PyDataset):
        first = x[0] if x.num_batches else None
    elif hasattr(x, "__next__"):
        first = next(x, None)
        x = _chained(first, x)
    else:
        return x, x
    if first is None:
        raise ValueError("The dataset is empty: there is no batch to train on.")
    return x, keras.utils.unpack_x_y_sample_weight(first)[0]


def _chained(first, rest):
    # Keras takes generators, not iterators of other kinds.
    yield from itertools.chain([first], rest)


def checked_batch(x, most):
    """Returns the first samples of a batch as arrays.

    Args:
        x: Inputs of a model, `[batch, ...]` or a structure of these.
        most: Samples to return at most.

    Raises:
        ValueError: If there are none, or if they hold NaN or infinity.
    """
    leaves = [np.asarray(leaf)[:most] for leaf in keras.tree.flatten(x)]
    if not leaves or not all(len(leaf) for leaf in leaves):
        raise ValueError("The dataset is empty: there is no batch to calibrate on.")
    for leaf in leaves:
        if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
            count = int((~np.isfinite(leaf)).sum())
            raise ValueError(
                f"The images hold {count} values that are NaN or infinite in the first batch "
                f"(shape {leaf.shape}): clean the data first."
            )
    return keras.tree.pack_sequence_as(x, leaves)
