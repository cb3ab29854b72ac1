"""Datasets in which every image has its own kind and severity of degradation."""

import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dqmq_tf.quality.degradations import (
    DEGRADATIONS,
    KINDS,
    check_image_shape,
    check_kind,
    check_seed,
    check_severity,
)
from dqmq_tf.quality.value_range import from_unit, resolve_value_range, to_unit

_Kinds = str | Iterable[str] | Mapping[str, float]


def _shares(kinds: Any, clean: Any) -> np.ndarray:
    """Returns the share of clean images, followed by that of each of `KINDS`. The sum is 1.

    Args:
        kinds: See `mixed_quality`; of any type.
        clean: See `mixed_quality`; of any type.

    Raises:
        ValueError: If an argument is invalid.
    """
    if not _is_real(clean) or not 0 <= clean <= 1:
        raise ValueError(f"`clean` must be a share from 0 to 1. Found {clean!r}.")
    if isinstance(kinds, str):
        kinds = (kinds,)
    if not isinstance(kinds, Iterable):
        raise ValueError(
            "`kinds` must be names from `quality.KINDS`, or a dictionary from names to shares. "
            f"Found {kinds!r}."
        )
    names = tuple(kinds)
    for name in names:
        check_kind(name)
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"`kinds` must name at least one kind, and none twice. Found {names!r}. To weight "
            "a kind, pass a dictionary {kind: share}."
        )
    weight_of = dict(kinds) if isinstance(kinds, Mapping) else dict.fromkeys(names, 1.0)
    for name, weight in weight_of.items():
        if not _is_real(weight) or not 0 < weight < math.inf:
            raise ValueError(
                f"`kinds` must give each kind a positive share. Found {weight!r} for {name!r}. "
                "Omit kinds that you do not want."
            )
    weights = np.array([weight_of.get(kind, 0.0) for kind in KINDS], np.float64)
    return np.concatenate([[clean], (1.0 - clean) * weights / weights.sum()])


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real)


def _severity_range(severity: Any) -> tuple[int, int]:
    """Returns the lowest and the highest severity of one severity or of an inclusive range."""
    if isinstance(severity, (tuple, list)):
        if len(severity) != 2:
            raise ValueError(
                f"`severity` must be one severity or a range (low, high). Found {severity!r}."
            )
        low, high = severity
    else:
        low = high = severity
    check_severity(low)
    check_severity(high)
    if low > high:
        raise ValueError(
            f"`severity` must be a range (low, high) with low <= high. Found {severity!r}. "
            f"Did you mean ({high}, {low})?"
        )
    return low, high


def _check_dataset(dataset: Any) -> None:
    """Raises an error unless a dataset has images and labels."""
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(
            f"`dataset` must be a tf.data.Dataset. Found {type(dataset).__name__}. Create one with "
            "`tf.data.Dataset.from_tensor_slices((images, labels))`."
        )
    element = dataset.element_spec
    if (
        not isinstance(element, tuple)
        or len(element) not in (2, 3)
        or not isinstance(element[0], tf.TensorSpec)
    ):
        raise ValueError(
            "`dataset` must have elements (image, label) or (image, label, sample_weight), where the "
            f"image is a dense tensor. Found {element!r}. Convert them with `dataset.map`."
        )
    check_image_shape(element[0].shape)
    if dataset.cardinality() == 0:
        raise ValueError(
            "`dataset` is empty: its cardinality is 0. Check the split, the filters and "
            "`drop_remainder`."
        )


