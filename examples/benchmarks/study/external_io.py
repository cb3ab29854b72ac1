"""Flags and files of the methods that run as separate scripts.

This module works with both Keras packages: a script passes its own, `keras` or `tf_keras`.
"""

import architectures
import numpy as np
import tensorflow as tf
from absl import app, flags

_NETWORK = flags.DEFINE_enum("network", None, ["resnet8", "mobilenet_v2"], "Network to train.")
_WEIGHTS = flags.DEFINE_string(
    "weights", None, "Weights of the float network (.npz), in the order of `model.get_weights()`."
)
_DATA = flags.DEFINE_string(
    "data", None, "Training data (.npz): x uint8 [steps * batch or more, 32, 32, 3], and y."
)
STEPS = flags.DEFINE_integer("steps", None, "Training steps.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 128, "Images per step.", lower_bound=1)
LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 1e-3, "Initial learning rate of Adam. It decays to 0 along a cosine."
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of all random numbers.")
_TESTS = flags.DEFINE_string(
    "tests", None, "Test sets (.npz): a_x, a_y, b_x and so on, x uint8 [n, 32, 32, 3]."
)
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "File to write (.npz): the predictions a, b and so on, float32 [n, 10]; accuracy_a and so on; the "
    "seconds of training; and further results of the method.",
)
REQUIRED = ("network", "weights", "data", "steps", "tests", "output")

_PREDICT_BATCH = 500


def float_network(keras):
    """Returns the float network that the flags name, as a model of the given Keras module."""
    model = getattr(architectures, _NETWORK.value)(keras)
    with np.load(_WEIGHTS.value) as file:
        model.set_weights([file[name] for name in file.files])
    return model


def training_batches():
    """Returns a dataset of the training batches: float32 images from 0 to 255, and labels."""
    count = STEPS.value * _BATCH.value
    with np.load(_DATA.value) as file:
        x, y = file["x"][:count], file["y"][:count]
    if len(x) < count:
        raise app.UsageError(
            f"--data={_DATA.value} has {len(x)} images, but {STEPS.value} steps need {count}."
        )
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(_BATCH.value)
    return data.map(lambda image, label: (tf.cast(image, tf.float32), label)).prefetch(2)


def predictions(model):
    """Returns `{test: predictions, "accuracy_" + test: accuracy}` for all tests.

    Predictions are float32 `[n, classes]`.
    """
    found = {}
    with np.load(_TESTS.value) as file:
        for name in [key.removesuffix("_x") for key in file.files if key.endswith("_x")]:
            images = np.float32(file[f"{name}_x"])
            found[name] = model.predict(images, batch_size=_PREDICT_BATCH, verbose=0)
            found[f"accuracy_{name}"] = np.mean(found[name].argmax(-1) == file[f"{name}_y"])
    return found
