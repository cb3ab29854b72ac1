"""The images that `quantize` trains on: a folder of images, or a dataset of tensorflow-datasets."""

import dataclasses
import pathlib
from typing import Any

import keras
import tensorflow as tf

from dqmq_tf import quality
from dqmq_tf.command_line.argument_types import ImageSource
from dqmq_tf.export.preprocessing import Preprocessing
from dqmq_tf.graph.kernels import PIXELS

_SHUFFLED = 2_000
# Those that `keras.utils.image_dataset_from_directory` reads.
_IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
_PIXEL_RANGE = (0.0, 255.0)
_COLOR_MODES = {1: "grayscale", 3: "rgb", 4: "rgba"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageData:
    """Batches of `(images, class indices)` as a model takes them.

    Attributes:
        train: The batches to train on, shuffled.
        validation: The batches that are held back. None if none are.
        class_names: The names of the classes, in the order of their indices.
    """

    train: tf.data.Dataset
    validation: tf.data.Dataset | None
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputFormat:
    """How a model takes its images.

    Attributes:
        size: Height and width in pixels.
        channels: 1, 3 or 4.
        dtype: The type of the input.
        value_range: The values of black and white.
        crop: Whether to crop images to the proportions of `size`, instead of stretching them.
    """

    size: tuple[int, int]
    channels: int
    dtype: str
    value_range: tuple[float, float]
    crop: bool

    def converted(self, images: tf.Tensor) -> tf.Tensor:
        """Returns images with values from 0 to 255 in the type and range of the model."""
        images = tf.cast(images, tf.float32)
        low, high = self.value_range
        if (low, high) != _PIXEL_RANGE:
            images = low + images * ((high - low) / 255.0)
        if tf.as_dtype(self.dtype).is_integer:
            images = tf.round(images)
        return tf.cast(images, self.dtype)

    def preprocessing(self) -> Preprocessing | None:
        """Returns what the file says about its input, or None for images with transparency."""
        if self.channels > 3:
            return None
        low, high = self.value_range
        std = 255.0 / (high - low)
        return Preprocessing(mean=-low * std, std=std, resize="bilinear")


def input_format(
    model: keras.Model,
    image_size: tuple[int, int] | None,
    value_range: tuple[float, float],
    crop: bool,
) -> InputFormat:
    """Returns how a model takes its images.

    Args:
        model: A model.
        image_size: Height and width for a model without a fixed size. None for those of the model.
        value_range: The values of black and white.
        crop: See `InputFormat`.

    Raises:
        ValueError: If the model does not take one image, if the size is unknown or another one, or if
            the model takes pixels in another range than theirs.
    """
    shape = model.inputs[0].shape[1:]
    if len(model.inputs) != 1 or len(shape) != 3 or shape[2] not in _COLOR_MODES:
        shapes = ", ".join(str(list(x.shape[1:])) for x in model.inputs)
        raise ValueError(
            f"Model {model.name!r} takes inputs of shape {shapes}, but `quantize` trains models of one "
            "image [height, width, channels] with 1, 3 or 4 channels. Train it in Python, with "
            "dqmq_tf.quantize_model."
        )
    size = image_size or shape[:2]
    if None in size:
        raise ValueError(
            f"Model {model.name!r} takes images of any size: give --image_size=HEIGHT,WIDTH."
        )
    if any(fixed not in (None, length) for fixed, length in zip(shape[:2], size)):
        raise ValueError(
            f"--image_size={size[0]},{size[1]}: model {model.name!r} takes images of "
            f"{shape[0]} x {shape[1]} pixels. Omit the option."
        )
    dtype = str(model.inputs[0].dtype)
    if dtype == PIXELS and value_range != _PIXEL_RANGE:
        raise ValueError(
            f"--value_range={value_range[0]:g},{value_range[1]:g}: model {model.name!r} takes {dtype} "
            "images, which are pixels from 0 to 255. Omit the option."
        )
    return InputFormat(
        size=(int(size[0]), int(size[1])),
        channels=int(shape[2]),
        dtype=dtype,
        value_range=value_range,
        crop=crop,
    )


def read(
    source: ImageSource,
    data_dir: pathlib.Path | None,
    split: str,
    form: InputFormat,
    *,
    batch_size: int,
    validation_split: float,
    seed: int,
) -> ImageData:
    """Returns the images of a folder or dataset.

    Args:
        source: The folder or the name of the dataset.
        data_dir: The folder of prepared datasets.
        split: The split of the dataset.
        form: How the model takes its images. Sizes and channels are made so; types and values are
            still floats from 0 to 255.
        batch_size: The number of images per batch.
        validation_split: The share of the images that are held back.
        seed: The seed of the order of the images.

    Raises:
        ValueError: If there are no images, or fewer than the shares need.
        ImportError: If a dataset is read and tensorflow-datasets is not installed.
    """
    if source.is_folder:
        data = _read_folder(source.name, form, batch_size, validation_split, seed)
    else:
        loaded = _load(source.name, split, data_dir)
        data = _batched(*loaded, form, batch_size, validation_split, seed)
    for part, purpose in ((data.train, "train on"), (data.validation, "measure the result on")):
        if part is not None and part.cardinality() == 0:
            raise ValueError(
                f"--data={source.name} leaves no image to {purpose}: give more images, or another "
                "--validation_split."
            )
    return data


def first_unreadable(folder: str, channels: int) -> str | None:
    """Returns the path of the first image in a folder that cannot be decoded, or None.

    Args:
        folder: A folder with one subfolder per class.
        channels: The channels to decode.
    """
    for path in sorted(pathlib.Path(folder).rglob("*")):
        if path.suffix.lower() not in _IMAGE_ENDINGS:
            continue
        try:
            tf.io.decode_image(path.read_bytes(), channels, expand_animations=False)
        except tf.errors.OpError:
            return str(path)
    return None


def _read_folder(
    folder: str, form: InputFormat, batch_size: int, validation_split: float, seed: int
) -> ImageData:
    classes = sorted(
        path.name
        for path in pathlib.Path(folder).iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )
    if not classes:
        raise ValueError(
            f"--data={folder} has no subfolders: put the images of each class into one of its own."
        )
    options: dict[str, Any] = {"validation_split": validation_split, "subset": "both"}
    parts = keras.utils.image_dataset_from_directory(
        folder,
        class_names=classes,
        color_mode=_COLOR_MODES[form.channels],
        batch_size=batch_size,
        image_size=form.size,
        crop_to_aspect_ratio=form.crop,
        seed=seed,
        verbose=False,
        **(options if validation_split else {}),
    )
    train, validation = parts if validation_split else (parts, None)
    return ImageData(train=train, validation=validation, class_names=tuple(classes))


def _load(
    name: str, split: str, data_dir: pathlib.Path | None
) -> tuple[tf.data.Dataset, tuple[str, ...]]:
    """Returns a dataset of `(image, class index)` in a fixed order, and the names of its classes."""
    dataset, info = quality.load(name, split, data_dir)
    label = info.features[info.supervised_keys[1]]
    if not hasattr(label, "names"):
        raise ValueError(f"--data={name}: the labels are not classes. Choose another dataset.")
    return dataset, tuple(label.names)


def _batched(
    dataset: tf.data.Dataset,
    class_names: tuple[str, ...],
    form: InputFormat,
    batch_size: int,
    validation_split: float,
    seed: int,
) -> ImageData:
    def prepared(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = _with_channels(image, form.channels)
        if form.crop:
            image = keras.preprocessing.image.smart_resize(image, form.size)
        return tf.ensure_shape(
            tf.image.resize(image, form.size), (*form.size, form.channels)
        ), label

    dataset = dataset.map(prepared, tf.data.AUTOTUNE)
    count = int(dataset.cardinality())
    held_back = int(validation_split * count)
    train = dataset.skip(held_back).shuffle(min(max(count - held_back, 1), _SHUFFLED), seed)
    return ImageData(
        train=train.batch(batch_size),
        validation=dataset.take(held_back).batch(batch_size) if validation_split else None,
        class_names=class_names,
    )


def _with_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
    """Returns an image with 1, 3 or 4 channels as one with `channels` of them."""
    found = image.shape[-1]
    if found == channels:
        return image
    if found == 1 and channels == 3:
        return tf.image.grayscale_to_rgb(image)
    if found == 3 and channels == 1:
        return tf.image.rgb_to_grayscale(image)
    raise ValueError(
        f"The images of the dataset have {found} channels, but the model takes {channels}. Choose "
        "another dataset or model."
    )
