"""What users pass as data, and the one contract by which it is read.

`calibrate`, `decisions`, `freeze`, `summary`, `convert` and `verify` all take the same data, and the
calibration in `fit` takes it in batches:

- an array `[N, ...]`, or a list, tuple or dictionary of arrays for a model of several inputs;
- a `tf.data.Dataset`, batched or not, of inputs, `(inputs, labels)` or `(inputs, labels, ...)`;
- a `keras.utils.PyDataset`, or a generator of batches, with elements of the same forms.

Whether an element is a batch or a single sample is told by the shapes of `model.inputs`. A batch may
lack a last axis of one, as in Keras.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

BATCH_SIZE = 256
# A batch: its inputs, one array per model input, and what follows them in an element.
Part = tuple[list[Any], tuple[Any, ...]]
_FORMS = (
    "an array, a list or dictionary of arrays, a tf.data.Dataset, a keras.utils.PyDataset, or a "
    "generator of batches, of inputs or (inputs, labels)"
)


def batches(
    data: Any,
    model: keras.Model,
    *,
    batch_size: int = BATCH_SIZE,
    samples: int | None = None,
    argument: str = "data",
) -> Iterator[list[np.ndarray]]:
    """Yields the inputs of a model in batches, without labels.

    Args:
        data: See the module.
        model: The model that takes the inputs.
        batch_size: Samples per batch where arrays or single samples are put into batches.
        samples: Stops after this many samples; None for all.
        argument: Name of the caller's argument, for error messages.

    Yields:
        A list with one array `[batch, ...]` per model input, in the order of `model.inputs`.

    Raises:
        ValueError: If the data hold no sample, never end, or do not fit the model's inputs.
    """
    if samples is None:
        _check_finite_length(data, argument)
    count = 0
    for part, _ in _parts(data, model, batch_size, argument, keeps_rest=False):
        if samples is not None:
            part = [array[: samples - count] for array in part]
        if len(part[0]):
            count += len(part[0])
            yield cast(part, model)
        if samples is not None and count >= samples:
            return
    if not count:
        raise ValueError(f"`{argument}` holds no inputs: pass at least one.")


def labeled_batches(
    data: Any,
    model: keras.Model,
    *,
    batch_size: int = BATCH_SIZE,
    argument: str = "data",
    may_be_endless: bool = False,
) -> Iterator[tuple[list[np.ndarray], tuple[Any, ...]]]:
    """Yields the inputs of a model in batches, with what follows them in the elements of the data.

    Args:
        data: See the module. A tuple of arrays `(inputs, labels, ...)` is an element.
        model: The model that takes the inputs.
        batch_size: Samples per batch where arrays or single samples are put into batches.
        argument: Name of the caller's argument, for error messages.
        may_be_endless: Whether a dataset without an end is valid, because the caller stops by itself.

    Yields:
        `(inputs, rest)`: a list with one array `[batch, ...]` per model input, and a tuple with what
        follows the inputs in an element, such as `(labels,)`, batched as well. It is empty for
        elements that hold only inputs.

    Raises:
        ValueError: If the data hold no sample, never end, or do not fit the model's inputs, or if
            labels and inputs differ in number.
    """
    if not may_be_endless:
        _check_finite_length(data, argument)
    is_empty = True
    for part, rest in _parts(data, model, batch_size, argument, keeps_rest=True):
        counts = [len(leaf) for leaf in keras.tree.flatten(rest) if np.ndim(leaf)]
        if any(count != len(part[0]) for count in counts):
            raise ValueError(
                f"`{argument}` has a batch of {len(part[0])} inputs with {counts} labels, weights or "
                "other values. Give one of each for every input."
            )
        if len(part[0]):
            is_empty = False
            yield cast(part, model), rest
    if is_empty:
        raise ValueError(f"`{argument}` holds no inputs: pass at least one.")


def collect(
    data: Any, model: keras.Model, samples: int | None = None, argument: str = "data"
) -> list[np.ndarray]:
    """Returns the inputs of a model as one array `[N, ...]` per input.

    Args and errors are those of `batches`.
    """
    return joined(list(batches(data, model, samples=samples, argument=argument)))


def structured(arrays: list[np.ndarray], model: keras.Model) -> Any:
    """Returns a flat list of arrays in the structure in which a model takes its inputs."""
    return keras.tree.pack_sequence_as(_input_structure(model), arrays)


def first_input(x: Any, model: keras.Model) -> Any:
    """Returns the first of the inputs of a model, from a batch in the structure that Keras takes."""
    structure = _input_structure(model)
    if isinstance(x, dict) and not isinstance(structure, dict):
        x = x[model.inputs[0].name]
    elif isinstance(x, dict):
        x = {key: x[key] for key in structure}
    return _with_rank(keras.tree.flatten(x)[0], model.inputs[0].shape)


def without_lists(
    model: keras.Model, x: Any, y: Any, options: dict[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """Returns the arguments of `fit` with arrays in place of nested lists of numbers.

    Args:
        model: The model.
        x, y: Inputs and labels.
        options: Other arguments of `fit`. Those named `sample_weight` and `validation_data` may
            contain lists as well.
    """
    counts = (len(model.inputs), len(model.outputs), len(model.outputs))
    options = dict(options)
    if "sample_weight" in options:
        options["sample_weight"] = _without_lists(options["sample_weight"], counts[2])
    if isinstance(options.get("validation_data"), (list, tuple)):
        options["validation_data"] = tuple(map(_without_lists, options["validation_data"], counts))
    return _without_lists(x, counts[0]), _without_lists(y, counts[1]), options


def _check_finite_length(data: Any, argument: str) -> None:
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                f"`{argument}` is a dataset without an end. Limit it, for example with `.take(100)`."
            )


def cast(arrays: list[Any], model: keras.Model) -> list[np.ndarray]:
    # NumPy keeps strings as objects.
    dtypes = [object if x.dtype == "string" else x.dtype for x in model.inputs]
    return [np.asarray(array).astype(dtype) for array, dtype in zip(arrays, dtypes)]


def _parts(
    data: Any, model: keras.Model, batch_size: int, argument: str, keeps_rest: bool
) -> Iterator[Part]:
    """Yields batches as they come. Arrays are cut, and single samples are put together.

    Args:
        data: See the module.
        model: The model that takes the inputs.
        batch_size: The number of samples per batch where batches are made here.
        argument: The name of the caller's argument, for error messages.
        keeps_rest: Whether to yield what follows the inputs in an element. If not, the second item
            of each part is `()`.
    """
    waiting: list[Part] = []
    for element in _elements(data, argument):
        arrays, rest, is_batch = matched(element, model, argument)
        part = (arrays, tuple(map(_as_arrays, rest)) if keeps_rest else ())
        if is_batch:
            yield from _cut(part, batch_size) if _is_arrays(data) else [part]
            continue
        part = keras.tree.map_structure(_batch_of_one, part)
        # Samples of different sizes cannot be in one batch.
        if waiting and (len(waiting) == batch_size or _shapes(part) != _shapes(waiting[0])):
            yield joined_parts(waiting)
            waiting = []
        waiting.append(part)
    if waiting:
        yield joined_parts(waiting)


def _elements(data: Any, argument: str) -> Iterable[Any]:
    """Elements of a dataset or generator; arrays are a single element."""
    if isinstance(data, keras.utils.PyDataset):
        if data.num_batches is None:
            raise ValueError(f"`{argument}` is a PyDataset without an end: give it a length.")
        return (data[index] for index in range(data.num_batches))
    if is_dataset(data) or hasattr(data, "__next__"):
        return data
    if data is None:
        raise ValueError(f"`{argument}` must be {_FORMS}. Found None.")
    return [data]


def is_dataset(data: Any) -> bool:
    distributed = (tf.distribute.DistributedDataset, tf.distribute.DistributedIterator)
    return isinstance(data, (tf.data.Dataset, *distributed))


def _is_arrays(data: Any) -> bool:
    return not (
        is_dataset(data) or isinstance(data, keras.utils.PyDataset) or hasattr(data, "__next__")
    )


def matched(
    element: Any, model: keras.Model, argument: str
) -> tuple[list[Any], tuple[Any, ...], bool]:
    """Returns the inputs in an element, what follows them, and whether it is a batch.

    The inputs are one array per model input. A tuple is `(inputs, ...)` by Keras's rule. It is taken
    as a tuple of inputs only if its first entry does not fit the model.
    """
    candidates: list[tuple[Any, tuple[Any, ...]]] = [(element, ())]
    if isinstance(element, tuple) and element:
        candidates = [(element[0], element[1:]), (element, ())]
    for candidate, rest in candidates:
        arrays = _flat(candidate, model)
        if arrays is None:
            continue
        shapes = [x.shape for x in model.inputs]
        for is_batch in (True, False):
            if all(_fits(array, shape, is_batch) for array, shape in zip(arrays, shapes)):
                return arrays, rest, is_batch
        arrays = list(map(_with_rank, arrays, shapes))
        if all(_fits(array, shape, True) for array, shape in zip(arrays, shapes)):
            return arrays, rest, True
    wanted = ", ".join(f"{x.name} {list(x.shape[1:])}" for x in model.inputs)
    raise ValueError(
        f"`{argument}` must be {_FORMS}, for inputs {wanted} of model {model.name!r}, each with or "
        f"without a batch dimension. Found {_described(element)}."
    )


def _flat(candidate: Any, model: keras.Model) -> list[Any] | None:
    """The leaves of a structure of inputs in the order of `model.inputs`, or None."""
    structure, count = _input_structure(model), len(model.inputs)
    if isinstance(candidate, dict):
        names = [x.name for x in model.inputs]
        if isinstance(structure, dict) and set(structure) <= set(candidate):
            leaves = keras.tree.flatten({key: candidate[key] for key in structure})
        elif set(names) <= set(candidate):
            leaves = [candidate[name] for name in names]
        else:
            return None
    else:
        leaves = keras.tree.flatten(_without_lists(candidate, count))
    leaves = [_local(leaf) for leaf in leaves]
    if len(leaves) != count or not all(hasattr(leaf, "shape") for leaf in leaves):
        return None
    return leaves


def _without_lists(data: Any, count: int) -> Any:
    """Returns the data of `count` inputs or outputs with arrays in place of lists of numbers."""
    if isinstance(data, dict):
        return {key: _without_lists(value, 1) for key, value in data.items()}
    if count > 1 and isinstance(data, (list, tuple)) and len(data) == count:
        return type(data)(_without_lists(value, 1) for value in data)
    return np.asarray(data) if _is_numeric(data) else data


def _is_numeric(candidate: Any) -> bool:
    """Whether nested lists hold the numbers of one array, as NumPy reads them."""
    if not isinstance(candidate, (list, tuple)):
        return False
    leaf = candidate
    while isinstance(leaf, (list, tuple)) and leaf:
        leaf = leaf[0]
    return isinstance(leaf, (int, float, np.number))


def _local(leaf: Any) -> Any:
    """A leaf as one array: the replicas of a distributed dataset are put together."""
    if isinstance(leaf, tf.distribute.DistributedValues):
        return np.concatenate([np.asarray(part) for part in leaf.values])
    return np.asarray(leaf) if isinstance(leaf, (list, tuple)) else leaf


def _fits(array: Any, shape: tuple[int | None, ...], is_batch: bool) -> bool:
    wanted = shape[1:]
    found = tuple(array.shape)[1:] if is_batch else tuple(array.shape)
    return len(found) == len(wanted) and all(w in (None, f) for f, w in zip(found, wanted))


def _with_rank(array: Any, shape: tuple[int | None, ...]) -> Any:
    """Returns a batch with a last axis of one added or removed, as functional models of Keras do it."""
    if len(array.shape) == len(shape) - 1 and shape[-1] == 1:
        return keras.ops.expand_dims(array, -1)
    if len(array.shape) == len(shape) + 1 and array.shape[-1] == 1:
        return keras.ops.squeeze(array, -1)
    return array


def _input_structure(model: keras.Model) -> Any:
    if isinstance(model, keras.Sequential):
        return model.inputs[0]
    return model.input


def _cut(part: Part, size: int) -> Iterator[Part]:
    for start in range(0, max(len(part[0][0]), 1), size):
        rows = slice(start, start + size)
        yield keras.tree.map_structure(lambda x, rows=rows: None if x is None else x[rows], part)


def _as_arrays(value: Any) -> Any:
    """Returns a structure of labels, weights or other values with arrays as its leaves."""
    if _is_numeric(value):
        return np.asarray(value)
    return keras.tree.map_structure(_local, value)


def _batch_of_one(leaf: Any) -> Any:
    return None if leaf is None else np.asarray(leaf)[np.newaxis]


def _shapes(part: Part) -> list[tuple[int, ...]]:
    return [np.shape(leaf) for leaf in keras.tree.flatten(part)]


def joined_parts(parts: list[Part]) -> Part:
    return keras.tree.map_structure(
        lambda *leaves: None if leaves[0] is None else np.concatenate(leaves), *parts
    )


def joined(parts: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(arrays) for arrays in zip(*parts)]


def _described(element: Any) -> str:
    """Types and shapes of what was found."""

    def text(leaf: Any) -> str:
        shape = getattr(leaf, "shape", None)
        return type(leaf).__name__ if shape is None else f"{list(shape)}"

    if isinstance(element, (dict, list, tuple)):
        leaves = keras.tree.flatten(element)[:8]
        inner = ", ".join(text(leaf) for leaf in leaves)
        keys = f" with keys {sorted(map(str, element))}" if isinstance(element, dict) else ""
        return f"a {type(element).__name__}{keys} of {inner}"
    return f"{type(element).__name__} of shape {text(element)}"
