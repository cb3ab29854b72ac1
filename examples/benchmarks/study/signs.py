"""The German traffic signs of Stallkamp et al. 2012, "Man vs. computer", and networks for them."""

import dataclasses
import pathlib

import keras
import numpy as np
import tensorflow as tf

from study import float_networks, fronts

BATCH, _CLASSES, _SHIFT = 128, 43, 2
_FLOAT_RATE = 0.002


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signs:
    """The images of a split, their classes, and what is known about their quality.

    Attributes:
        x: The images, `[N, 32, 32, 3]`.
        y: The classes, `[N]`.
        quality, brightness, sharpness: Measures of quality, `[N]`. Higher is better.
        size: The geometric mean of width and height of the photograph before scaling, in pixels, `[N]`.
    """

    x: np.ndarray
    y: np.ndarray
    quality: np.ndarray
    brightness: np.ndarray
    sharpness: np.ndarray
    size: np.ndarray


def read(data_dir, split):
    """Returns the `Signs` of a split, with images in uint8.

    Args:
        data_dir: Folder of tensorflow-datasets. The dataset must be prepared in it with the name `gtsrb`.
        split: `"train"`, `"validation"` or `"test"`.
    """
    import tensorflow_datasets as tfds

    rows = list(
        tfds.builder("gtsrb", data_dir=data_dir).as_dataset(split=split).as_numpy_iterator()
    )
    names = {"x": "image", "y": "label"}
    names |= {name: name for name in ("quality", "brightness", "sharpness")}
    columns = {ours: np.stack([row[name] for row in rows]) for ours, name in names.items()}
    areas = [float(row["width"]) * float(row["height"]) for row in rows]
    return Signs(size=np.sqrt(areas), **columns)


def batches(images, labels, seed, steps):
    """Returns a dataset of batches of shifted images, the same for all methods of a seed."""
    random = np.random.default_rng(seed)
    epochs = -(-steps * BATCH // len(images))
    order = np.concatenate([random.permutation(len(images)) for _ in range(epochs)])
    order = order[: steps * BATCH].reshape(steps, BATCH)
    shifts = random.integers(0, 2 * _SHIFT + 1, (steps, 2))

    def batch(indices, shift):
        padding = [[0, 0], [_SHIFT, _SHIFT], [_SHIFT, _SHIFT], [0, 0]]
        x = tf.pad(tf.gather(images, indices), padding, "SYMMETRIC")
        x = tf.slice(x, [0, shift[0], shift[1], 0], [BATCH, *images.shape[1:]])
        return tf.cast(x, tf.float32), tf.gather(labels, indices)

    return tf.data.Dataset.from_tensor_slices((order, shifts)).map(batch).prefetch(2)


def with_layers(method, model, images):
    """Returns a float network with the layers that a method puts in front, adapted to images."""
    put = {fronts.EXPOSURE: fronts.exposed, fronts.BESIDE: fronts.beside}.get(method)
    return put(model, images) if put else model


def float_start(method, seed, images, labels, *, body, cache, steps):
    """Returns a float network that was trained behind a method. It is trained once and cached.

    It begins as a network for CIFAR-10, whose last layer is replaced.

    Args:
        method: What is in front: `"nothing"`, `fronts.CLAHE`, `fronts.BESIDE` or one of `fronts.FRONTS`.
        seed: Seed of the training.
        images, labels: Training images, as a preprocessing leaves them, and classes.
        body: File of the network for CIFAR-10.
        cache: Folder of the trained networks.
        steps: Training steps.
    """
    name = pathlib.Path(body).stem
    path = pathlib.Path(cache) / f"{name}_{method}_{seed}_{steps}.keras"
    if not path.exists():
        keras.utils.set_random_seed(seed)
        model = keras.models.load_model(body, compile=False)
        classes = keras.layers.Dense(_CLASSES, activation="softmax", name="classes")
        model = keras.Model(model.inputs, classes(model.layers[-2].output), name=name)
        model = with_layers(method, model, images)
        float_networks.train(model, batches(images, labels, seed, steps), steps, _FLOAT_RATE)
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path, include_optimizer=False)
    return keras.models.load_model(path, compile=False)


def scores(predict, signs):
    """Returns the accuracy on all images, on the lowest fifths by measures, and on each fifth by quality.

    Args:
        predict: Function from float images to class probabilities.
        signs: A `Signs`.
    """
    correct = predict(signs.x.astype("float32")).argmax(axis=-1) == signs.y
    measures = {
        "worst_fifth": signs.quality,
        "darkest_fifth": signs.brightness,
        "smallest_fifth": signs.size,
        "least_sharp_fifth": signs.sharpness,
    }
    found = {"all": float(correct.mean())}
    for name, values in measures.items():
        lowest = np.argsort(values, kind="stable")[: len(values) // 5]
        found[name] = float(correct[lowest].mean())
    fifths = np.array_split(np.argsort(signs.quality, kind="stable"), 5)
    return {**found, "fifths": [float(correct[members].mean()) for members in fifths]}