def mixed_quality(
    dataset: tf.data.Dataset,
    kinds: _Kinds = KINDS,
    severity: int | Sequence[int] = (1, 5),
    clean: float = 0.2,
    seed: int = 0,
    with_quality: bool = False,
    value_range: Sequence[float] | None = None,
) -> tf.data.Dataset:
    """Returns a dataset in which every image has its own quality.

    Each image stays clean or gets one kind of degradation at one severity. The draws depend only on
    `seed` and on the position of the image in the dataset. Batching does not change them, and each
    iteration gives the same draws. To get new draws in every epoch, repeat the dataset before mixing,
    so that the positions continue, or shuffle it before mixing, so that the images change positions.
    Mixing is faster after batching than before.

    Args:
        dataset: A `tf.data.Dataset` of `(image, label)` or `(image, label, sample_weight)`, batched or
            not. For the images, see `degrade`.
        kinds: Names from `KINDS`, which share the degraded images equally, or a dictionary
            `{kind: share}` of positive relative shares of the degraded images.
        severity: A severity from 1 to 5, or an inclusive range `(low, high)` to draw from uniformly.
        clean: The share of images that stay unchanged, bit for bit, from 0 to 1.
        seed: An int.
        with_quality: Whether to append what was drawn to every element, as
            `{"kind": int32, "severity": int32}`. A kind is 0 for clean and `i + 1` for `KINDS[i]`,
            whatever `kinds` is. The severity of clean images is 0. Use this for evaluation only:
            `fit` would take the dictionary for sample weights.
        value_range: The range `(low, high)` of the images' values. None for (0, 255) with integers and
            (0, 1) for floats.

    Returns:
        A `tf.data.Dataset` with the same elements, static shapes, types and cardinality. With
        `with_quality`, its elements are `(image, label, quality)` or
        `(image, label, sample_weight, quality)`.

    Raises:
        TypeError: If `dataset` is not a `tf.data.Dataset`, or its images are neither integers nor
            floats.
        ValueError: If another argument is invalid, or the dataset is empty.
        tf.errors.InvalidArgumentError: During iteration, if images are far outside the range.

    Example:

    >>> train, info = quality.load("cifar10", split="train")
    >>> train = quality.mixed_quality(train.shuffle(10_000).batch(128), clean=0.2)
    """
    _check_dataset(dataset)
    shares = _shares(kinds, clean)
    severities = _severity_range(severity)
    check_seed(seed)
    image_spec = dataset.element_spec[0]
    limits = resolve_value_range(image_spec.dtype, value_range)
    degrade_randomly = _random_degradation(shares, severities, int(seed), limits)

    def degrade_element(position: tf.Tensor, element: tuple[Any, ...]) -> tuple[Any, ...]:
        image, *rest = element
        if image_spec.shape.rank == 3:
            image, kind, drawn_severity = degrade_randomly(image, position)
        else:
            positions = position + tf.range(tf.shape(image, tf.int64)[0])
            image, kind, drawn_severity = tf.map_fn(
                lambda image_and_position: degrade_randomly(*image_and_position),
                (image, positions),
                fn_output_signature=(
                    tf.TensorSpec(image_spec.shape[1:], image_spec.dtype),
                    tf.TensorSpec([], tf.int32),
                    tf.TensorSpec([], tf.int32),
                ),
            )
            image = tf.ensure_shape(image, image_spec.shape)
        if with_quality:
            rest.append({"kind": kind, "severity": drawn_severity})
        return (image, *rest)

    def count_images(position: tf.Tensor, element: tuple[Any, ...]) -> tuple[tf.Tensor, Any]:
        return position + tf.shape(element[0], tf.int64)[0], (position, element)

    if image_spec.shape.rank == 3:
        positioned = dataset.enumerate()
    else:
        positioned = dataset.scan(tf.constant(0, tf.int64), count_images)
    return positioned.map(degrade_element, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _random_degradation(
    shares: np.ndarray,
    severities: tuple[int, int],
    seed: int,
    value_range: tuple[float, float],
) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """Returns a function that degrades an image by its position in the dataset.

    Args:
        shares: See `_shares`.
        severities: The lowest and the highest severity.
        seed: The seed.
        value_range: The range of the images' values.

    Returns:
        A function `(image, position) -> (image, kind, severity)`.
    """
    low, high = severities
    # Only kinds with a share become branches. `kinds` maps a branch to its kind.
    kinds = np.flatnonzero(shares)
    thresholds = np.cumsum(shares[kinds])[:-1].astype(np.float32)

    def branch_for(
        kind: int, unit: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor
    ) -> Callable[[], tf.Tensor]:
        if kind == 0:
            return lambda: unit
        return lambda: DEGRADATIONS[KINDS[kind - 1]](unit, severity, seed)

    def degrade(image: tf.Tensor, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        draw_seed, noise_seed = tf.unstack(
            tf.random.split(tf.stack([tf.constant(seed, tf.int64), position]))
        )
        draws = tf.random.stateless_uniform([2], draw_seed)
        branch = tf.reduce_sum(tf.cast(draws[0] >= thresholds, tf.int32))
        drawn_kind = tf.gather(tf.constant(kinds, tf.int32), branch)
        severity = low + tf.cast(draws[1] * float(high - low + 1), tf.int32)
        unit = to_unit(image, value_range)
        branches = [branch_for(int(kind), unit, severity, noise_seed) for kind in kinds]
        degraded = from_unit(tf.switch_case(branch, branches), image.dtype, value_range)
        # Clean images stay unchanged bit for bit.
        degraded = tf.where(drawn_kind > 0, degraded, image)
        severity = tf.where(drawn_kind > 0, severity, 0)
        return tf.ensure_shape(degraded, image.shape), drawn_kind, severity

    return degrade
