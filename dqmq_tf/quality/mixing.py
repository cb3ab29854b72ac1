"""`mixed_quality`: a dataset in which every image has its own kind and severity of degradation."""

import math
import numbers
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf

from dqmq_tf.quality.degradations import (
    DEGRADATIONS,
    KINDS,
    check_image_shape,
    check_kind,
    check_severity,
)
from dqmq_tf.quality.value_range import from_unit, resolve_value_range, to_unit


def _shares(kinds, clean):
    """Returns the share of the clean images and of each of `KINDS`, in that order, summing to 1."""
    if not isinstance(clean, numbers.Real) or not 0 <= clean <= 1:
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
            f"`kinds` must name at least one kind, and none twice. Found {names!r}; to weight "
            "a kind, pass a dictionary {kind: share}."
        )
    weights = dict(kinds) if isinstance(kinds, Mapping) else dict.fromkeys(names, 1.0)
    for name, weight in weights.items():
        if not isinstance(weight, numbers.Real) or not 0 < weight < math.inf:
            raise ValueError(
                f"`kinds` must give each kind a positive share. Found {weight!r} for {name!r}; "
                "leave out kinds that are not wanted."
            )
    weights = np.array([weights.get(kind, 0.0) for kind in KINDS], np.float64)
    return np.concatenate([[clean], (1.0 - clean) * weights / weights.sum()])


def _severity_range(severity):
    """Returns (low, high) of a severity or an inclusive range of severities."""
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
            f"`severity` must be a range (low, high) with low <= high. Found {severity!r}; "
            f"did you mean ({high}, {low})?"
        )
    return low, high


def _check_dataset(dataset):
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(
            f"`dataset` must be a tf.data.Dataset. Found {type(dataset).__name__}; make one with "
            "`tf.data.Dataset.from_tensor_slices((images, labels))`."
        )
    element = dataset.element_spec
    if (
        not isinstance(element, tuple)
        or len(element) not in (2, 3)
        or not isinstance(element[0], tf.TensorSpec)
    ):
        raise ValueError(
            "`dataset` must have elements (image, label) or (image, label, sample_weight), the "
            f"image a dense tensor. Found {element!r}; bring them to that form with `dataset.map`."
        )
    check_image_shape(element[0].shape)
    if dataset.cardinality() == 0:
        raise ValueError(
            "`dataset` is empty: its cardinality is 0. Check the split, the filters and "
            "`drop_remainder`."
        )


def mixed_quality(
    dataset,
    kinds=KINDS,
    severity=(1, 5),
    clean=0.2,
    seed=0,
    with_quality=False,
    value_range=None,
):
    """Makes a dataset in which every image has its own quality.

    Each image stays clean or gets one kind of degradation at one severity, drawn by ``seed`` and the
    image's position in the dataset alone: whether the dataset is batched, and how, changes
    nothing, and iterating again gives the same draws. To have new draws in every epoch, repeat
    before mixing (positions then go on counting), or shuffle before mixing (images then change
    their positions). Mixing after batching is faster than before it.

    Args:
        dataset: a ``tf.data.Dataset`` of ``(image, label)`` or ``(image, label, sample_weight)``,
            batched or not; images as in `degrade`.
        kinds: names from `KINDS`, which share the degraded images equally, or a dictionary
            ``{kind: share}`` of positive relative shares of the degraded images.
        severity: a severity from 1 to 5, or an inclusive range ``(low, high)``, drawn uniformly.
        clean: the share of images left as they are, bit for bit; 0 to 1.
        seed: an int.
        with_quality: whether to append to every element what was drawn,
            ``{"kind": int32, "severity": int32}``. A kind is 0 for clean and otherwise ``i + 1`` for
            ``KINDS[i]``, whichever ``kinds`` were asked for; the severity of clean images is 0. It is
            meant for evaluation; drop it before ``fit``, which would take it for sample weights.
        value_range: (low, high) of the images' values. None means (0, 255) for integers and
            (0, 1) for floats.

    Returns:
        A ``tf.data.Dataset`` of the same elements, static shapes, dtypes and cardinality. With
        ``with_quality``, ``(image, label, quality)`` or ``(image, label, sample_weight, quality)``.

    Raises:
        TypeError: if ``dataset`` is no ``tf.data.Dataset``, or its images are neither integers nor
            floats.
        ValueError: if another argument is not as above, or the dataset is empty.
        tf.errors.InvalidArgumentError: when iterated, if float images are far outside the range.

    Example:

    ```python
    train, info = quality.load("cifar10", split="train")
    train = quality.mixed_quality(train.shuffle(10_000).batch(128), clean=0.2)
    ```
    """
    _check_dataset(dataset)
    shares = _shares(kinds, clean)
    low, high = _severity_range(severity)
    if not isinstance(seed, numbers.Integral):
        raise ValueError(f"`seed` must be an int. Found {seed!r}.")
    image_spec = dataset.element_spec[0]
    value_range = resolve_value_range(image_spec.dtype, value_range)

    # Only the kinds in use become branches; `present` tells a branch's place among all kinds.
    present = np.flatnonzero(shares)
    thresholds = np.cumsum(shares[present])[:-1].astype(np.float32)
    functions = [DEGRADATIONS[KINDS[kind - 1]] if kind else None for kind in present]

    def degrade_at(image, position):
        """Returns the image, its kind and its severity, for its position in the dataset."""
        draw_seed, noise_seed = tf.unstack(
            tf.random.split(tf.stack([tf.constant(seed, tf.int64), position]))
        )
        draws = tf.random.stateless_uniform([2], draw_seed)
        branch = tf.reduce_sum(tf.cast(draws[0] >= thresholds, tf.int32))
        kind = tf.gather(tf.constant(present, tf.int32), branch)
        level = low + tf.cast(draws[1] * float(high - low + 1), tf.int32)
        unit = to_unit(image, value_range)
        degraded = tf.switch_case(
            branch,
            [(lambda f=f: f(unit, level, noise_seed)) if f else (lambda: unit) for f in functions],
        )
        degraded = from_unit(degraded, image.dtype, value_range)
        degraded = tf.where(kind > 0, degraded, image)
        return tf.ensure_shape(degraded, image.shape), kind, tf.where(kind > 0, level, 0)

    def degrade_element(position, element):
        image, *rest = element
        if image_spec.shape.rank == 3:
            image, kind, level = degrade_at(image, position)
        else:
            positions = position + tf.range(tf.shape(image, tf.int64)[0])
            image, kind, level = tf.map_fn(
                lambda image_and_position: degrade_at(*image_and_position),
                (image, positions),
                fn_output_signature=(
                    tf.TensorSpec(image_spec.shape[1:], image_spec.dtype),
                    tf.TensorSpec([], tf.int32),
                    tf.TensorSpec([], tf.int32),
                ),
            )
            image = tf.ensure_shape(image, image_spec.shape)
        drawn = [{"kind": kind, "severity": level}] if with_quality else []
        return (image, *rest, *drawn)

    def count_images(position, element):
        return position + tf.shape(element[0], tf.int64)[0], (position, element)

    if image_spec.shape.rank == 3:
        positioned = dataset.enumerate()
    else:
        positioned = dataset.scan(tf.constant(0, tf.int64), count_images)
    return positioned.map(degrade_element, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
