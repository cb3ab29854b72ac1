"""Datasets of labeled images: those of tensorflow-datasets, and digits that need no download."""

import os
from typing import TYPE_CHECKING

import tensorflow as tf

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

DIGITS_TEST_SIZE = 360


def load(
    name: str, split: str = "train", data_dir: str | os.PathLike[str] | None = None
) -> "tuple[tf.data.Dataset, tfds.core.DatasetInfo]":
    """Loads a dataset of labeled images from tensorflow-datasets.

    A dataset that is already prepared in `data_dir` is read from there without network access.
    Otherwise tensorflow-datasets downloads and prepares it.

    Args:
        name: The name of a dataset of tensorflow-datasets, for example `"cifar10"`.
        split: One split or a slice of it, for example `"train"` or `"test[:1000]"`.
        data_dir: The folder of prepared datasets. None for the default of tensorflow-datasets.

    Returns:
        `(dataset, info)`: a `tf.data.Dataset` of `(uint8 image, int64 label)` in stored order, and the
        `tfds.core.DatasetInfo`.

    Raises:
        ImportError: If tensorflow-datasets is not installed.
        ValueError: If `split` is not one split, if there is no dataset of the name, or if it has no
            labeled images.

    Example:

    >>> train, info = quality.load("cifar10", split="train", data_dir="~/tensorflow_datasets")
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "`quality.load` needs tensorflow-datasets: pip install tensorflow-datasets. "
            "`quality.digits` works without it."
        ) from error
    if not isinstance(split, str):
        raise ValueError(f"`split` must be one split, for example 'train'. Found {split!r}.")

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        # Its message lists all datasets, which are more than a thousand lines.
        raise ValueError(
            f"There is no dataset {name!r}, neither in tensorflow-datasets nor prepared in "
            f"{'its default folder' if data_dir is None else data_dir}. Check the name and the "
            "folder; tfds.list_builders() lists the names."
        ) from error
    keys = builder.info.supervised_keys
    feature = builder.info.features[keys[0]] if keys and isinstance(keys[0], str) else None
    if not isinstance(feature, tfds.features.Image):
        raise ValueError(
            f"`name` must be a dataset of labeled images. Found {name!r} with the supervised keys "
            f"{keys!r}. Choose another dataset."
        )
    if not builder.is_prepared():
        builder.download_and_prepare()
    return builder.as_dataset(split=split, as_supervised=True), builder.info


def digits(split: str = "train", size: int = 32, channels: int = 3) -> tf.data.Dataset:
    """Loads the handwritten digits that come with scikit-learn, without a download.

    The dataset has 1,797 gray images of 8x8 pixels in ten classes (Alpaydin and Kaynak, "Optical
    Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998). They are enlarged
    bicubically. The last 360 are the test split, because scikit-learn defines no splits.

    Args:
        split: `"train"` or `"test"`.
        size: The height and width of the enlarged images, in pixels.
        channels: 1, or 3 to repeat the gray value in each channel.

    Returns:
        A `tf.data.Dataset` of `(uint8 image [size, size, channels], int64 label)`.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If an argument has another value.

    Example:

    >>> train = quality.mixed_quality(quality.digits("train")).batch(64)
    """
    if split not in ("train", "test"):
        raise ValueError(f"`split` must be 'train' or 'test'. Found {split!r}.")
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"`size` must be a positive number of pixels. Found {size!r}.")
    if channels not in (1, 3):
        raise ValueError(f"`channels` must be 1 or 3. Found {channels!r}.")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "`quality.digits` needs scikit-learn: pip install scikit-learn."
        ) from error

    images, labels = load_digits(return_X_y=True)
    part = slice(None, -DIGITS_TEST_SIZE) if split == "train" else slice(-DIGITS_TEST_SIZE, None)
    images = images[part].reshape(-1, 8, 8, 1) * (255.0 / 16.0)
    images = tf.image.resize(images, [size, size], tf.image.ResizeMethod.BICUBIC)
    images = tf.saturate_cast(tf.round(images), tf.uint8)
    images = tf.repeat(images, channels, axis=-1)
    return tf.data.Dataset.from_tensor_slices((images, labels[part].astype("int64")))
