"""Folders of images, and a float model that was trained on them."""

import pathlib

import keras
import numpy as np
from sklearn.datasets import load_digits

CLASSES = ("digit_0", "digit_1", "digit_2")


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Returns gray digits `[537, 8, 8, 1]` from 0 to 255 of three classes, and their labels."""
    images, labels = load_digits(n_class=len(CLASSES), return_X_y=True)
    return np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype("float32"), labels


def write_folder(folder: pathlib.Path, count: int = 160) -> None:
    """Writes digits into one subfolder per class."""
    for number, (image, label) in enumerate(zip(*digit_images())):
        if number < count:
            path = folder / CLASSES[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            keras.utils.save_img(path, image, scale=False)


def trained_classifier() -> keras.Model:
    """Returns a float model of these digits that gets nearly all of them right."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(6, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(len(CLASSES), activation="softmax"),
        ],
        name="digits",
    )
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(*digit_images(), epochs=2, verbose=0)
    return model
